"""Many prompts through a batch that is kept full: a row that is done makes room for the next."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec import decode
from jspec.candidates import Rule
from jspec.draft.protocol import Drafter
from jspec.models.protocol import Model, Params
from jspec.ragged import Prompts
from jspec.sampling import Sampling
from jspec.sharding import constrain
from jspec.state import Generation, State, unfinished, written
from jspec.verify import coupled

VACANT = 3


def generate_many(
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
    batch: int = 8,
) -> Iterator[tuple[int, Generation]]:
    """Yields each prompt's index and its text `[1, T]` as it is done, in no particular order.

    Every text is the one that `generate` writes for its prompt alone: `keys` and `sampling` have a
    row for each prompt.

    Args:
      batch: how many are written at a time.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one prompt is written at a time")
    decode.check_rows(prompts, keys, sampling)
    models = {"target": target, "drafter": drafter, "rule": rule}
    return _texts(params, draft, prompts, keys, sampling, models, tokens=tokens, batch=batch)


def _texts(
    params: Params,
    draft: Params,
    prompts: Prompts,
    keys: Array,
    sampling: Sampling,
    models: dict[str, Any],
    *,
    tokens: int,
    batch: int,
) -> Iterator[tuple[int, Generation]]:
    """Computes nothing before it is asked for its first text."""
    count = len(prompts.length)
    seats = np.arange(min(batch, count))
    state = decode.begin(params, draft, _rows(prompts, seats), **models, tokens=tokens)
    following = len(seats)
    while np.any(seats < count):
        everyone = (_rows(x, np.minimum(seats, count - 1)) for x in (keys, sampling))
        state, done = until_one_is_done(params, draft, state, *everyone, **models)
        for row in np.flatnonzero((np.asarray(done) != 0) & (seats < count)):
            prompt = _rows(prompts, seats[row][None])
            yield int(seats[row]), _text(state, prompt, row, tokens=tokens)
            # Once the last prompt has a seat, indices past it mark the vacant ones.
            seats[row], following = following, following + 1
            if seats[row] < count:
                newcomer = _rows(prompts, seats[row][None])
                fresh = decode.begin(params, draft, newcomer, **models, tokens=tokens)
                state = seat(state, fresh, row)
            else:
                state = state.replace(done=state.done.at[row].set(VACANT))


@functools.partial(jax.jit, donate_argnames=("state",))
def seat(state: State, fresh: State, row: Array) -> State:
    """Puts the only row of `fresh` in the place of one of `state`."""
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=row, axis=0)
    return jax.tree.map(put, state, fresh)


@functools.partial(
    jax.jit, static_argnames=("target", "drafter", "rule"), donate_argnames=("state",)
)
def until_one_is_done(
    params: Params,
    draft: Params,
    state: State,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule,
) -> tuple[State, Array]:
    """Rounds of the whole batch, until a row that is not vacant ends; which rows are done `[B]`."""

    def full(state: State) -> Array:
        return jnp.all((state.done == 0) | (state.done == VACANT)) & unfinished(state)

    def advance(state: State) -> State:
        return decode.speculate(
            params, draft, state, keys, sampling, target=target, drafter=drafter, rule=rule
        )

    state = jax.lax.while_loop(full, advance, state)
    # On every device, so that each process of a launch can read all of it.
    return state, constrain(state.done, None)


def _rows(tree: Any, rows: np.ndarray) -> Any:
    """The rows of everything that has a batch."""
    return jax.tree.map(lambda x: x[rows], tree)


@functools.partial(jax.jit, static_argnames=("tokens",))
def _text(state: State, prompts: Prompts, row: Array, *, tokens: int) -> Generation:
    """What one row of the batch has written after its prompt."""
    alone = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), state)
    return written(alone, prompts, tokens=tokens)
