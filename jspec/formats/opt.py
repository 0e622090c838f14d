"""OPT in Hugging Face's terms: learned positions, layer norms, biases and no gate."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats.decoder import ACTIVATIONS, theirs
from jspec.formats.fields import Fields, choice, flag, number, refuse

_LAYER = "model.decoder.layers.{}."
KEYS = {
    "embedding": "model.decoder.embed_tokens.weight",
    "positions": "model.decoder.embed_positions.weight",
    "norm.weight": "model.decoder.final_layer_norm.weight",
    "norm.bias": "model.decoder.final_layer_norm.bias",
    "head.weight": "lm_head.weight",
    **{
        f"layer_{{}}.{ours}.{part}": f"{_LAYER}{theirs}.{part}"
        for ours, theirs in {
            "attention_norm": "self_attn_layer_norm",
            "attention.query": "self_attn.q_proj",
            "attention.key": "self_attn.k_proj",
            "attention.value": "self_attn.v_proj",
            "attention.out": "self_attn.out_proj",
            "feedforward_norm": "final_layer_norm",
            "feedforward.up": "fc1",
            "feedforward.down": "fc2",
        }.items()
        for part in ("weight", "bias")
    },
}


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    refuse(config, word_embed_proj_dim=width, layer_norm_elementwise_affine=True)
    biases = flag(config, "enable_bias", True)
    before = flag(config, "do_layer_norm_before", True)
    return ModelConfig(
        vocabulary=number(config, "vocab_size"),
        width=width,
        feedforward=number(config, "ffn_dim"),
        layers=number(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        channels=width // heads,
        context=number(config, "max_position_embeddings", 2048),
        tied=flag(config, "tie_word_embeddings", True),
        attention_bias=biases,
        out_bias=biases,
        feedforward_bias=biases,
        learned_positions=True,
        norm="layer",
        norm_place="before" if before else "after",
        final_norm=before and not flag(config, "_remove_final_layer_norm"),
        activation=choice(config, "activation_function", ACTIVATIONS, "relu"),
        gated=False,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, as transformers 4 and 5 read it."""
    before = config.norm_place == "before"
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "ffn_dim": config.feedforward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "enable_bias": config.attention_bias,
        "layer_norm_elementwise_affine": True,
        "activation_function": theirs(config.activation),
        "tie_word_embeddings": config.tied,
    }
