"""Qwen 2 and 2.5 in Hugging Face's terms: Llama with biases where attention begins."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats import decoder
from jspec.formats.fields import Fields, count, flag, number, refuse
from jspec.formats.rope import read_rope, write_rope
from jspec.formats.windows import FULL, SLIDING, layer_types, read_windows

KEYS = {**decoder.KEYS, **decoder.INPUT_BIASES}
# What transformers assumes where a field is absent.
DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    config = {**DEFAULTS, **config}
    refuse(config, mlp_bias=False, use_mrope=False)
    theta, scaling = read_rope(config)
    return ModelConfig(
        **decoder.read_decoder(config),
        **read_late_windows(config),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=True,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, as transformers 4 and 5 read it."""
    return {
        **decoder.write_decoder(config, "Qwen2ForCausalLM", "qwen2"),
        **write_rope(config),
        **write_late_windows(config),
    }


def read_late_windows(config: Fields) -> dict[str, Any]:
    """`window` and `local_layers`: without `layer_types`, those from `max_window_layers` on."""
    layers = number(config, "num_hidden_layers")
    if not flag(config, "use_sliding_window") or config.get("sliding_window") is None:
        return read_windows({**config, "sliding_window": None}, [FULL] * layers)
    full = count(config, "max_window_layers")
    return read_windows(config, [FULL if i < full else SLIDING for i in range(layers)])


def write_late_windows(config: ModelConfig) -> dict[str, Any]:
    """The same fields as they write them."""
    return {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": min(config.local_layers, default=config.layers),
        "layer_types": layer_types(config),
    }
