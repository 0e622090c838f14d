"""From tokens to text while it is written: whole characters only, and not past a stop string."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jspec.decode import STOPPED, Generation

PARTIAL = "\ufffd"  # what decoding puts where only some bytes of a character are there


def stream_text(
    pieces: Iterable[Generation], tokenizer: Any, *, until: Sequence[str] = (), row: int = 0
) -> Iterator[str]:
    """Yields what is new in each piece of a stream, and takes no more pieces after a stop string.

    Args:
      pieces: of `stream` or `stream_plain`.
      until: strings before which the text ends.
      row: whose text, of a batch.
    """
    check_stop_strings(until)
    text, shown = "", 0
    for piece in pieces:
        text, found = cut(decode(piece, tokenizer, row), until)
        end = len(text) if found else ready(text, until)
        yield text[shown : max(end, shown)]
        shown = max(end, shown)
        if found:
            return
    yield text[shown:]


def check_stop_strings(until: Sequence[str]) -> None:
    """Raises `ValueError` for an empty one, which every text would end with."""
    for string in until:
        if not string:
            raise ValueError("until='': a stop string has at least one character")


def decode(piece: Generation, tokenizer: Any, row: int = 0) -> str:
    """The text of one row, without the end of text that it stopped at."""
    length = int(piece.length[row]) - (int(piece.reason[row]) == STOPPED)
    return tokenizer.decode(piece.tokens[row, :length].tolist())


def cut(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there was one."""
    found = [text.index(string) for string in until if string in text]
    return (text[: min(found)], True) if found else (text, False)


def ready(text: str, until: Sequence[str]) -> int:
    """How many characters no later token can change: not those of which bytes are missing, nor
    what may be the beginning of a stop string."""
    whole = text.rstrip(PARTIAL)
    held = (n for string in until for n in range(len(string)) if whole.endswith(string[:n]))
    return len(whole) - max(held, default=0)
