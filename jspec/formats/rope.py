"""Rotary fields of a `config.json`, in transformers 4's spelling, transformers 5's, or both."""

from typing import Any

from jspec.config import ModelConfig, RopeScaling
from jspec.formats.fields import Fields, number, refuse

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


def read_rope(config: Fields, default: float = 10_000.0) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from either spelling of the fields, or from both if they agree."""
    refuse(config, partial_rotary_factor=1.0)
    spellings = [_group(config, name) for name in ("rope_scaling", "rope_parameters")]
    scalings = {_read_scaling(fields, config) for fields in spellings if fields} or {None}
    thetas = {
        number(fields, "rope_theta", kind=float)
        for fields in (config, *spellings)
        if fields.get("rope_theta") is not None
    } or {default}
    if len(scalings) > 1 or len(thetas) > 1:
        names = ("rope_theta", "rope_scaling", "rope_parameters")
        said = ", ".join(f"{name}={config[name]}" for name in names if config.get(name) is not None)
        raise ValueError(f"{said} disagree: keep one of them")
    return thetas.pop(), scalings.pop()


def _group(config: Fields, name: str) -> Fields:
    """A field that holds fields."""
    fields = config.get(name) or {}
    if not isinstance(fields, dict):
        raise ValueError(f"{name}={fields!r} must be an object, or absent")
    return fields


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Theta and scaling in both spellings."""
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": write_scaling(config.rope_scaling),
        "rope_parameters": rope_parameters(config.rope_theta, config.rope_scaling),
    }


def rope_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Theta and scaling as transformers 5 spells them."""
    return {**(write_scaling(scaling) or {"rope_type": "default"}), "rope_theta": theta}


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Scaling as transformers 4 spells it."""
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


def _read_scaling(fields: Fields, config: Fields) -> RopeScaling | None:
    unknown = sorted(set(fields) - ROPE_FIELDS)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope_type={kind!r} is not read: default, linear and llama3 are")
    if unknown:
        raise ValueError(f"rope field {', '.join(unknown)} is not read")
    refuse(fields, partial_rotary_factor=1.0)
    if kind == "default":
        return None
    factor = number(fields, "factor", kind=float)
    if kind == "linear":
        return RopeScaling(factor)
    low = number(fields, "low_freq_factor", kind=float)
    high = number(fields, "high_freq_factor", kind=float)
    if high <= low:
        raise ValueError(f"high_freq_factor={high} must be above low_freq_factor={low}")
    context = config.get("max_position_embeddings")
    original = number(fields, "original_max_position_embeddings", context)
    return RopeScaling(factor, low, high, original)
