"""Drafts that nobody has trained: shapes in words, and all shapes within a budget."""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator

from jspec.config import ModelConfig

# What words may say; channels stay as they are where only heads are given, so that attention may be
# narrower or wider than the model.
FIELDS = ("layers", "width", "heads", "kv_heads", "channels", "feedforward")
# As large as anybody would make one; a model is traced layer by layer.
MOST = dict.fromkeys(FIELDS, 10**7) | {"layers": 1000}
SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
# Of shapes that are searched: layers, and how many times as wide as a head's channels.
LAYERS = 1, 2, 3, 4, 6, 8, 12, 16
WIDEST = 64
# The feed-forward's width, in widths, and how many times as wide as attention the model is.
FEEDFORWARD = 2, 3, 4
ATTENTION = 1, 2


def imagine(text: str, target: ModelConfig) -> ModelConfig:
    """`layers=2,width=256,heads=4,feedforward=512` as a draft for a target: what is not said is as
    in the target, heads and their keys follow the width, and the feed-forward is 3 widths."""
    said: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in FIELDS or not re.fullmatch("[0-9]{1,9}", number) or name in said:
            raise ValueError(
                f"draft={text!r}: {part!r} is not understood: give each of {', '.join(FIELDS)} at "
                "most once, as layers=2,width=256"
            )
        said[name] = int(number)
        if not 1 <= said[name] <= MOST[name]:
            raise ValueError(f"draft={text!r}: {name} must lie in 1..{MOST[name]:,}")
    if "layers" not in said:
        raise ValueError(f"draft={text!r}: say how many layers it has")
    width = said.get("width", target.width)
    channels = said.get("channels", min(target.channels, width))
    heads = said.get("heads", max(width // channels, 1))
    return draft_of(
        target,
        layers=said["layers"],
        width=width,
        heads=heads,
        kv_heads=said.get("kv_heads", heads),
        channels=channels,
        feedforward=said.get("feedforward", 3 * width),
    )


def draft_of(target: ModelConfig, **sizes: int) -> ModelConfig:
    """A model of those sizes with the target's tokens and kind of layer; its embedding is its head
    too, and all layers see everything."""
    return dataclasses.replace(
        target, **sizes, tied=True, window=None, local_layers=(), local_rope_theta=None
    )


def shapes(
    target: ModelConfig,
    fits: Callable[[ModelConfig], bool],
    cuts: Callable[[ModelConfig], bool] = lambda shape: True,
) -> Iterator[ModelConfig]:
    """Draft shapes: for each number of layers, proportion of the feed-forward and share of the
    width that attention has, the widest that `fits`, no wider than the target, of those that a
    mesh `cuts`, or of all where it cuts none."""
    most = min(WIDEST, target.width // target.channels)
    for layers, times, share in itertools.product(LAYERS, FEEDFORWARD, ATTENTION):
        if layers > target.layers:
            continue
        widths = [
            draft_of(
                target,
                layers=layers,
                width=heads * target.channels,
                heads=heads // share,
                kv_heads=heads // share,
                channels=target.channels,
                feedforward=times * heads * target.channels,
            )
            for heads in range(share, most + 1)
        ]
        widths = [one for one in widths if cuts(one)] or widths
        # A wider one is larger and slower, so that one that fits is the last of those that do.
        count = bisect.bisect_left(widths, True, key=lambda one: not fits(one))
        if count:
            yield widths[count - 1]


def describe(config: ModelConfig) -> str:
    """A shape in the words that `imagine` reads."""
    return ",".join(f"{name}={getattr(config, name)}" for name in FIELDS)


def read_count(text: str) -> int:
    """`1500000`, `1.5M` or `0.8B` as a number of parameters."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    if not found or not float(found[1]):
        raise ValueError(f"parameters={text!r}: give a number such as 800M or 1.5B")
    return round(float(found[1]) * SCALES[found[2]])
