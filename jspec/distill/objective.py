"""What a step lowers, over the very model code that decodes: nats of a text, or a teacher's law."""

from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jspec.cache import empty_block
from jspec.distill.losses import Loss, cross_entropy, total_variation
from jspec.models.protocol import Model, Params

Measures = dict[str, Array]


class Objective(Protocol):
    """A loss of parameters on a batch."""

    def __call__(self, params: Params, frozen: Params, tokens: Array) -> tuple[Array, Measures]:
        """The loss on `tokens` `[B, T + 1]`, and what else is worth knowing of them.

        Args:
          frozen: parameters that are read and not trained.
        """


def language_model(
    params: Params, frozen: Params, tokens: Array, *, model: Model, chunk: int = 0
) -> tuple[Array, Measures]:
    """Mean negative log-likelihood of each token given those before it.

    Args:
      chunk: tokens to read at a time, a divisor of T, or 0 for all. Attention never computes what
        lies beyond a chunk, which on CPU makes a step of 512 tokens a seventh faster.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    total, pieces = jnp.float32(0), 0
    for piece, hidden in read(params, inputs, model=model, chunk=chunk):
        logits = model.logits(params, hidden)
        total += cross_entropy(logits, targets[:, piece], jnp.ones(hidden.shape[:2]))
        pieces += 1
    return total / pieces, {}


def distillation(
    params: Params,
    frozen: Params,
    tokens: Array,
    *,
    model: Model,
    teacher: Model,
    loss: Loss,
    temperature: float = 1.0,
    chunk: int = 0,
) -> tuple[Array, Measures]:
    """The mean loss of the student's law of the next token against the teacher's.

    Both read the text in chunks, and their logits are made chunk by chunk, and made again for the
    gradient: those of a whole batch never exist at once.

    Args:
      frozen: the teacher's parameters.
      temperature: both laws' in the loss.

    Measures `acceptance`, the probability that token-level rejection keeps the student's draw.
    """
    inputs = tokens[:, :-1]

    @jax.checkpoint
    def compare(params: Params, ours: Array, theirs: Array) -> Array:
        student = model.logits(params, ours) / temperature
        target = teacher.logits(frozen, theirs)[..., : student.shape[-1]] / temperature
        refused = jax.lax.stop_gradient(total_variation(target, student))
        return jnp.stack([loss(target, student).mean(), 1 - refused.mean()])

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return total + compare(params, *pair), None

    pairs = tuple(
        jnp.stack([hidden for _, hidden in read(weights, inputs, model=reader, chunk=chunk)])
        for weights, reader in ((params, model), (frozen, teacher))
    )
    total, _ = jax.lax.scan(add, jnp.zeros(2), pairs)
    value, acceptance = total / len(pairs[0])
    return value, {"acceptance": acceptance}


def read(
    params: Params, tokens: Array, *, model: Model, chunk: int = 0
) -> Iterator[tuple[slice, Array]]:
    """One causal pass over `[B, T]`, in chunks: the places of each and its hidden states."""
    batch, length = tokens.shape
    chunk = chunk or length
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    causal = jnp.tril(jnp.ones((length, length), bool))
    block = empty_block(model.config, batch, length, jax.tree.leaves(params)[0].dtype)
    for first in range(0, length, chunk):
        piece = slice(first, first + chunk)
        output = model.forward(
            params,
            tokens[:, piece],
            positions[:, piece],
            causal[piece, : piece.stop],
            block=block,
            start=first,
        )
        block = output.block
        yield piece, output.hidden
