"""Gemma 3's language model in Hugging Face's terms: Gemma 2 with norms in place of score caps."""

from typing import Any

from jspec.config import ModelConfig
from jspec.formats import decoder, gemma2
from jspec.formats.fields import Fields, number, refuse
from jspec.formats.rope import read_rope, rope_parameters, write_scaling
from jspec.formats.windows import FULL, SLIDING, read_windows

KEYS = {**gemma2.KEYS, **decoder.HEAD_NORMS}
# What transformers assumes where a field is absent.
DEFAULTS = {
    **gemma2.DEFAULTS,
    "max_position_embeddings": 131_072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "sliding_window_pattern": 6,
}
THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; what we cannot compute is refused by name."""
    config = {**DEFAULTS, **config}
    # Transformers has the field and does not use it.
    refuse(config, attn_logit_softcapping=None)
    every = number(config, "sliding_window_pattern")
    layers = range(1, 1 + number(config, "num_hidden_layers"))
    windows = read_windows(config, [SLIDING if i % every else FULL for i in layers])
    return ModelConfig(
        **gemma2.read_gemma(config),
        **windows,
        **_read_ropes(config, bool(windows["local_layers"])),
        query_key_norm=True,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of a `config.json`, as transformers 4 and 5 read it."""
    local = config.local_rope_theta or config.rope_theta
    return {
        **gemma2.write_gemma(config, "Gemma3ForCausalLM", "gemma3_text"),
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": local,
        "rope_scaling": write_scaling(config.rope_scaling),
        "rope_parameters": {
            FULL: rope_parameters(config.rope_theta, config.rope_scaling),
            SLIDING: rope_parameters(local, None),
        },
    }


def _read_ropes(config: Fields, has_local: bool) -> dict[str, Any]:
    """The rotary angles of full layers, and of local ones where they differ."""
    nested = config.get("rope_parameters") or {}
    if not isinstance(nested, dict) or set(nested) - {FULL, SLIDING}:
        raise ValueError(f"rope_parameters={nested!r} is not read: {FULL} and {SLIDING} in it are")
    theta, scaling = read_rope({**config, "rope_parameters": nested.get(FULL)}, THETA)
    local = {"rope_theta": config.get("rope_local_base_freq")}
    local_theta, local_scaling = read_rope(
        {**local, "rope_parameters": nested.get(SLIDING)}, LOCAL_THETA
    )
    if local_scaling is not None:
        raise ValueError(
            f"rope_parameters.{SLIDING}={nested[SLIDING]!r} is not read: rope_type='default' is"
        )
    same = local_theta == theta and scaling is None
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": local_theta if has_local and not same else None,
    }
