"""Pruning: a smaller model out of a larger one, of some layers and the largest parts of each.

The practical form of what Decoding Speculative Decoding (arXiv 2402.01528) does by learned masks:
whole layers and whole heads go, and the result has the shape that is asked for. It has to be
trained afterwards; nothing here trains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.experimental import multihost_utils

from jspec.config import ModelConfig
from jspec.models.protocol import Params
from jspec.models.transformer import transformer

Kept = Mapping[str, np.ndarray]
"""Which rows of an axis stay, by the name of the axis."""

# What may be smaller; the two configurations agree in everything else.
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
)


def first_layers(count: int, of: int) -> tuple[int, ...]:
    """The first `count` of a model's layers."""
    return tuple(range(min(count, of)))


def spread_layers(count: int, of: int) -> tuple[int, ...]:
    """`count` of a model's layers, evenly spaced, with the first and the last among them."""
    if count == 1:
        return (0,)
    return tuple(round(n * (of - 1) / (count - 1)) for n in range(min(count, of)))


def prune(
    params: Params, config: ModelConfig, into: ModelConfig, *, layers: Sequence[int]
) -> Params:
    """Parameters of the shape `into` out of those of the shape `config`.

    Channels of the hidden state are kept by the norm of the embedding's columns, the same in all
    layers; in each layer, heads by the norm of their part of the output projection, and neurons of
    the feed-forward by the norms of what they read and write. All keep their order.

    Args:
      layers: of the larger model, one for each of the smaller one's.

    Raises `ValueError` for a shape that is not smaller, or differs in more than its sizes.
    """
    _check(config, into, layers)
    flat: Any = flatten_dict(params)
    names: Any = flatten_dict(transformer(config).axes())
    width = _largest(_column_norms(flat["embedding",]), into.hidden_size)
    found = {}
    for path, x in flat.items():
        if _layer(path) is None:
            found[path] = _take(x, names[path], path, {"hidden_size": width})
    for number, layer in enumerate(layers):
        inside = {path: x for path, x in flat.items() if _layer(path) == layer}
        kept = {"hidden_size": width, **_kept(inside, config, into)}
        for path, x in inside.items():
            found[f"layer_{number}", *path[1:]] = _take(x, names[path], path, kept)
    return unflatten_dict(found)


def _check(config: ModelConfig, into: ModelConfig, layers: Sequence[int]) -> None:
    there = range(config.num_hidden_layers)
    if len(layers) != into.num_hidden_layers or not set(layers) <= set(there):
        raise ValueError(
            f"layers={tuple(layers)}: give {into.num_hidden_layers} of the layers 0 to {there[-1]}"
        )
    for name, value in vars(_with_kept_windows(config, layers)).items():
        wanted = getattr(into, name)
        if name not in SIZES and wanted != value:
            raise ValueError(
                f"{name}={wanted!r}: a pruned model has the {name} of the larger one, {value!r}"
            )
        if name in SIZES and wanted > value:
            raise ValueError(f"{name}={wanted}: the larger model has {value}, so give no more")
    heads, shared = into.num_attention_heads, into.num_key_value_heads
    if config.num_attention_heads * shared != heads * config.num_key_value_heads:
        raise ValueError(
            f"num_attention_heads={heads}, num_key_value_heads={shared}: heads are kept with the "
            "keys that they share, "
            f"{config.num_attention_heads // config.num_key_value_heads} to one, so keep that "
            "proportion"
        )


def _with_kept_windows(config: ModelConfig, layers: Sequence[int]) -> ModelConfig:
    """The larger model's configuration, its local layers numbered as in the smaller model."""
    local = tuple(n for n, layer in enumerate(layers) if layer in config.sliding_layers)
    if not local:
        return replace(config, sliding_window=None, sliding_layers=(), sliding_rope_theta=None)
    return replace(config, sliding_layers=local)


def _kept(inside: Mapping[tuple[str, ...], Array], c: ModelConfig, into: ModelConfig) -> Kept:
    """Which rows of a layer's matrices stay."""
    weights = {path[1:]: x for path, x in inside.items()}
    out = _column_norms(weights["attention", "out", "weight"])
    groups = _largest(out.reshape(c.num_key_value_heads, -1).sum(axis=1), into.num_key_value_heads)
    in_group = c.num_attention_heads // c.num_key_value_heads
    neurons = _column_norms(weights["feedforward", "down", "weight"])
    for name in ("up", "gate"):
        if (matrix := weights.get(("feedforward", name, "weight"))) is not None:
            neurons = neurons * _column_norms(matrix.T)
    return {
        "num_attention_heads": _spans(groups, in_group * c.head_dim),
        "num_key_value_heads": _spans(groups, c.head_dim),
        "intermediate_size": _largest(neurons, into.intermediate_size),
    }


def _take(x: Array, names: Sequence[str | None], path: tuple[str, ...], kept: Kept) -> Array:
    # Norms are replicated, so their one axis has no name.
    owner = path[-2] if len(path) > 1 else ""
    over_width = owner.endswith("norm") and not owner.startswith(("query", "key"))
    for axis, name in enumerate(["hidden_size"] if over_width else names):
        if name is not None and name in kept:
            x = jnp.take(x, kept[name], axis=axis)
    return x


def _layer(path: tuple[str, ...]) -> int | None:
    head, _, number = path[0].partition("layer_")
    return int(number) if not head and number else None


def _column_norms(matrix: Array) -> np.ndarray:
    """The norm of each column, on every host of a launch."""
    norms = jnp.linalg.norm(matrix.astype(jnp.float32), axis=0)
    return np.asarray(multihost_utils.process_allgather(norms, tiled=True))


def _largest(sizes: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` largest, in order."""
    return np.sort(np.argsort(-sizes, kind="stable")[:count])


def _spans(groups: np.ndarray, length: int) -> np.ndarray:
    """The places inside of groups that are `length` long."""
    return (groups[:, None] * length + np.arange(length)).reshape(-1)
