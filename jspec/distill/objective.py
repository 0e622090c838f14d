"""What a step lowers, over the very model code that decodes: nats of a text, or a teacher's law."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jspec.core.cache import empty_block
from jspec.distill.batch import Batch
from jspec.distill.losses import Loss, total_variation
from jspec.models.protocol import Model, Output, Params, row_dtype

Measures = dict[str, Array]

PIECE = 128  # tokens of a row whose logits exist together, if its length allows
IMPOSSIBLE = -1e9  # a logit whose probability is 0 in float32, and whose product with 0 is 0


class Objective(Protocol):
    """A loss of parameters on a batch."""

    def __call__(self, params: Params, frozen: Params, batch: Batch) -> tuple[Array, Measures]:
        """The loss on `batch`, and what else is worth knowing of it.

        Args:
          frozen: parameters that are read and not trained.
        """


def language_model(
    params: Params, frozen: Params, batch: Batch, *, model: Model, chunk: int = 0
) -> tuple[Array, Measures]:
    """Mean negative log-likelihood of each token given those before it.

    Args:
      chunk: tokens to read at a time, a divisor of T, or 0 for all. Attention never computes what
        lies beyond a chunk, which on CPU makes a step of 512 tokens a seventh faster.
    """
    total = jnp.float32(0)
    for piece, output in read(params, batch, model=model, chunk=chunk):
        logits, targets = model.logits(params, output.hidden), batch.tokens[:, 1:][:, piece]
        per_token = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        total += (per_token * batch.weight[:, piece]).sum()
    return total / jnp.maximum(batch.weight.sum(), 1.0), {}


def distillation(
    params: Params,
    frozen: Params,
    batch: Batch,
    *,
    model: Model,
    teacher: Model,
    loss: Loss,
    chunk: int = 0,
) -> tuple[Array, Measures]:
    """The mean loss of the student's law of the next token against the teacher's.

    Both laws are at the batch's temperatures; where that is 0, the teacher's is its likeliest token
    and the student's at 1. Both read the text in chunks. Logits are made of a piece of every row at
    a time, once, and used up for the loss and its gradient: those of whole rows never exist.

    Args:
      frozen: the teacher's parameters.

    Measures `acceptance`, the probability that token-level rejection keeps the student's draw.
    """

    # Where one model's tokens are the other's and more, what is more is padding.
    vocabulary = min(model.config.vocabulary, teacher.config.vocabulary)

    def compare(params: Params, frozen: Params, ours: Array, told: tuple[Array, ...]) -> Array:
        theirs, weight, temperature = told
        student = model.logits(params, ours)[..., :vocabulary]
        target = teacher.logits(frozen, theirs)[..., :vocabulary]
        return jnp.stack(against(loss, target, student, weight, temperature))

    told = [
        *(
            whole(read(weights, batch, model=reader, chunk=chunk), lambda output: output.hidden)
            for weights, reader in ((params, model), (frozen, teacher))
        ),
        batch.weight,
        batch.temperature,
    ]
    ours, *told = (pieces(x, chunk or PIECE) for x in told)
    value, refused = summed(compare, 2)(params, frozen, ours, tuple(told)) / jnp.maximum(
        batch.weight.sum(), 1.0
    )
    return value, {"acceptance": 1 - refused}


def against(
    loss: Loss, target: Array, student: Array, weight: Array, temperature: Array
) -> tuple[Array, Array]:
    """The sums of a loss, and of what token-level rejection refuses, from logits `[..., V]`.

    Args:
      weight, temperature: `[...]`, as a batch has them.
    """
    greedy = (temperature == 0)[..., None]
    t = jnp.where(greedy, 1, temperature[..., None])
    target, student = target / t, student / t
    # Finding the likeliest token of every law is dear on CPU, and mostly not asked for.
    target = jax.lax.cond(
        greedy.any(), lambda x: jnp.where(greedy, _likeliest(x), x), lambda x: x, target
    )
    refused = jax.lax.stop_gradient(total_variation(target, student))
    return (loss(target, student) * weight).sum(), (refused * weight).sum()


def computed_in(objective: Objective, dtype: str) -> Objective:
    """The objective with parameters that are rounded to `dtype` before they are used."""

    def rounded(params: Params, frozen: Params, batch: Batch) -> tuple[Array, Measures]:
        return objective(jax.tree.map(lambda x: x.astype(dtype), params), frozen, batch)

    return rounded


def read(
    params: Params, batch: Batch, *, model: Model, chunk: int = 0
) -> Iterator[tuple[slice, Output]]:
    """One causal pass over a batch, in chunks: the places of each, and what it gives."""
    tokens, document = batch.tokens[:, :-1], batch.document[:, :-1]
    rows, length = tokens.shape
    chunk, positions = chunk or length, batch.positions
    causal = jnp.tril(jnp.ones((length, length), bool))
    block = empty_block(model.config, rows, length, row_dtype(params, model=model))
    for first in range(0, length, chunk):
        piece, seen = slice(first, first + chunk), slice(0, first + chunk)
        together = document[:, piece, None] == document[:, None, seen]
        output = model.forward(
            params,
            tokens[:, piece],
            positions[:, piece],
            causal[None, piece, seen] & together,
            block=block,
            start=first,
        )
        block = output.block
        yield piece, output


def whole(outputs: Iterable[tuple[slice, Output]], take: Callable[[Output], Array]) -> Array:
    """What is taken of a pass, `[B, T, ...]`."""
    return jnp.concatenate([take(output) for _, output in outputs], axis=1)


def summed(
    compare: Callable[[Params, Params, Array, tuple[Array, ...]], Array], count: int
) -> Callable[[Params, Params, Array, tuple[Array, ...]], Array]:
    """The sum of `compare` `[count]` over pieces, whose gradient, of its first number, is made in
    the same pass: what a piece takes is gone before the next begins, and none of it is made twice.

    It is given parameters, others that are frozen, and of each piece our hidden states and what is
    told of it; parameters and hidden states have gradients.
    """

    @jax.custom_vjp
    def total(params: Params, frozen: Params, ours: Array, told: tuple[Array, ...]) -> Array:
        def add(sums: Array, piece: tuple[Any, ...]) -> tuple[Array, None]:
            return sums + compare(params, frozen, *piece), None

        return jax.lax.scan(add, jnp.zeros(count), (ours, told))[0]

    def forward(
        params: Params, frozen: Params, ours: Array, told: tuple[Array, ...]
    ) -> tuple[Array, Any]:
        def add(carry: Any, piece: tuple[Any, ...]) -> tuple[Any, Array]:
            sums, gradients = carry
            ours, told = piece
            found, pull = jax.vjp(
                lambda *moved: compare(moved[0], frozen, moved[1], told), params, ours
            )
            by_params, by_ours = pull(jnp.zeros(count).at[0].set(1.0))
            return (sums + found, jax.tree.map(jnp.add, gradients, by_params)), by_ours

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        (sums, by_params), by_ours = jax.lax.scan(add, (jnp.zeros(count), nothing), (ours, told))
        by_params = jax.tree.map(lambda x, param: x.astype(param.dtype), by_params, params)
        return sums, (by_params, by_ours)

    def backward(gradients: Any, weight: Array) -> Any:
        by_params, by_ours = jax.tree.map(lambda x: (x * weight[0]).astype(x.dtype), gradients)
        return by_params, None, by_ours, None

    total.defvjp(forward, backward)
    return total


def pieces(x: Array, longest: int) -> Array:
    """`[B, T, ...]` as `[n, B, T / n, ...]`, in pieces of `piece(T, longest)`."""
    rows, length, *rest = x.shape
    size = piece(length, longest)
    return jnp.moveaxis(x.reshape(rows, length // size, size, *rest), 1, 0)


def piece(length: int, longest: int) -> int:
    """The greatest divisor of a length that is no more than `longest`."""
    return next(size for size in range(min(longest, length), 0, -1) if length % size == 0)


def _likeliest(logits: Array) -> Array:
    """Logits of the law that is sure of the likeliest token."""
    sure = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1])
    return jnp.where(sure > 0, 0.0, IMPOSSIBLE)
