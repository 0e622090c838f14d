"""The Llama family in Hugging Face's terms: its configuration and its keys, both ways."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats import decoder
from jspec.formats.fields import Fields, flag, refuse
from jspec.formats.rope import read_rope, write_rope

KEYS = {
    **decoder.KEYS,
    **decoder.INPUT_BIASES,
    **decoder.OUTPUT_BIAS,
    "layer_{}.feedforward.gate.bias": "model.layers.{}.mlp.gate_proj.bias",
    "layer_{}.feedforward.up.bias": "model.layers.{}.mlp.up_proj.bias",
    "layer_{}.feedforward.down.bias": "model.layers.{}.mlp.down_proj.bias",
}


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    refuse(config, sliding_window=None)
    theta, scaling = read_rope(config)
    return ModelConfig(
        **decoder.read_decoder(config),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=flag(config, "attention_bias"),
        out_bias=flag(config, "attention_bias"),
        feedforward_bias=flag(config, "mlp_bias"),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, as transformers 4 and 5 read it."""
    return {
        **decoder.write_decoder(config, "LlamaForCausalLM", "llama"),
        **write_rope(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feedforward_bias,
    }
