"""How long drafts take to guess, beside whole rounds: what makes drafts of several kinds equals.

Of each method two compiled loops are timed, all in turns: whole rounds of speculation, and nothing
but `propose`, from the dice to the candidates. A small model's late tokens are in as many of the
second loop's rounds as the first loop had.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jspec.bench.breakdown import ROUNDS, late_rounds, seconds, whole_rounds
from jspec.bench.suite import Method, Workload
from jspec.candidates import Rule
from jspec.decode import State, begin
from jspec.draft.protocol import Text
from jspec.models.protocol import Model, Params


@dataclass(frozen=True)
class Latency:
    """Milliseconds a round, medians: of all of it, and of the draft's guesses."""

    method: str
    round_ms: float
    draft_ms: float


def latencies(
    methods: Sequence[Method],
    target: Model,
    params: Params,
    work: Workload,
    *,
    temperature: float,
    repetitions: int,
    tick: Callable[[], Any],
) -> list[Latency]:
    """Times drafts on the first batch of a workload, `repetitions` times each, in turns.

    Args:
      tick: told of every method that is compiled.
    """
    loops = []
    for method in methods:
        loops.append(_loops(method, target, params, work, temperature))
        tick()
    times = [[tuple(map(seconds, pair)) for pair in loops] for _ in range(repetitions)]
    found = []
    for method, runs in zip(methods, zip(*times, strict=True), strict=True):
        whole, guesses = (median(column) * 1e3 / ROUNDS for column in zip(*runs, strict=True))
        found.append(Latency(method.name, whole, guesses))
    return found


def _loops(
    method: Method, target: Model, params: Params, work: Workload, temperature: float
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Both loops, which have run once."""
    target = method.reading(target)
    names = {"drafter": method.drafter, "rule": method.rule}
    state = begin(params, method.draft, work.batches[0], target=target, tokens=work.tokens, **names)
    told = state, work.keys[0], work.sampling(temperature)
    whole = functools.partial(whole_rounds, params, method.draft, *told, target=target, **names)
    late = late_rounds(whole())
    vocabulary = target.config.vocabulary
    guesses = functools.partial(_guesses, method.draft, *told, late, vocabulary=vocabulary, **names)
    jax.block_until_ready(guesses())
    return whole, guesses


@functools.partial(jax.jit, static_argnames=("vocabulary", "drafter", "rule"))
def _guesses(
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
        text = Text(tokens, state.length, state.history)
        if hasattr(memory, "late"):
            memory = memory.replace(late=jnp.broadcast_to(late[number], root.shape))
        found = drafter.propose(draft, memory, text, dice, law, rule=rule)
        candidates, memory = jax.lax.optimization_barrier(found)
        return candidates.tokens[:, -1], memory

    root = state.tokens[row, state.length - 1]
    return jax.lax.fori_loop(0, ROUNDS, advance, (root, state.drafter))[0]
