"""The Llama family in Hugging Face's terms: its configuration and its keys, both ways."""

import re
from collections.abc import Mapping
from typing import Any

from jspec.config import ModelConfig, RopeScaling

# Ours and theirs. Weights are `[out, in]` on both sides, so that nothing is transposed.
KEYS = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "layer_{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layer_{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layer_{}.attention.query.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layer_{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layer_{}.attention.key.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layer_{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layer_{}.attention.value.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layer_{}.attention.out.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layer_{}.attention.out.bias": "model.layers.{}.self_attn.o_proj.bias",
    "layer_{}.feedforward_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layer_{}.feedforward.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layer_{}.feedforward.gate.bias": "model.layers.{}.mlp.gate_proj.bias",
    "layer_{}.feedforward.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "layer_{}.feedforward.up.bias": "model.layers.{}.mlp.up_proj.bias",
    "layer_{}.feedforward.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "layer_{}.feedforward.down.bias": "model.layers.{}.mlp.down_proj.bias",
}
ROPE_FIELDS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}


def key(path: tuple[str, ...]) -> str:
    """A parameter's key in the file, from its path in our tree."""
    name = ".".join(path)
    layer = re.match(r"layer_(\d+)\.", name)
    if layer is None:
        return KEYS[name]
    return KEYS["layer_{}." + name[layer.end() :]].format(layer[1])


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act={config['hidden_act']!r} is not read: silu is")
    if config.get("quantization_config"):
        raise ValueError("quantization_config is set: quantised weights are not read")
    width, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    theta, scaling = _rope(config)
    return ModelConfig(
        vocabulary=_number(config, "vocab_size"),
        width=width,
        feedforward=_number(config, "intermediate_size"),
        layers=_number(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads", heads),
        channels=_number(config, "head_dim", width // max(heads, 1)),
        context=_number(config, "max_position_embeddings", 2048),
        rope_theta=theta,
        rope_scaling=scaling,
        epsilon=_number(config, "rms_norm_eps", 1e-6, kind=float),
        tied=_flag(config, "tie_word_embeddings"),
        attention_bias=_flag(config, "attention_bias"),
        feedforward_bias=_flag(config, "mlp_bias"),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, with both spellings of the rotary fields."""
    scaling = _write_scaling(config.rope_scaling)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feedforward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.channels,
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feedforward_bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            **(scaling or {"rope_type": "default"}),
            "rope_theta": config.rope_theta,
        },
    }


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from transformers 4's fields, transformers 5's, or both if they agree."""
    spellings = [config.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    scalings = {_read_scaling(fields, config) for fields in spellings if fields} or {None}
    thetas = {
        _number(fields, "rope_theta", kind=float)
        for fields in (config, *spellings)
        if fields.get("rope_theta") is not None
    } or {10_000.0}
    if len(scalings) > 1 or len(thetas) > 1:
        raise ValueError("rope_theta, rope_scaling and rope_parameters disagree: keep one of them")
    return thetas.pop(), scalings.pop()


def _read_scaling(fields: Mapping[str, Any], config: Mapping[str, Any]) -> RopeScaling | None:
    unknown = sorted(set(fields) - ROPE_FIELDS)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope_type={kind!r} is not read: default, linear and llama3 are")
    if unknown:
        raise ValueError(f"rope field {', '.join(unknown)} is not read")
    if fields.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor={fields['partial_rotary_factor']!r} is not read: 1.0 is"
        )
    if kind == "default":
        return None
    factor = _number(fields, "factor", kind=float)
    if kind == "linear":
        return RopeScaling(factor)
    low = _number(fields, "low_freq_factor", kind=float)
    high = _number(fields, "high_freq_factor", kind=float)
    if high <= low:
        raise ValueError(f"high_freq_factor={high} must be above low_freq_factor={low}")
    context = config.get("max_position_embeddings")
    original = _number(fields, "original_max_position_embeddings", context)
    return RopeScaling(factor, low, high, original)


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.linear:
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency,
        "high_freq_factor": scaling.high_frequency,
        "original_max_position_embeddings": scaling.original_context,
    }


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be true or false")
    return bool(value)


def _number(
    fields: Mapping[str, Any], name: str, default: float | None = None, kind: type = int
) -> Any:
    """A positive number: the field, or the default where it is absent or null."""
    value = fields.get(name)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{name} is missing: a Llama configuration has it")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))) or not value > 0:
        raise ValueError(f"{name}={value!r} must be a positive {kind.__name__}")
    return kind(value)
