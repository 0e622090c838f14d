"""Qwen 3 in Hugging Face's terms: Qwen 2 with norms of queries and keys in place of biases."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats import decoder, qwen2
from jspec.formats.fields import Fields, flag, refuse
from jspec.formats.rope import read_rope, write_rope

KEYS = {
    **decoder.KEYS,
    **decoder.INPUT_BIASES,
    **decoder.OUTPUT_BIAS,
    **decoder.HEAD_NORMS,
}
# What transformers assumes where a field is absent.
DEFAULTS = {**qwen2.DEFAULTS, "head_dim": 128}


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    config = {**DEFAULTS, **config}
    refuse(config, mlp_bias=False, use_mrope=False)
    theta, scaling = read_rope(config)
    return ModelConfig(
        **decoder.read_decoder(config),
        **qwen2.read_late_windows(config),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=flag(config, "attention_bias"),
        out_bias=flag(config, "attention_bias"),
        query_key_norm=True,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, as transformers 4 and 5 read it."""
    return {
        **decoder.write_decoder(config, "Qwen3ForCausalLM", "qwen3"),
        **write_rope(config),
        **qwen2.write_late_windows(config),
        "attention_bias": config.attention_bias,
    }
