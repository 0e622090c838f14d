"""Speculative decoding in pieces, for whoever wants to see the text while it is written."""

import functools
from collections.abc import Callable, Iterator

import jax
from jax import Array

from jspec import decode
from jspec.candidates import Rule
from jspec.draft.protocol import Drafter
from jspec.models.protocol import Model, Params
from jspec.ragged import Prompts
from jspec.sampling import Sampling
from jspec.state import Generation, State, unfinished, written
from jspec.verify import coupled


def stream(
    params: Params,
    draft: Params,
    prompts: Prompts,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule = coupled,
    tokens: int,
    rounds: int = 4,
) -> Iterator[Generation]:
    """Yields what `generate` has written so far, every few `rounds`; the last is all of it."""
    _check(prompts, keys, sampling, rounds)
    models = {"target": target, "drafter": drafter, "rule": rule}
    return _pieces(
        lambda: decode.begin(params, draft, prompts, **models, tokens=tokens),
        lambda state: _advance(params, draft, state, keys, sampling, **models, rounds=rounds),
        lambda state: written(state, prompts, tokens=tokens),
    )


def stream_plain(
    params: Params,
    prompts: Prompts,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    tokens: int,
    rounds: int = 16,
) -> Iterator[Generation]:
    """Yields what `autoregress` has written so far, every few tokens; the last is all of it."""
    _check(prompts, keys, sampling, rounds)
    return _pieces(
        lambda: decode.begin_plain(params, prompts, target=target, tokens=tokens),
        lambda state: _extend(params, state, keys, sampling, target=target, rounds=rounds),
        lambda state: written(state, prompts, tokens=tokens),
    )


def _check(prompts: Prompts, keys: Array, sampling: Sampling, rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one round passes between two pieces")
    decode.check_rows(prompts, keys, sampling)


def _pieces(
    begin: Callable[[], State],
    advance: Callable[[State], State],
    written: Callable[[State], Generation],
) -> Iterator[Generation]:
    """Computes nothing before it is asked for its first piece."""
    state = begin()
    while bool(unfinished(state)):
        state = advance(state)
        yield written(state)


@functools.partial(
    jax.jit, static_argnames=("target", "drafter", "rule", "rounds"), donate_argnames=("state",)
)
def _advance(
    params: Params,
    draft: Params,
    state: State,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule,
    rounds: int,
) -> State:
    """A few rounds; a row that is done passes them unchanged."""

    def advance(_: int, state: State) -> State:
        return decode.speculate(
            params, draft, state, keys, sampling, target=target, drafter=drafter, rule=rule
        )

    return jax.lax.fori_loop(0, rounds, advance, state)


@functools.partial(jax.jit, static_argnames=("target", "rounds"), donate_argnames=("state",))
def _extend(
    params: Params,
    state: State,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    rounds: int,
) -> State:
    def advance(_: int, state: State) -> State:
        return decode.extend(params, state, keys, sampling, target=target)

    return jax.lax.fori_loop(0, rounds, advance, state)
