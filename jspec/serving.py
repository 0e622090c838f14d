"""Speculative decoding in pieces, for whoever wants to see the text while it is written.

Many prompts through a batch that is kept full: a row that is done makes room for the next.

From tokens to text while it is written: only what stays, and not past a stop string.

Who wrote what: the tokens that the draft had guessed, and those that the target supplied.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec import decode
from jspec.core.candidates import Rule
from jspec.core.prompts import Prompts
from jspec.core.sampling import Sampling
from jspec.decode import STOPPED, Generation, State, unfinished, written
from jspec.draft.protocol import Drafter
from jspec.models.protocol import Model, Params
from jspec.parallel.sharding import constrain
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


PARTIAL = "\ufffd"  # what decoding puts where only some bytes of a character are there
BYTE = re.compile("<0x[0-9A-F]{2}>")  # how tokenizers that fall back to bytes name them
LONGEST = 4  # bytes of a character, and so tokens


class Reading(NamedTuple):
    """What a piece says.

    Attributes:
      text: all that is known, up to a stop string.
      ready: how many of its characters no later token can change.
      tokens: how many it took, with the stop string or the end of text that ended it.
      cut: whether a stop string ended it.
    """

    text: str = ""
    ready: int = 0
    tokens: int = 0
    cut: bool = False


@dataclass(frozen=True)
class Reader:
    """Reads the pieces of one text, to the same end however it is cut into them.

    Attributes:
      tokenizer: one of transformers, or another that decodes lists of tokens.
      until: strings before which the text ends: that which is complete first, and of several
        the longest.
      after: the prompt's tokens, without which many tokenizers drop a space at the beginning.
    """

    tokenizer: Any
    until: Sequence[str] = ()
    after: Sequence[int] = ()

    def read(self, piece: Generation, row: int = 0, *, ended: bool = False) -> Reading:
        """The text of one row; once it has `ended` there is nothing left to wait for."""
        count = int(piece.length[row])
        stopped = int(piece.reason[row]) == STOPPED
        ids = piece.tokens[row, : count - stopped].tolist()
        text = self._decode(ids) if ended else self._settled(ids)
        # The smallest end, and there the smallest start: no later piece can have another.
        found = [(text.index(s) + len(s), text.index(s)) for s in self.until if s in text]
        if found:
            end, start = min(found)
            return Reading(text[:start], start, self._needed(ids, text[:end]), cut=True)
        return Reading(text, len(text) if ended else ready(text, self.until), count)

    def _decode(self, ids: Sequence[int]) -> str:
        """The text behind the prompt's."""
        start = max(self._whole(self.after) - LONGEST, 0)
        near = list(self.after[start:])
        before, text = self.tokenizer.decode(near), self.tokenizer.decode([*near, *ids])
        # A character whose first bytes the prompt ends with is ours.
        return text[len(os.path.commonprefix([before, text])) :]

    def _settled(self, ids: Sequence[int]) -> str:
        """The text that every later one begins with."""
        return self._decode(ids[: self._whole(ids)]).rstrip(PARTIAL)

    def _whole(self, ids: Sequence[int]) -> int:
        """How many tokens come before the bytes at the end, which decode as characters only as
        long as all of them do."""
        name = getattr(self.tokenizer, "convert_ids_to_tokens", str)
        count = len(ids)
        while count and BYTE.fullmatch(name(ids[count - 1]) or ""):
            count -= 1
        return count

    def _needed(self, ids: Sequence[int], text: str) -> int:
        """How many tokens it takes to write `text`."""
        count = len(ids)
        while count and self._decode(ids[: count - 1]).startswith(text):
            count -= 1
        return count


def stream_text(
    pieces: Iterable[Generation],
    tokenizer: Any,
    *,
    until: Sequence[str] = (),
    after: Sequence[int] = (),
    row: int = 0,
) -> Iterator[str]:
    """Yields what is new in each piece of a stream, and takes no more pieces after a stop string.

    Args:
      pieces: of `stream` or `stream_plain`.
      until, after: as in `Reader`: where the text ends, and the tokens of the row's prompt.
      row: whose text, of a batch.
    """
    check_stop_strings(until)
    reader, shown, piece = Reader(tokenizer, until, after), 0, None
    for piece in pieces:
        reading = reader.read(piece, row)
        yield reading.text[shown : reading.ready]
        shown = reading.ready
        if reading.cut:
            return
    if piece is not None:
        yield reader.read(piece, row, ended=True).text[shown:]


def check_stop_strings(until: Sequence[str]) -> None:
    """Raises `ValueError` for an empty one, which every text would end with."""
    for string in until:
        if not string:
            raise ValueError("until='': a stop string has at least one character")


def ready(text: str, until: Sequence[str]) -> int:
    """How many characters come before what may be the beginning of a stop string."""
    held = (n for string in until for n in range(len(string)) if text.endswith(string[:n]))
    return len(text) - max(held, default=0)


# Dark enough on white, light enough on black.
STYLES = {True: "color:#2e9e4f", False: "color:#d97706;text-decoration:underline"}


def to_html(generation: Generation, tokenizer: Any, *, row: int = 0) -> str:
    """One text of a batch as HTML: green where it was guessed, amber where it was not."""
    length = int(generation.length[row])
    tokens, guessed = (x[row, :length].tolist() for x in (generation.tokens, generation.guessed))
    spans = "".join(
        f'<span style="{STYLES[hit]}">{escape(text)}</span>'
        for text, hit in runs(tokens, guessed, tokenizer)
    )
    return f'<pre style="white-space:pre-wrap">{spans}</pre>'


def runs(
    tokens: Sequence[int], guessed: Sequence[bool], tokenizer: Any
) -> Iterator[tuple[str, bool]]:
    """The text in runs of tokens from the same hand, each with whether it was guessed."""
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or guessed[end] != guessed[start]:
            yield tokenizer.decode(tokens[start:end]), guessed[start]
            start = end
