"""Losses of one token, from the logits of teacher and student, and their sums over chunks.

Each loss takes the logits of the teacher (distribution `p`) and of the student (`q`), `[..., V]`
and already divided by the temperature, and returns `[...]`: nats, or a probability.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jspec.core.sampling import LEAST_TEMPERATURE, are_finite
from jspec.models.protocol import Params

Loss = Callable[[Array, Array], Array]

CANDIDATES = 32
IMPOSSIBLE = -1e9  # a logit whose probability is 0 in float32, and whose product with 0 is 0


def forward_kl(teacher: Array, student: Array) -> Array:
    """`sum p log(p / q)`: the student covers everything that the teacher may say."""
    p, log_p, log_q = jax.nn.softmax(teacher), _log(teacher), _log(student)
    return (p * (log_p - log_q)).sum(axis=-1)


def reverse_kl(teacher: Array, student: Array) -> Array:
    """`sum q log(q / p)`: the student says only what the teacher may say."""
    return forward_kl(student, teacher)


def jensen_shannon(teacher: Array, student: Array, beta: float = 0.5) -> Array:
    """`beta KL(p, m) + (1 - beta) KL(q, m)` with `m = beta p + (1 - beta) q` (DistillSpec,
    arXiv 2310.08461); `beta` is strictly between 0 and 1."""
    log_p, log_q = _log(teacher), _log(student)
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    to_p = (jnp.exp(log_p) * (log_p - log_m)).sum(axis=-1)
    to_q = (jnp.exp(log_q) * (log_q - log_m)).sum(axis=-1)
    return beta * to_p + (1 - beta) * to_q


def total_variation(teacher: Array, student: Array) -> Array:
    """`1 - sum min(p, q)`: how often token-level rejection rejects a draft token."""
    return 1 - jnp.minimum(jax.nn.softmax(teacher), jax.nn.softmax(student)).sum(axis=-1)


def hard_cross_entropy(teacher: Array, student: Array) -> Array:
    """`-log q` of the teacher's most likely token."""
    return optax.softmax_cross_entropy_with_integer_labels(student, teacher.argmax(axis=-1))


def coupled_rejection(teacher: Array, student: Array, candidates: int = CANDIDATES) -> Array:
    """How often coupled verification rejects the student's first choice.

    Under the same Gumbel noise both pick `x` with probability
    `1 / sum_y max(p_y / p_x, q_y / q_x)` (the race of exponential clocks behind the Gumbel trick),
    and the sum of that over `x` is how often the draft token is accepted. It is computed for the
    most likely `candidates` of either distribution; the rest counts as one more token, on which the
    two never agree. The error is at most the probability of the rest, in the distribution where
    that is less.
    """
    count = min(candidates, teacher.shape[-1])
    chosen = jnp.concatenate(
        [jax.lax.top_k(logits, count)[1] for logits in (teacher, student)], axis=-1
    )
    earlier = jnp.tril(jnp.ones((2 * count, 2 * count), bool), -1)
    equal = chosen[..., :, None] == chosen[..., None, :]
    repeated = (equal & jnp.broadcast_to(earlier, equal.shape)).any(axis=-1)
    probs = []
    for logits in (teacher, student):
        top = jnp.take_along_axis(jax.nn.softmax(logits), chosen, axis=-1)
        top = jnp.where(repeated, 0, top)
        rest = jnp.maximum(1 - top.sum(axis=-1, keepdims=True), 0)
        probs.append(jnp.concatenate([top, rest], axis=-1))
    p, q = probs
    # The terms of the sum, times p_x q_x: p_y q_x against q_y p_x, which never divides by zero.
    race = jnp.maximum(p[..., None, :] * q[..., None], q[..., None, :] * p[..., None]).sum(axis=-1)
    both = p * q
    wins = jnp.where(both > 0, both / jnp.where(both > 0, race, 1), 0)
    return 1 - wins[..., :-1].sum(axis=-1)


LOSSES: Mapping[str, Loss] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "hard_cross_entropy": hard_cross_entropy,
    "coupled_rejection": coupled_rejection,
}


def mixture(weights: Mapping[str, float], beta: float = 0.5) -> Loss:
    """The weighted sum of losses by name; raises `ValueError` for a name that is not known."""
    unknown = sorted(weights.keys() - LOSSES)
    if unknown or not weights:
        raise ValueError(
            f"losses={dict(weights)}: name at least one of {', '.join(LOSSES)}, each with a weight"
        )

    known = {**LOSSES, "jensen_shannon": functools.partial(jensen_shannon, beta=beta)}

    def mixed(teacher: Array, student: Array) -> Array:
        first, *rest = (weight * known[name](teacher, student) for name, weight in weights.items())
        return sum(rest, start=first)

    return mixed


class Targets(NamedTuple):
    """What a student is compared with, `[..., D]` over its own tokens.

    Attributes:
      logits: the teacher's, divided by the temperature `[...]`. At 0 the teacher is its most likely
        token, and the student is taken at temperature 1.
      probs: of the teacher among all of its tokens.
      counted: `[...]` whether its most likely token is one of the student's, which the loss counts.
    """

    logits: Array
    probs: Array
    counted: Array
    temperature: Array


def make_targets(teacher: Array, temperature: Array, tokens: Array | None = None) -> Targets:
    """Targets from the teacher's raw logits `[..., V]`.

    Args:
      temperature: `[...]`, as in a `Batch`.
      tokens: `[D]`, those that a student with a smaller vocabulary has.
    """
    greedy = (temperature < LEAST_TEMPERATURE)[..., None]
    temperature = jnp.where(temperature < LEAST_TEMPERATURE, 1, temperature)
    teacher = teacher / temperature[..., None]
    # One token that cannot come is a distribution; what is not finite must not get lost in argmax.
    finite = are_finite(teacher)[..., None]
    teacher = jnp.where(finite, jnp.maximum(teacher, IMPOSSIBLE), jnp.nan)
    # The argmax of every row is expensive on CPU, and rarely needed.
    teacher = jax.lax.cond(
        greedy.any(), lambda x: jnp.where(greedy & finite, _most_likely(x), x), lambda x: x, teacher
    )
    probs, best = jax.nn.softmax(teacher), teacher.max(axis=-1)
    if tokens is not None:
        teacher, probs = teacher[..., tokens], probs[..., tokens]
    return Targets(teacher, probs, ~(teacher.max(axis=-1) < best), temperature)


def loss_and_rejection_rate(
    loss: Loss, targets: Targets, student: Array, weight: Array
) -> tuple[Array, Array, Array]:
    """Weighted sums, `[]` each: of a loss, of the share that token-level rejection rejects, and of
    the targets that the loss counts.

    Args:
      student: `[..., D]` raw logits.
      weight: `[...]`, as in a `Batch`.

    A teacher's logits that are not finite make the loss NaN, whatever it makes of them.
    """
    student = student / targets.temperature[..., None]
    accepted = jnp.minimum(targets.probs, jax.nn.softmax(student)).sum(axis=-1)
    rejected = jax.lax.stop_gradient(1 - accepted)
    finite = jnp.isfinite(targets.probs.sum(axis=-1))
    lost = jnp.where(finite, loss(targets.logits, student), jnp.nan)
    weighted = weight * targets.counted.astype(weight.dtype)
    return (lost * weighted).sum(), (rejected * weight).sum(), weighted.sum()


ChunkLoss = Callable[[Params, Any, Array, tuple[Array, ...]], Array]
"""Sums over one chunk, `[count]`: of parameters, frozen ones, the student's hidden states and the
chunk's targets."""


def chunked_loss(loss: ChunkLoss, count: int) -> ChunkLoss:
    """The sum of `loss` over chunks, `[count]`, with the gradient of its first number.

    Each chunk's gradient is computed in the same pass as its loss, so that logits of only one chunk
    exist at a time and none are computed twice. All arguments but the parameters have a leading
    axis of chunks; parameters and hidden states have gradients.
    """

    @jax.custom_vjp
    def total(params: Params, frozen: Any, hidden: Array, targets: tuple[Array, ...]) -> Array:
        def add(sums: Array, chunk: tuple[Any, ...]) -> tuple[Array, None]:
            return sums + loss(params, frozen, *chunk), None

        return jax.lax.scan(add, jnp.zeros(count, jnp.float32), (hidden, targets))[0]

    def forward(
        params: Params, frozen: Any, hidden: Array, targets: tuple[Array, ...]
    ) -> tuple[Array, Any]:
        def add(carry: Any, chunk: tuple[Any, ...]) -> tuple[Any, Array]:
            sums, gradients = carry
            hidden, targets = chunk
            value, pull = jax.vjp(
                lambda params, hidden: loss(params, frozen, hidden, targets), params, hidden
            )
            by_params, by_hidden = pull(jnp.zeros(count, jnp.float32).at[0].set(1.0))
            return (sums + value, jax.tree.map(jnp.add, gradients, by_params)), by_hidden

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        (sums, by_params), by_hidden = jax.lax.scan(
            add, (jnp.zeros(count, jnp.float32), zeros), (hidden, targets)
        )
        by_params = jax.tree.map(lambda x, param: x.astype(param.dtype), by_params, params)
        return sums, (by_params, by_hidden)

    def backward(gradients: Any, weight: Array) -> Any:
        by_params, by_hidden = jax.tree.map(lambda x: (x * weight[0]).astype(x.dtype), gradients)
        return by_params, None, by_hidden, None

    total.defvjp(forward, backward)
    return total


def in_chunks(x: Array, longest: int) -> Array:
    """`[B, T, ...]` as `[n, B, T / n, ...]`, in chunks of `chunk_length(T, longest)` tokens."""
    rows, length, *rest = x.shape
    size = chunk_length(length, longest)
    return jnp.moveaxis(x.reshape(rows, length // size, size, *rest), 1, 0)


def chunk_length(length: int, longest: int) -> int:
    """The greatest divisor of `length` that is at most `longest`."""
    return next(size for size in range(min(longest, length), 0, -1) if length % size == 0)


def _log(logits: Array) -> Array:
    return jax.nn.log_softmax(logits)


def _most_likely(logits: Array) -> Array:
    """Logits of the distribution that has only the most likely token."""
    one_hot = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=logits.dtype)
    return jnp.where(one_hot > 0, 0.0, IMPOSSIBLE)
