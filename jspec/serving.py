"""Serving: tokens as they are generated, continuous batching, and text from tokens."""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec import verify
from jspec.core.candidates import Rule
from jspec.core.prompts import PaddedPrompts
from jspec.core.sampling import SamplingParams
from jspec.decode import (
    RUNNING,
    STOP,
    DecodeState,
    GenerationOutput,
    budget,
    check_rows,
    collect_output,
    decode_one_token,
    speculate,
    start_decoding,
    start_plain,
    unfinished,
)
from jspec.draft.protocol import Drafter
from jspec.models.protocol import Model, Params
from jspec.parallel.sharding import constrain

# The finish reason of a slot that no prompt is left for.
FREE = 4


def stream(
    params: Params,
    draft_params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule | str = "coupled",
    max_new_tokens: int | Sequence[int] | np.ndarray,
    rounds: int = 4,
) -> Iterator[GenerationOutput]:
    """Yields what `generate` has generated so far, every few `rounds`; the last is all of it."""
    most, room = _check(prompts, keys, sampling, max_new_tokens, target, rounds)
    models = {"target": target, "drafter": drafter, "rule": verify.get(rule)}
    return _pieces(
        lambda: start_decoding(params, draft_params, prompts, most, **models, room=room),
        lambda state: _run_rounds(
            params, draft_params, state, keys, sampling, **models, rounds=rounds
        ),
        lambda state: collect_output(state, prompts, room),
    )


def stream_plain(
    params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    max_new_tokens: int | Sequence[int] | np.ndarray,
    rounds: int = 16,
) -> Iterator[GenerationOutput]:
    """Yields what `autoregress` has generated so far, every few tokens; the last is all of it."""
    most, room = _check(prompts, keys, sampling, max_new_tokens, target, rounds)
    return _pieces(
        lambda: start_plain(params, prompts, most, target=target, room=room),
        lambda state: _run_plain(params, state, keys, sampling, target=target, rounds=rounds),
        lambda state: collect_output(state, prompts, room),
    )


def generate_many(
    params: Params,
    draft_params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule | str = "coupled",
    max_new_tokens: int | Sequence[int] | np.ndarray,
    batch_size: int = 8,
) -> Iterator[tuple[int, GenerationOutput]]:
    """Continuous batching: yields each prompt's index and its output `[1, T]` as it finishes.

    A row that finishes makes room for the next prompt. Every output is the one that `generate`
    returns for its prompt alone: `keys` and `sampling` have a row for each prompt.

    Args:
      batch_size: how many prompts are decoded at a time.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least one prompt is decoded at a time")
    check_rows(prompts, keys, sampling)
    most, room = budget(max_new_tokens, prompts, target)
    models = {"target": target, "drafter": drafter, "rule": verify.get(rule)}
    return _serve(
        params, draft_params, prompts, keys, sampling, most, models, room=room, slots=batch_size
    )


class TextPiece(NamedTuple):
    """What a piece of a stream says.

    Attributes:
      text: all that is known, up to a stop string.
      ready: how many of its characters no later token can change.
      tokens: how many tokens it took, with the stop string or the stop token that ended it.
      stopped: whether a stop string ended it.
    """

    text: str = ""
    ready: int = 0
    tokens: int = 0
    stopped: bool = False


PARTIAL = "\ufffd"  # what decoding puts where only some bytes of a character are there
BYTE = re.compile("<0x[0-9A-F]{2}>")  # how tokenizers that fall back to bytes name them
NEAR = 16  # tokens that are decoded again before new ones; the bytes of some characters
MANY = 64  # tokens behind which those before them are decoded no more
PART = 32  # tokens that are taken at a time where a stop string may end the text at one of them


class _Cut(NamedTuple):
    """A place before which nothing is decoded any more, but for the tokens near it.

    Attributes:
      tokens, length: how many tokens are before it, and how long their text is.
      near, before: the last of these tokens, and what they decode as.
    """

    tokens: int
    length: int
    near: list[int]
    before: str


class TextReader:
    """Reads the pieces of one text, to the same end however it is cut into them.

    A piece costs as much as it adds: what cannot change any more is not decoded again. A piece that
    is shorter than the one before begins another text.

    >>> output = engine.generate("import os\\n", max_new_tokens=64).output
    >>> TextReader(tokenizer, stop=["\\n\\n"]).read(output).text

    Args:
      tokenizer: one of transformers, or another that decodes lists of tokens.
      stop: strings before which the text ends: the one that is complete first, and of several the
        longest.
      prompt_tokens: without which many tokenizers drop a space at the beginning.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), prompt_tokens: Sequence[int] = ()
    ) -> None:
        self.tokenizer, self.stop, self.prompt_tokens = tokenizer, stop, prompt_tokens
        self._longest = max(map(len, stop), default=0)
        self._begin()

    def read(self, piece: GenerationOutput, row: int = 0, *, ended: bool = False) -> TextPiece:
        """The text of one row; once it has `ended` there is nothing left to wait for."""
        tokens, length, reason = (
            np.asarray(x)[row] for x in (piece.tokens, piece.length, piece.finish_reason)
        )
        count = int(length)
        end = count - int(reason == STOP)
        if end < self._taken:
            self._begin()
        while self._taken < end and self._stopped is None:
            self._take(tokens, min(self._taken + PART, end) if self.stop else end)
        if self._stopped is None and ended:
            text = self._text + self._decode(tokens[self._cut : end].tolist())
            self._find_stop(text, tokens)
            return self._stopped or TextPiece(text, len(text), count)
        return self._stopped or TextPiece(self._known, ready(self._known, self.stop), count)

    def _begin(self) -> None:
        """Before the first token."""
        start = max(self._whole(self.prompt_tokens) - NEAR, 0)
        # The tokens before those that are decoded, and their text.
        self._near = list(self.prompt_tokens[start:])
        self._before: str = self.tokenizer.decode(self._near)
        # The text of the first `_cut` tokens, and all that every later text begins with.
        self._text, self._cut, self._known = "", 0, ""
        self._taken = 0
        self._stopped: TextPiece | None = None

    def _take(self, tokens: np.ndarray, end: int) -> None:
        """Reads on to the token `end`."""
        whole = self._taken + self._whole(tokens[self._taken : end].tolist())
        before, self._taken = self._taken, end
        if whole == before:
            return  # bytes, of which more may follow
        ids = tokens[self._cut : whole].tolist()
        text = self._decode(ids)
        cut = self._later_cut(ids, text) if len(ids) > MANY else None
        certain = max(len(text.rstrip(PARTIAL)), cut.length if cut else 0)
        known = self._text + text[:certain]
        self._find_stop(known, tokens)
        self._known = known
        if cut is not None:
            self._text += text[: cut.length]
            self._cut += cut.tokens
            self._near, self._before = cut.near, cut.before

    def _later_cut(self, ids: list[int], text: str) -> "_Cut | None":
        """Where all but the last of these tokens can be left to the text that they have."""
        count = self._whole(ids[:-NEAR])
        near = [*self._near, *ids[:count]][-NEAR:]
        before, both = (self.tokenizer.decode(x) for x in (near, [*near, *ids[count:]]))
        # A character whose first bytes are before the cut is behind it.
        before = os.path.commonprefix([before, both])
        rest = both[len(before) :]
        return _Cut(count, len(text) - len(rest), near, before) if text.endswith(rest) else None

    def _decode(self, ids: Sequence[int]) -> str:
        """The text after that of the tokens before."""
        text = self.tokenizer.decode([*self._near, *ids])
        # A character whose first bytes the prompt ends with is generated.
        return text[len(os.path.commonprefix([self._before, text])) :]

    def _whole(self, ids: Sequence[int]) -> int:
        """How many tokens come before the bytes at the end, which decode as characters only as
        long as all of them do."""
        name = getattr(self.tokenizer, "convert_ids_to_tokens", str)
        count = len(ids)
        while count and BYTE.fullmatch(name(ids[count - 1]) or ""):
            count -= 1
        return count

    def _find_stop(self, text: str, tokens: np.ndarray) -> None:
        """Ends the text before a stop string."""
        # What was known before holds none.
        start = max(len(self._known) - self._longest + 1, 0)
        places = ((text.find(string, start), len(string)) for string in self.stop)
        # The smallest end, and there the smallest start: no later piece can have another.
        found = [(place + length, place) for place, length in places if place >= 0]
        if not found:
            return
        end, place = min(found)
        ids, needed = tokens[self._cut : self._taken].tolist(), text[len(self._text) : end]
        while ids and self._decode(ids[:-1]).startswith(needed):
            ids.pop()
        self._stopped = TextPiece(text[:place], place, self._cut + len(ids), stopped=True)


def stream_text(
    pieces: Iterable[GenerationOutput],
    tokenizer: Any,
    *,
    stop: Sequence[str] = (),
    prompt_tokens: Sequence[int] = (),
    row: int = 0,
) -> Iterator[str]:
    """Yields what is new in each piece of a stream, and takes no more pieces after a stop string.

    Args:
      pieces: of `stream` or `stream_plain`.
      stop, prompt_tokens: as in `TextReader`: where the text ends, and the row's prompt.
      row: whose text, of a batch.
    """
    check_stop_strings(stop)
    reader, shown, piece = TextReader(tokenizer, stop, prompt_tokens), 0, None
    for piece in pieces:
        text = reader.read(piece, row)
        yield text.text[shown : text.ready]
        shown = text.ready
        if text.stopped:
            return
    if piece is not None:
        yield reader.read(piece, row, ended=True).text[shown:]


def read_stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string, or several, as a tuple; raises where one is empty or no string."""
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Sequence) or not all(isinstance(string, str) for string in stop):
        raise TypeError(f"stop={stop!r}: give one string, or a list of them")
    check_stop_strings(stop)
    return tuple(stop)


def check_stop_strings(stop: Sequence[str]) -> None:
    """Raises `ValueError` for an empty one, which every text would end with."""
    for string in stop:
        if not string:
            raise ValueError("stop='': a stop string has at least one character")


def ready(text: str, stop: Sequence[str]) -> int:
    """How many characters come before what may be the beginning of a stop string."""
    held = (n for string in stop for n in range(len(string)) if text.endswith(string[:n]))
    return len(text) - max(held, default=0)


# Dark enough on white, light enough on black.
STYLES = {True: "color:#2e9e4f", False: "color:#d97706;text-decoration:underline"}


def to_html(output: GenerationOutput, tokenizer: Any, *, row: int = 0) -> str:
    """One text of a batch as HTML: draft tokens green, the target's own amber."""
    length = int(output.length[row])
    tokens, drafted = (x[row, :length].tolist() for x in (output.tokens, output.is_draft_token))
    spans = "".join(
        f'<span style="{STYLES[is_draft]}">{escape(text)}</span>'
        for text, is_draft in runs(tokens, drafted, tokenizer)
    )
    return f'<pre style="white-space:pre-wrap">{spans}</pre>'


def runs(
    tokens: Sequence[int], is_draft_token: Sequence[bool], tokenizer: Any
) -> Iterator[tuple[str, bool]]:
    """The text in runs of draft tokens and of the target's own, each with which it is."""
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or is_draft_token[end] != is_draft_token[start]:
            yield tokenizer.decode(tokens[start:end]), is_draft_token[start]
            start = end


def _check(
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    max_new_tokens: int | Sequence[int] | np.ndarray,
    target: Model,
    rounds: int,
) -> tuple[np.ndarray, int]:
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one round passes between two pieces")
    check_rows(prompts, keys, sampling)
    return budget(max_new_tokens, prompts, target)


def _pieces(
    start: Callable[[], DecodeState],
    advance: Callable[[DecodeState], DecodeState],
    collect: Callable[[DecodeState], GenerationOutput],
) -> Iterator[GenerationOutput]:
    """Computes nothing before it is asked for its first piece."""
    state = start()
    while bool(unfinished(state)):
        state = advance(state)
        yield collect(state)


@functools.partial(
    jax.jit, static_argnames=("target", "drafter", "rule", "rounds"), donate_argnames=("state",)
)
def _run_rounds(
    params: Params,
    draft_params: Params,
    state: DecodeState,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule,
    rounds: int,
) -> DecodeState:
    """A few rounds; a finished row passes them unchanged."""

    def advance(_: int, state: DecodeState) -> DecodeState:
        return speculate(
            params, draft_params, state, keys, sampling, target=target, drafter=drafter, rule=rule
        )

    return jax.lax.fori_loop(0, rounds, advance, state)


@functools.partial(jax.jit, static_argnames=("target", "rounds"), donate_argnames=("state",))
def _run_plain(
    params: Params,
    state: DecodeState,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    rounds: int,
) -> DecodeState:
    def advance(_: int, state: DecodeState) -> DecodeState:
        return decode_one_token(params, state, keys, sampling, target=target)

    return jax.lax.fori_loop(0, rounds, advance, state)


def _serve(
    params: Params,
    draft_params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    max_new_tokens: np.ndarray,
    models: dict[str, Any],
    *,
    room: int,
    slots: int,
) -> Iterator[tuple[int, GenerationOutput]]:
    """Computes nothing before it is asked for its first output."""
    count = len(prompts.length)

    def start(indices: np.ndarray) -> DecodeState:
        rows, most = take_rows((prompts, max_new_tokens), indices)
        return start_decoding(params, draft_params, rows, most, **models, room=room)

    serving = np.arange(min(slots, count))
    state, following = start(serving), len(serving)
    while np.any(serving < count):
        rows = take_rows((keys, sampling), np.minimum(serving, count - 1))
        state, reasons = run_until_one_finishes(params, draft_params, state, *rows, **models)
        for slot in np.flatnonzero((np.asarray(reasons) != RUNNING) & (serving < count)):
            prompt = take_rows(prompts, serving[slot][None])
            yield int(serving[slot]), _output_of(state, prompt, slot, room=room)
            # Once the last prompt has a slot, indices past it mark the free ones.
            serving[slot], following = following, following + 1
            if serving[slot] < count:
                state = fill_slot(state, start(serving[slot][None]), slot)
            else:
                state = state.replace(finish_reason=state.finish_reason.at[slot].set(FREE))


@functools.partial(jax.jit, donate_argnames=("state",))
def fill_slot(state: DecodeState, fresh: DecodeState, slot: Array) -> DecodeState:
    """Puts the only row of `fresh` in the place of one of `state`."""
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=0)
    return jax.tree.map(put, state, fresh)


@functools.partial(
    jax.jit, static_argnames=("target", "drafter", "rule"), donate_argnames=("state",)
)
def run_until_one_finishes(
    params: Params,
    draft_params: Params,
    state: DecodeState,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule,
) -> tuple[DecodeState, Array]:
    """Rounds of the whole batch, until a slot that is not free finishes; the reasons `[B]`."""

    def full(state: DecodeState) -> Array:
        reason = state.finish_reason
        return jnp.all((reason == RUNNING) | (reason == FREE)) & unfinished(state)

    def advance(state: DecodeState) -> DecodeState:
        return speculate(
            params, draft_params, state, keys, sampling, target=target, drafter=drafter, rule=rule
        )

    state = jax.lax.while_loop(full, advance, state)
    # On every device, so that each process of a launch can read all of it.
    return state, constrain(state.finish_reason, None)


def take_rows(tree: Any, rows: np.ndarray | slice) -> Any:
    """The rows of everything that has a batch."""
    return jax.tree.map(lambda x: x[rows], tree)


@functools.partial(jax.jit, static_argnames=("room",))
def _output_of(
    state: DecodeState, prompts: PaddedPrompts, slot: Array, *, room: int
) -> GenerationOutput:
    """What one slot of the batch has generated after its prompt."""
    alone = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), state)
    return collect_output(alone, prompts, room)
