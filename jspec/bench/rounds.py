"""Compiled loops that are timed: of whole rounds, and of nothing but a draft's guesses."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jspec.bench.suite import Method, Workload
from jspec.core.candidates import Rule
from jspec.decode import State, begin, speculate
from jspec.draft.protocol import Text
from jspec.models.protocol import Model, Params

ROUNDS = 32


class Loops(NamedTuple):
    """Both loops of a method, which have run once; the `state` that they begin with, and in which
    rounds there are late tokens."""

    state: State
    late: Array
    rounds: Callable[[], Any]
    guesses: Callable[[], Any]


def loops(
    method: Method, target: Model, params: Params, work: Workload, temperature: float
) -> Loops:
    """Compiles the loops for the first batch of a workload.

    Args:
      target: as it is, and not as the method reads it.
    """
    target = method.reading(target)
    names = {"drafter": method.drafter, "rule": method.rule}
    state = begin(params, method.draft, work.batches[0], target=target, tokens=work.tokens, **names)
    told = state, work.keys[0], work.sampling(temperature)
    rounds = functools.partial(whole_rounds, params, method.draft, *told, target=target, **names)
    late = late_rounds(rounds())
    vocabulary = target.config.vocabulary
    drafts = functools.partial(guesses, method.draft, *told, late, vocabulary=vocabulary, **names)
    jax.block_until_ready(drafts())
    return Loops(state, late, rounds, drafts)


def guesses_alone(
    method: Method, target: Model, params: Params, work: Workload, temperature: float
) -> Callable[[], Any]:
    """The loop of guesses, which has run once, where no token comes late."""
    target = method.reading(target)
    names = {"drafter": method.drafter, "rule": method.rule}
    state = begin(params, method.draft, work.batches[0], target=target, tokens=work.tokens, **names)
    told = state, work.keys[0], work.sampling(temperature), jnp.zeros(ROUNDS, bool)
    vocabulary = target.config.vocabulary
    run = functools.partial(guesses, method.draft, *told, vocabulary=vocabulary, **names)
    jax.block_until_ready(run())
    return run


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes, results included."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def late_rounds(result: tuple[State, Array]) -> Array:
    """`[ROUNDS]` bool, as many of them true as rounds had a late token, spread evenly."""
    share = int(result[1]) / ROUNDS
    steps = jnp.floor(jnp.arange(ROUNDS + 1) * share + 1e-6)
    return steps[1:] > steps[:-1]


@functools.partial(jax.jit, static_argnames=("target", "drafter", "rule"))
def whole_rounds(
    params: Params,
    draft: Params,
    state: State,
    keys: Array,
    law: Any,
    *,
    target: Model,
    drafter: Any,
    rule: Rule,
) -> tuple[State, Array]:
    """The state after `ROUNDS` rounds, and how many of them began with a late token.

    A row that ends on the way takes part in the rest: a round's work does not hang on it.
    """

    def advance(_: int, carry: tuple[State, Array]) -> tuple[State, Array]:
        state, late = carry
        begins_late = jnp.any(getattr(state.drafter, "late", jnp.array(False)))
        state = speculate(
            params, draft, state, keys, law, target=target, drafter=drafter, rule=rule
        )
        return state, late + begins_late

    return jax.lax.fori_loop(0, ROUNDS, advance, (state, jnp.int32(0)))


@functools.partial(jax.jit, static_argnames=("vocabulary", "drafter", "rule"))
def guesses(
    draft: Params,
    state: State,
    keys: Array,
    law: Any,
    late: Array,
    *,
    vocabulary: int,
    drafter: Any,
    rule: Rule,
) -> Array:
    """`ROUNDS` proposals, each for a root that the one before guessed: `[B]` the last of these."""
    dice = rule.roll(keys, state.length, law, tree=drafter.tree, vocabulary=vocabulary)
    row = jnp.arange(len(state.length))

    def advance(number: int, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        root, memory = carry
        tokens = state.tokens.at[row, state.length - 1].set(root)
        text = Text(tokens, state.length, state.history, state.done == 0)
        if hasattr(memory, "late"):
            memory = memory.replace(late=jnp.broadcast_to(late[number], root.shape))
        found = drafter.propose(draft, memory, text, dice, law, rule=rule)
        candidates, memory = jax.lax.optimization_barrier(found)
        return candidates.tokens[:, -1], memory

    root = state.tokens[row, state.length - 1]
    return jax.lax.fori_loop(0, ROUNDS, advance, (root, state.drafter))[0]
