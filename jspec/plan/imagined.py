"""Drafts that nobody has trained: shapes in words, and all shapes within a budget."""

import dataclasses
import re
from collections.abc import Iterator

from jspec.config import ModelConfig
from jspec.plan.sizes import parameters_of

# What words may say; channels stay as they are where only heads are given, so that attention may be
# narrower or wider than the model.
FIELDS = ("layers", "width", "heads", "kv_heads", "channels", "feedforward")
SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
# Of shapes that are searched: layers, and how many times as wide as a head's channels.
LAYERS = 1, 2, 3, 4, 6, 8, 12, 16
WIDEST = 64
# The feed-forward's width, in widths.
FEEDFORWARD = 2, 3, 4


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


def shapes(target: ModelConfig, *, parameters: int) -> Iterator[ModelConfig]:
    """Draft shapes of at most, and of no less than half of, that many parameters: for each number
    of layers and proportion of the feed-forward the widest, its attention as wide as the model."""
    for layers in LAYERS:
        if layers > target.layers:
            return
        for times in FEEDFORWARD:
            widest = None
            for heads in range(1, WIDEST + 1):
                width = heads * target.channels
                one = draft_of(
                    target,
                    layers=layers,
                    width=width,
                    heads=heads,
                    kv_heads=heads,
                    channels=target.channels,
                    feedforward=times * width,
                )
                if width > target.width or parameters_of(one) > parameters:
                    break
                widest = one
            if widest is not None and 2 * parameters_of(widest) >= parameters:
                yield widest


def describe(config: ModelConfig) -> str:
    """A shape in the words that `imagine` reads."""
    return ",".join(f"{name}={getattr(config, name)}" for name in FIELDS)


def read_count(text: str) -> int:
    """`1500000`, `1.5M` or `0.8B` as a number of parameters."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    if not found or not float(found[1]):
        raise ValueError(f"parameters={text!r}: give a number such as 800M or 1.5B")
    return round(float(found[1]) * SCALES[found[2]])
