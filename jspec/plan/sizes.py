"""What a model weighs, from its shapes alone, and whether a launch fits a device's memory."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jspec.config import ModelConfig
from jspec.models.heads import Head
from jspec.models.protocol import LinenPart
from jspec.models.transformer import TransformerModel, transformer
from jspec.parallel.memory import GIGABYTE

# Tables of which a pass reads a few rows.
TABLES = ("embedding", "positions")
MORE = "devices with more memory"


class Size(NamedTuple):
    """Of a model, or of a head with what it uses of its target.

    Attributes:
      parameters: all of its own; stored: bytes of them; read: bytes of weights that a pass reads.
      operations: of a token's matrix products, without attention.
      cache_row: bytes of the keys and values of one token, of all layers.
      attention: operations of attention for a token and one that it sees, of all layers.
      bytes: of a number.
    """

    parameters: int
    stored: int
    read: int
    operations: int
    cache_row: int
    attention: int
    layers: int
    width: int
    bytes: int


def size_of(model: TransformerModel, dtype: str) -> Size:
    """Of a whole model whose weights and caches are of `dtype`."""
    return _size(model, dtype, head=model.config.tie_word_embeddings)


def size_of_head(head: Head, target: ModelConfig, dtype: str) -> Size:
    """Of a head, whose logits are made by its own matrix or by its target's."""
    found = _size(head, dtype, head=False)
    own = any(path[0] == "head" for path in flatten_dict(_shapes(head)))
    borrowed = 0 if own else target.vocab_size * target.hidden_size
    return found._replace(
        read=found.read + borrowed * _bytes(dtype), operations=found.operations + 2 * borrowed
    )


def size_of_draft(part: TransformerModel | Head, target: ModelConfig, dtype: str) -> Size:
    """Of a draft of either kind."""
    return size_of_head(part, target, dtype) if isinstance(part, Head) else size_of(part, dtype)


@functools.cache
def parameters_of(config: ModelConfig) -> int:
    """Of the transformer that `config` describes, all of whose layers are as large."""
    one, two = (
        sum(math.prod(x.shape) for x in jax.tree.leaves(_shapes(transformer(few))))
        for few in (_with_layers(config, 1), _with_layers(config, 2))
    )
    return one + (config.num_hidden_layers - 1) * (two - one)


@dataclass(frozen=True)
class MemoryFit:
    """Whether a launch fits the memory of a device.

    >>> MemoryFit(500, 300, "an example", weights=100, batch=40, bytes=2).fits
    False

    Attributes:
      needed: bytes that a device must have; available: those it has, None where that is unknown.
      weights: those of `needed` that do not depend on the `batch`.
      bytes: of a number.
      devices: how many share the launch; None where there are no more.
      replicated: bytes of `needed` that every device has whole, however many there are.
      most: how many can share it at most; None for any number.
    """

    needed: int
    available: int | None
    source: str
    weights: int
    batch: int
    bytes: int
    devices: int | None = None
    replicated: int = 0
    most: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the device has enough, or it is unknown what it has."""
        return self.available is None or self.needed <= self.available

    def refusal(self) -> str:
        """By how much it does not fit, and what would."""
        over = self.needed - (self.available or 0)
        return (
            f"needs {self.needed / GIGABYTE:.2f} GB of each device, {over / GIGABYTE:.2f} GB "
            f"({over:,} bytes) more than there are: take {' or '.join(self._remedies()) or MORE}"
        )

    def _remedies(self) -> Iterator[str]:
        rows, available = self.needed - self.weights, self.available or 0
        fitting = int(self.batch * (available - self.weights) / rows) if rows else 0
        if fitting >= 1:
            yield f"a batch of {fitting}"
        if self.bytes > 2 and self.needed * 2 <= available * self.bytes:
            yield "bfloat16"
        if self.devices is None or not available:
            yield "other hardware, such as h100:2 or the TPU slice v5e:2x4"
        elif self.replicated < available:
            shared = self.devices * (self.needed - self.replicated)
            more = 2 ** math.ceil(math.log2(shared / (available - self.replicated)))
            if self.most is None or more <= self.most:
                yield f"{more} such devices"


def _with_layers(config: ModelConfig, count: int) -> ModelConfig:
    return replace(
        config,
        num_hidden_layers=count,
        sliding_window=None,
        sliding_layers=(),
        sliding_rope_theta=None,
    )


def _size(part: LinenPart, dtype: str, *, head: bool) -> Size:
    """`head`: whether the embedding makes the logits."""
    c, sizes = part.config, {}
    for path, x in flatten_dict(_shapes(part)).items():
        sizes[path] = math.prod(x.shape)
    tables = TABLES[1:] if head else TABLES
    read = sum(n for path, n in sizes.items() if path[-1] not in tables)
    parameters, width = sum(sizes.values()), _bytes(dtype)
    return Size(
        parameters=parameters,
        stored=parameters * width,
        read=read * width,
        operations=2 * read,
        cache_row=2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * width,
        attention=4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim,
        layers=c.num_hidden_layers,
        width=c.hidden_size,
        bytes=width,
    )


@functools.cache
def _shapes(part: LinenPart) -> dict:
    return jax.eval_shape(part.init, jax.random.key(0))


def _bytes(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
