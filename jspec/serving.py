"""Serving: tokens as they are generated, continuous batching, and text from tokens."""

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
FREE = 3


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
LONGEST = 4  # bytes of a character, and so tokens


@dataclass(frozen=True)
class TextReader:
    """Reads the pieces of one text, to the same end however it is cut into them.

    >>> output = engine.generate("import os\\n", max_new_tokens=64).output
    >>> TextReader(tokenizer, stop=["\\n\\n"]).read(output).text

    Attributes:
      tokenizer: one of transformers, or another that decodes lists of tokens.
      stop: strings before which the text ends: the one that is complete first, and of several the
        longest.
      prompt_tokens: without which many tokenizers drop a space at the beginning.
    """

    tokenizer: Any
    stop: Sequence[str] = ()
    prompt_tokens: Sequence[int] = ()

    def read(self, piece: GenerationOutput, row: int = 0, *, ended: bool = False) -> TextPiece:
        """The text of one row; once it has `ended` there is nothing left to wait for."""
        count = int(piece.length[row])
        stopped = int(piece.finish_reason[row]) == STOP
        ids = piece.tokens[row, : count - stopped].tolist()
        text = self._decode(ids) if ended else self._settled(ids)
        # The smallest end, and there the smallest start: no later piece can have another.
        found = [(text.index(s) + len(s), text.index(s)) for s in self.stop if s in text]
        if found:
            end, start = min(found)
            return TextPiece(text[:start], start, self._needed(ids, text[:end]), stopped=True)
        return TextPiece(text, len(text) if ended else ready(text, self.stop), count)

    def _decode(self, ids: Sequence[int]) -> str:
        """The text after the prompt's."""
        start = max(self._whole(self.prompt_tokens) - LONGEST, 0)
        near = list(self.prompt_tokens[start:])
        before, text = self.tokenizer.decode(near), self.tokenizer.decode([*near, *ids])
        # A character whose first bytes the prompt ends with is generated.
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
