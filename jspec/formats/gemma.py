"""Gemma 2, with soft caps, and Gemma 3, with norms of queries and keys; their language models."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats.decoder import (
    FULL,
    INPUT_BIASES,
    KEYS,
    OUTPUT_BIAS,
    QK_NORMS,
    SLIDING,
    Family,
    layer_types,
    read_decoder,
    read_rope,
    read_windows,
    rope_parameters,
    write_decoder,
    write_rope,
    write_scaling,
)
from jspec.formats.fields import Fields, flag, number, optional, refuse

NORM_KEYS = {
    "layer_{}.attention_out_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layer_{}.feedforward_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layer_{}.feedforward_out_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}
GEMMA_KEYS = {**KEYS, **INPUT_BIASES, **OUTPUT_BIAS, **NORM_KEYS}
# What transformers assumes where a field is absent.
GEMMA2_DEFAULTS = {
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
GEMMA3_DEFAULTS = {
    **GEMMA2_DEFAULTS,
    "max_position_embeddings": 131_072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "sliding_window_pattern": 6,
}
THETA, SLIDING_THETA = 1_000_000.0, 10_000.0


def _read_gemma2(config: Fields) -> ModelConfig:
    config = {**GEMMA2_DEFAULTS, **config}
    layers = range(number(config, "num_hidden_layers"))
    return ModelConfig(
        **_read_shared(config),
        **read_windows(config, [FULL if i % 2 else SLIDING for i in layers]),
        **read_rope(config),
        attn_logit_softcapping=optional(config, "attn_logit_softcapping", kind=float),
    )


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return {
        **_write_shared(config, "Gemma2ForCausalLM", "gemma2"),
        **write_rope(config),
        "attn_logit_softcapping": config.attn_logit_softcapping,
    }


def _read_gemma3(config: Fields) -> ModelConfig:
    config = {**GEMMA3_DEFAULTS, **config}
    # Transformers has the field and does not use it.
    refuse(config, attn_logit_softcapping=None)
    every = number(config, "sliding_window_pattern")
    layers = range(1, 1 + number(config, "num_hidden_layers"))
    windows = read_windows(config, [SLIDING if i % every else FULL for i in layers])
    return ModelConfig(
        **_read_shared(config),
        **windows,
        **_read_two_ropes(config, bool(windows["sliding_layers"])),
        use_qk_norm=True,
    )


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    sliding = config.sliding_rope_theta or config.rope_theta
    return {
        **_write_shared(config, "Gemma3ForCausalLM", "gemma3_text"),
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": sliding,
        "rope_scaling": write_scaling(config.rope_scaling),
        "rope_parameters": {
            FULL: rope_parameters(config.rope_theta, config.rope_scaling),
            SLIDING: rope_parameters(sliding, None),
        },
    }


def _read_shared(config: Fields) -> dict[str, Any]:
    """What both have in common, without rotary fields and windows."""
    # Transformers ignores hidden_act here, so another value there has two meanings.
    refuse(config, mlp_bias=False, hidden_act=config["hidden_activation"])
    return {
        **read_decoder(config, activation="hidden_activation"),
        "attention_bias": flag(config, "attention_bias"),
        "out_bias": flag(config, "attention_bias"),
        "norm": "rms_plus_one",
        "norm_place": "around",
        "query_pre_attn_scalar": number(config, "query_pre_attn_scalar"),
        "final_logit_softcapping": optional(config, "final_logit_softcapping", kind=float),
        "scale_embedding": True,
    }


def _write_shared(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """The same fields as a `config.json` holds them, with the windows."""
    return {
        **write_decoder(config, architecture, model_type, activation="hidden_activation"),
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": config.query_pre_attn_scalar or config.head_dim,
        "final_logit_softcapping": config.final_logit_softcapping,
        # Transformers makes a mask of this size whether or not a layer slides.
        "sliding_window": config.sliding_window or GEMMA2_DEFAULTS["sliding_window"],
        "layer_types": layer_types(config),
    }


def _read_two_ropes(config: Fields, has_sliding: bool) -> dict[str, Any]:
    """The rotary angles of full layers, and those of sliding layers where they differ."""
    nested = config.get("rope_parameters") or {}
    if not isinstance(nested, dict) or set(nested) - {FULL, SLIDING}:
        raise ValueError(f"rope_parameters={nested!r} is not read: {FULL} and {SLIDING} in it are")
    full = read_rope({**config, "rope_parameters": nested.get(FULL)}, THETA)
    theta = {"rope_theta": config.get("rope_local_base_freq")}
    sliding = read_rope({**theta, "rope_parameters": nested.get(SLIDING)}, SLIDING_THETA)
    if sliding["rope_scaling"] is not None:
        raise ValueError(
            f"rope_parameters.{SLIDING}={nested[SLIDING]!r} is not read: rope_type='default' is"
        )
    same = sliding == full
    return {
        **full,
        "sliding_rope_theta": sliding["rope_theta"] if has_sliding and not same else None,
    }


GEMMA2 = Family("gemma2", GEMMA_KEYS, _read_gemma2, _write_gemma2)
GEMMA3 = Family("gemma3_text", {**GEMMA_KEYS, **QK_NORMS}, _read_gemma3, _write_gemma3)
