"""Llama and the families that differ from it in little: Mistral, Qwen 2 and 2.5, Qwen 3."""

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
    write_decoder,
    write_rope,
)
from jspec.formats.fields import Fields, count, flag, number, refuse


def _read_llama(config: Fields) -> ModelConfig:
    refuse(config, sliding_window=None)
    return ModelConfig(
        **read_decoder(config),
        **read_rope(config),
        attention_bias=flag(config, "attention_bias"),
        out_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
    )


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_decoder(config, "LlamaForCausalLM", "llama"),
        **write_rope(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


MLP_BIASES = {
    "layer_{}.feedforward.gate.bias": "model.layers.{}.mlp.gate_proj.bias",
    "layer_{}.feedforward.up.bias": "model.layers.{}.mlp.up_proj.bias",
    "layer_{}.feedforward.down.bias": "model.layers.{}.mlp.down_proj.bias",
}
LLAMA = Family(
    "llama", {**KEYS, **INPUT_BIASES, **OUTPUT_BIAS, **MLP_BIASES}, _read_llama, _write_llama
)

# Mistral: no biases; all layers may see a window.
# What transformers assumes where a field is absent, here and below.
MISTRAL_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def _read_mistral(config: Fields) -> ModelConfig:
    config = {**MISTRAL_DEFAULTS, **config}
    kind = FULL if config["sliding_window"] is None else SLIDING
    everywhere = [kind] * number(config, "num_hidden_layers")
    # Transformers ignores layer_types here, so any other pattern has two meanings.
    refuse(config, attention_bias=False, mlp_bias=False, layer_types=everywhere)
    return ModelConfig(
        **read_decoder(config), **read_windows(config, everywhere), **read_rope(config)
    )


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    everywhere = SLIDING in layer_types(config)
    return {
        **write_decoder(config, "MistralForCausalLM", "mistral"),
        **write_rope(config),
        "sliding_window": config.sliding_window if everywhere else None,
    }


MISTRAL = Family("mistral", KEYS, _read_mistral, _write_mistral)

# Qwen 2 and 2.5: biases of queries, keys and values; the upper layers may see a window.
QWEN2_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _read_qwen2(config: Fields) -> ModelConfig:
    config = {**QWEN2_DEFAULTS, **config}
    refuse(config, mlp_bias=False, use_mrope=False)
    return ModelConfig(
        **read_decoder(config),
        **_read_upper_windows(config),
        **read_rope(config),
        attention_bias=True,
    )


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_decoder(config, "Qwen2ForCausalLM", "qwen2"),
        **write_rope(config),
        **_write_upper_windows(config),
    }


def _read_upper_windows(config: Fields) -> dict[str, Any]:
    """`read_windows`; without `layer_types`, layers from `max_window_layers` on see a window."""
    layers = number(config, "num_hidden_layers")
    if not flag(config, "use_sliding_window") or config.get("sliding_window") is None:
        return read_windows({**config, "sliding_window": None}, [FULL] * layers)
    full = count(config, "max_window_layers")
    return read_windows(config, [FULL if i < full else SLIDING for i in range(layers)])


def _write_upper_windows(config: ModelConfig) -> dict[str, Any]:
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": min(config.sliding_layers, default=config.num_hidden_layers),
        "layer_types": layer_types(config),
    }


QWEN2 = Family("qwen2", {**KEYS, **INPUT_BIASES}, _read_qwen2, _write_qwen2)

# Qwen 3: norms of queries and keys; biases of attention only where a field says so.
QWEN3_DEFAULTS = {**QWEN2_DEFAULTS, "head_dim": 128}


def _read_qwen3(config: Fields) -> ModelConfig:
    config = {**QWEN3_DEFAULTS, **config}
    refuse(config, mlp_bias=False, use_mrope=False)
    return ModelConfig(
        **read_decoder(config),
        **_read_upper_windows(config),
        **read_rope(config),
        attention_bias=flag(config, "attention_bias"),
        out_bias=flag(config, "attention_bias"),
        use_qk_norm=True,
    )


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_decoder(config, "Qwen3ForCausalLM", "qwen3"),
        **write_rope(config),
        **_write_upper_windows(config),
        "attention_bias": config.attention_bias,
    }


QWEN3 = Family(
    "qwen3", {**KEYS, **INPUT_BIASES, **OUTPUT_BIAS, **QK_NORMS}, _read_qwen3, _write_qwen3
)
