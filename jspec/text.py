"""From tokens to text while it is written: only what stays, and not past a stop string."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jspec.state import STOPPED, Generation

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
