"""What the families that grew out of Llama share: most of their keys, and most of their fields."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats.fields import Fields, choice, flag, number, refuse

# Ours and theirs. Weights are `[out, in]` on both sides, so that nothing is transposed.
KEYS = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "layer_{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layer_{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layer_{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layer_{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layer_{}.attention.out.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layer_{}.feedforward_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layer_{}.feedforward.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layer_{}.feedforward.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "layer_{}.feedforward.down.weight": "model.layers.{}.mlp.down_proj.weight",
}
INPUT_BIASES = {
    "layer_{}.attention.query.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layer_{}.attention.key.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layer_{}.attention.value.bias": "model.layers.{}.self_attn.v_proj.bias",
}
OUTPUT_BIAS = {"layer_{}.attention.out.bias": "model.layers.{}.self_attn.o_proj.bias"}
HEAD_NORMS = {
    "layer_{}.attention.query_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "layer_{}.attention.key_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def read_decoder(config: Fields, *, activation: str = "hidden_act") -> dict[str, Any]:
    """The fields that all of them have; `activation` is their name for it."""
    refuse(config, use_bidirectional_attention=False, dual_chunk_attention_config=None)
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    return {
        "vocabulary": number(config, "vocab_size"),
        "width": width,
        "feedforward": number(config, "intermediate_size"),
        "layers": number(config, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": number(config, "num_key_value_heads", heads),
        "channels": number(config, "head_dim", width // heads),
        "context": number(config, "max_position_embeddings", 2048),
        "activation": choice(config, activation, ACTIVATIONS, "silu"),
        "epsilon": number(config, "rms_norm_eps", 1e-6, kind=float),
        "tied": flag(config, "tie_word_embeddings"),
    }


def write_decoder(
    config: ModelConfig, architecture: str, model_type: str, *, activation: str = "hidden_act"
) -> dict[str, Any]:
    """The same fields as they write them."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feedforward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.channels,
        "max_position_embeddings": config.context,
        activation: theirs(config.activation),
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
    }


def theirs(activation: str) -> str:
    """Their word for an activation."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)
