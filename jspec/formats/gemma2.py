"""Gemma 2 in Hugging Face's terms: norms around sublayers, soft caps, every other layer local."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats import decoder
from jspec.formats.fields import Fields, flag, number, optional, refuse
from jspec.formats.rope import read_rope, write_rope
from jspec.formats.windows import FULL, SLIDING, layer_types, read_windows

KEYS = {
    **decoder.KEYS,
    **decoder.INPUT_BIASES,
    **decoder.OUTPUT_BIAS,
    "layer_{}.attention_out_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layer_{}.feedforward_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layer_{}.feedforward_out_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}
# What transformers assumes where a field is absent.
DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    config = {**DEFAULTS, **config}
    alternating = [FULL if i % 2 else SLIDING for i in range(number(config, "num_hidden_layers"))]
    theta, scaling = read_rope(config)
    return ModelConfig(
        **read_gemma(config),
        **read_windows(config, alternating),
        rope_theta=theta,
        rope_scaling=scaling,
        score_cap=optional(config, "attn_logit_softcapping", kind=float),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, as transformers 4 and 5 read it."""
    return {
        **write_gemma(config, "Gemma2ForCausalLM", "gemma2"),
        **write_rope(config),
        "attn_logit_softcapping": config.score_cap,
    }


def read_gemma(config: Fields) -> dict[str, Any]:
    """What Gemma 2 and 3 share, without rotary fields and windows."""
    # Transformers passes over hidden_act here, so another value there has two meanings.
    refuse(config, mlp_bias=False, hidden_act=config["hidden_activation"])
    return {
        **decoder.read_decoder(config, activation="hidden_activation"),
        "attention_bias": flag(config, "attention_bias"),
        "out_bias": flag(config, "attention_bias"),
        "norm": "rms_plus_one",
        "norm_place": "around",
        "query_scalar": number(config, "query_pre_attn_scalar"),
        "logit_cap": optional(config, "final_logit_softcapping", kind=float),
        "scale_embedding": True,
    }


def write_gemma(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """The same fields as they write them, with the windows."""
    return {
        **decoder.write_decoder(config, architecture, model_type, activation="hidden_activation"),
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": config.query_scalar or config.channels,
        "final_logit_softcapping": config.logit_cap,
        # Transformers makes a mask of this size whether or not a layer is local.
        "sliding_window": config.window or DEFAULTS["sliding_window"],
        "layer_types": layer_types(config),
    }
