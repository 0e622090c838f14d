"""Mistral in Hugging Face's terms: Llama without biases, all of whose layers may see a window."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats import decoder
from jspec.formats.fields import Fields, number, refuse
from jspec.formats.rope import read_rope, write_rope
from jspec.formats.windows import FULL, SLIDING, layer_types, read_windows

KEYS = decoder.KEYS
# What transformers assumes where a field is absent.
DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    config = {**DEFAULTS, **config}
    kind = FULL if config["sliding_window"] is None else SLIDING
    everywhere = [kind] * number(config, "num_hidden_layers")
    # Transformers passes over layer_types here, so any other pattern has two meanings.
    refuse(config, attention_bias=False, mlp_bias=False, layer_types=everywhere)
    theta, scaling = read_rope(config)
    return ModelConfig(
        **decoder.read_decoder(config),
        **read_windows(config, everywhere),
        rope_theta=theta,
        rope_scaling=scaling,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, as transformers 4 and 5 read it."""
    everywhere = SLIDING in layer_types(config)
    return {
        **decoder.write_decoder(config, "MistralForCausalLM", "mistral"),
        **write_rope(config),
        "sliding_window": config.window if everywhere else None,
    }
