"""A smaller model cut out of a larger one: some of its layers, and of each the weightiest parts.

The practical form of what Decoding Speculative Decoding (arXiv 2402.01528) does by learned masks:
whole layers and whole heads go, and the shape is the one that is asked for. What is cut has to be
taught; nothing here is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.experimental import multihost_utils

from jspec.config import ModelConfig
from jspec.models.protocol import Params
from jspec.models.transformer import transformer

Kept = Mapping[str, np.ndarray]
# What may be less, or may be chosen; the rest of two configurations is the same.
SIZES = ("width", "feedforward", "heads", "kv_heads", "layers")


def first_layers(count: int, of: int) -> tuple[int, ...]:
    """The first `count` of a model's layers."""
    return tuple(range(min(count, of)))


def spread_layers(count: int, of: int) -> tuple[int, ...]:
    """`count` of a model's layers, evenly apart, the first and the last among them."""
    if count == 1:
        return (0,)
    return tuple(round(n * (of - 1) / (count - 1)) for n in range(min(count, of)))


def prune(
    params: Params, config: ModelConfig, into: ModelConfig, *, layers: Sequence[int]
) -> Params:
    """Parameters of the shape `into` out of those of the shape `config`.

    Channels of the width are kept by the size of the embedding's columns, the same in all layers;
    in each layer, heads by the size of their part of what leaves attention, and neurons of the
    feed-forward by the size of what they read and write. All are kept in their order.

    Args:
      layers: of the larger model, one for each of the smaller one's.

    Raises `ValueError` for a shape that is not smaller, or differs in more than its sizes.
    """
    _check(config, into, layers)
    flat = flatten_dict(params)
    names = flatten_dict(transformer(config).axes())
    width = _largest(_columns(flat["embedding",]), into.width)
    found = {}
    for path, x in flat.items():
        place = _layer(path)
        if place is None:
            found[path] = _cut(x, names[path], path, {"width": width})
    for number, layer in enumerate(layers):
        inside = {path: x for path, x in flat.items() if _layer(path) == layer}
        kept = {"width": width, **_kept(inside, config, into)}
        for path, x in inside.items():
            found[f"layer_{number}", *path[1:]] = _cut(x, names[path], path, kept)
    return unflatten_dict(found)


def _check(config: ModelConfig, into: ModelConfig, layers: Sequence[int]) -> None:
    if len(layers) != into.layers or not set(layers) <= set(range(config.layers)):
        raise ValueError(
            f"layers={tuple(layers)}: give {into.layers} of the layers 0 to {config.layers - 1}"
        )
    for name, value in vars(_windows_kept(config, layers)).items():
        wanted = getattr(into, name)
        if name not in SIZES and wanted != value:
            raise ValueError(
                f"{name}={wanted!r}: a model that is cut out of another has its {name}, {value!r}"
            )
        if name in SIZES and wanted > value:
            raise ValueError(f"{name}={wanted}: the larger model has {value}, so give no more")
    if config.heads * into.kv_heads != into.heads * config.kv_heads:
        raise ValueError(
            f"heads={into.heads}, kv_heads={into.kv_heads}: heads are kept with the keys that they "
            f"share, {config.heads // config.kv_heads} to one, so keep that proportion"
        )


def _windows_kept(config: ModelConfig, layers: Sequence[int]) -> ModelConfig:
    """The larger model's, its local layers by the numbers that they have in the smaller one."""
    local = tuple(n for n, layer in enumerate(layers) if layer in config.local_layers)
    if not local:
        return replace(config, window=None, local_layers=(), local_rope_theta=None)
    return replace(config, local_layers=local)


def _kept(inside: Mapping[tuple[str, ...], Array], c: ModelConfig, into: ModelConfig) -> Kept:
    """Which rows of a layer's matrices stay, by the name of their axis."""
    weights = {path[1:]: x for path, x in inside.items()}
    out = _columns(weights["attention", "out", "weight"])
    groups = _largest(out.reshape(c.kv_heads, -1).sum(axis=1), into.kv_heads)
    neurons = _columns(weights["feedforward", "down", "weight"])
    for name in ("up", "gate"):
        if (matrix := weights.get(("feedforward", name, "weight"))) is not None:
            neurons = neurons * _columns(matrix.T)
    return {
        "heads": _spans(groups, c.heads // c.kv_heads * c.channels),
        "kv_heads": _spans(groups, c.channels),
        "feedforward": _largest(neurons, into.feedforward),
    }


def _cut(x: Array, names: Sequence[str | None], path: tuple[str, ...], kept: Kept) -> Array:
    # Norms live on every device whole, so that their one axis has no name.
    norm = len(path) > 1 and path[-2].endswith("norm")
    over_width = norm and not path[-2].startswith(("query", "key"))
    for axis, name in enumerate(["width"] if over_width else names):
        if name in kept:
            x = jnp.take(x, kept[name], axis=axis)
    return x


def _layer(path: tuple[str, ...]) -> int | None:
    head, _, number = path[0].partition("layer_")
    return int(number) if not head and number else None


def _columns(matrix: Array) -> np.ndarray:
    """The size of each column, on every host of a launch."""
    sizes = jnp.linalg.norm(matrix.astype(jnp.float32), axis=0)
    return np.asarray(multihost_utils.process_allgather(sizes, tiled=True))


def _largest(sizes: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` largest, in order."""
    return np.sort(np.argsort(-sizes, kind="stable")[:count])


def _spans(groups: np.ndarray, length: int) -> np.ndarray:
    """The places of groups that are `length` long."""
    return (groups[:, None] * length + np.arange(length)).reshape(-1)
