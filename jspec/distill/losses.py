"""What a step lowers: losses of a token, from the logits of teacher and student.

Each takes `[..., V]` twice, of the teacher `p` and of the student `q`, divided by the temperature
of the loss, and returns `[...]` in nats or as a probability.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

Loss = Callable[[Array, Array], Array]

CANDIDATES = 32


def forward_kl(teacher: Array, student: Array) -> Array:
    """`sum p log(p / q)`: the student covers what the teacher may say."""
    p, log_p, log_q = jax.nn.softmax(teacher), _log(teacher), _log(student)
    return (p * (log_p - log_q)).sum(axis=-1)


def reverse_kl(teacher: Array, student: Array) -> Array:
    """`sum q log(q / p)`: the student says only what the teacher may."""
    return forward_kl(student, teacher)


def jensen_shannon(teacher: Array, student: Array, beta: float = 0.5) -> Array:
    """`beta KL(p, m) + (1 - beta) KL(q, m)` with `m = beta p + (1 - beta) q` (DistillSpec,
    arXiv 2310.08461); beta lies strictly between 0 and 1."""
    log_p, log_q = _log(teacher), _log(student)
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    to_p = (jnp.exp(log_p) * (log_p - log_m)).sum(axis=-1)
    to_q = (jnp.exp(log_q) * (log_q - log_m)).sum(axis=-1)
    return beta * to_p + (1 - beta) * to_q


def total_variation(teacher: Array, student: Array) -> Array:
    """`1 - sum min(p, q)`: how often token-level rejection refuses the student's draw."""
    return 1 - jnp.minimum(jax.nn.softmax(teacher), jax.nn.softmax(student)).sum(axis=-1)


def hard_cross_entropy(teacher: Array, student: Array) -> Array:
    """`-log q` of the teacher's likeliest token."""
    return optax.softmax_cross_entropy_with_integer_labels(student, teacher.argmax(axis=-1))


def coupled_rejection(teacher: Array, student: Array, candidates: int = CANDIDATES) -> Array:
    """How often coupled verification refuses the student's best guess.

    Under the same Gumbel noise both pick `x` with probability
    `1 / sum_y max(p_y / p_x, q_y / q_x)` (the race of exponential clocks behind Gumbel's trick),
    and the guess is kept with the sum of that over `x`. Computed for the likeliest `candidates` of
    either law; what is left over counts as one token more, on which they never agree. That is wrong
    by no more than the probability that is left over, of the law that leaves less.
    """
    count = min(candidates, teacher.shape[-1])
    chosen = jnp.concatenate(
        [jax.lax.top_k(logits, count)[1] for logits in (teacher, student)], axis=-1
    )
    earlier = jnp.tril(jnp.ones((2 * count, 2 * count), bool), -1)
    equal = chosen[..., :, None] == chosen[..., None, :]
    again = (equal & jnp.broadcast_to(earlier, equal.shape)).any(axis=-1)
    laws = []
    for logits in (teacher, student):
        kept = jnp.where(again, 0, jnp.take_along_axis(jax.nn.softmax(logits), chosen, axis=-1))
        rest = jnp.maximum(1 - kept.sum(axis=-1, keepdims=True), 0)
        laws.append(jnp.concatenate([kept, rest], axis=-1))
    p, q = laws
    # The sum's terms times p_x q_x: p_y q_x against q_y p_x, which never divides by a zero.
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
    """A weighted sum of losses by their names; raises `ValueError` for one that is not known."""
    unknown = sorted(weights.keys() - LOSSES)
    if unknown or not weights:
        raise ValueError(
            f"losses={dict(weights)}: name at least one of {', '.join(LOSSES)}, each with a weight"
        )

    known = {**LOSSES, "jensen_shannon": functools.partial(jensen_shannon, beta=beta)}

    def mixed(teacher: Array, student: Array) -> Array:
        return sum(weight * known[name](teacher, student) for name, weight in weights.items())

    return mixed


def _log(logits: Array) -> Array:
    return jax.nn.log_softmax(logits)
