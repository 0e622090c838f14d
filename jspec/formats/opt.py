"""OPT: learned positions, layer norms, biases, and a feed-forward network without a gate."""

from typing import Any

from jspec.config import CHOICES, ModelConfig
from jspec.formats.decoder import Family
from jspec.formats.fields import Fields, choice, flag, number, refuse

_LAYER = "model.decoder.layers.{}."
OPT_KEYS = {
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


def _read_opt(config: Fields) -> ModelConfig:
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    refuse(config, word_embed_proj_dim=width, layer_norm_elementwise_affine=True)
    biases = flag(config, "enable_bias", True)
    before = flag(config, "do_layer_norm_before", True)
    return ModelConfig(
        vocab_size=number(config, "vocab_size"),
        hidden_size=width,
        intermediate_size=number(config, "ffn_dim"),
        num_hidden_layers=number(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=number(config, "max_position_embeddings", 2048),
        tie_word_embeddings=flag(config, "tie_word_embeddings", True),
        attention_bias=biases,
        out_bias=biases,
        mlp_bias=biases,
        learned_positions=True,
        norm="layer",
        norm_place="before" if before else "after",
        final_norm=before and not flag(config, "_remove_final_layer_norm"),
        hidden_act=choice(config, "activation_function", CHOICES["hidden_act"], "relu"),
        gated=False,
    )


def _write_opt(config: ModelConfig) -> dict[str, Any]:
    before = config.norm_place == "before"
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "word_embed_proj_dim": config.hidden_size,
        "ffn_dim": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "enable_bias": config.attention_bias,
        "layer_norm_elementwise_affine": True,
        "activation_function": config.hidden_act,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


OPT = Family("opt", OPT_KEYS, _read_opt, _write_opt)
