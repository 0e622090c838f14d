"""Which layers see a window, in the fields of a `config.json`."""

from collections.abc import Sequence
from typing import Any

from jspec.config import ModelConfig
from jspec.formats.fields import Fields, number

FULL, SLIDING = "full_attention", "sliding_attention"


def read_windows(config: Fields, default: Sequence[str]) -> dict[str, Any]:
    """`window` and `local_layers`, from `layer_types`, or from the default where there are none."""
    layers = number(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    kinds = list(default) if kinds is None else kinds
    known = isinstance(kinds, list) and all(kind in (FULL, SLIDING) for kind in kinds)
    if not known or len(kinds) != layers:
        raise ValueError(f"layer_types={kinds!r} is not read: {layers} times {FULL} or {SLIDING}")
    local = tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
    if not local:
        return {"window": None, "local_layers": ()}
    if config.get("sliding_window") is None:
        raise ValueError(f"layer_types has {SLIDING}, but sliding_window is off: give its size")
    return {"window": number(config, "sliding_window"), "local_layers": local}


def layer_types(config: ModelConfig) -> list[str]:
    """Each layer's kind in their words."""
    return [SLIDING if i in config.local_layers else FULL for i in range(config.layers)]
