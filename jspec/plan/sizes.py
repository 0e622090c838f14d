"""What a model weighs: bytes and operations of one pass, from its shapes alone."""

import functools
import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jspec.config import ModelConfig
from jspec.models.heads import Head
from jspec.models.protocol import LinenModel, LinenPart
from jspec.models.transformer import transformer

# Tables of which a pass reads a few rows.
TABLES = ("embedding", "positions")


class Size(NamedTuple):
    """Of a model, or of a head with what it uses of its target.

    Attributes:
      parameters: all of its own; held: bytes of them; read: bytes of weights that a pass reads.
      operations: of a token's matrix products, attention left out.
      row: bytes of the keys and values of one token, of all layers.
      scores: operations of attention for a token and one that it sees, of all layers.
      bytes: of a number.
    """

    parameters: int
    held: int
    read: int
    operations: int
    row: int
    scores: int
    layers: int
    width: int
    bytes: int


def size_of(model: LinenModel, dtype: str) -> Size:
    """Of a whole model whose weights and rows are of `dtype`."""
    return _size(model, dtype, head=model.config.tied)


def size_of_head(head: Head, target: ModelConfig, dtype: str) -> Size:
    """Of a head, whose logits are made by its own matrix or by its target's."""
    found = _size(head, dtype, head=False)
    own = any(path[0] == "head" for path in flatten_dict(_shapes(head)))
    borrowed = 0 if own else target.vocabulary * target.width
    return found._replace(
        read=found.read + borrowed * _bytes(dtype), operations=found.operations + 2 * borrowed
    )


@functools.cache
def parameters_of(config: ModelConfig) -> int:
    """Of the Transformer that `config` describes, all of whose layers are as large."""
    one, two = (
        sum(math.prod(x.shape) for x in jax.tree.leaves(_shapes(transformer(few))))
        for few in (_with_layers(config, 1), _with_layers(config, 2))
    )
    return one + (config.layers - 1) * (two - one)


def _with_layers(config: ModelConfig, count: int) -> ModelConfig:
    return replace(config, layers=count, window=None, local_layers=(), local_rope_theta=None)


def _size(part: LinenPart, dtype: str, *, head: bool) -> Size:
    """`head`: whether the embedding is what makes the logits."""
    c, sizes = part.config, {}
    for path, x in flatten_dict(_shapes(part)).items():
        sizes[path] = math.prod(x.shape)
    tables = TABLES[1:] if head else TABLES
    read = sum(n for path, n in sizes.items() if path[-1] not in tables)
    held, width = sum(sizes.values()), _bytes(dtype)
    return Size(
        parameters=held,
        held=held * width,
        read=read * width,
        operations=2 * read,
        row=2 * c.layers * c.kv_heads * c.channels * width,
        scores=4 * c.layers * c.heads * c.channels,
        layers=c.layers,
        width=c.width,
        bytes=width,
    )


@functools.cache
def _shapes(part: LinenPart) -> dict:
    return jax.eval_shape(part.init, jax.random.key(0))


def _bytes(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
