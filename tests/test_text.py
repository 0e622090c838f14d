"""Text while it is written: whole characters, and nothing of a stop string."""

import numpy as np
import pytest

from jspec import Generation
from jspec.decode import EXHAUSTED, STOPPED
from jspec.text import ready, stream_text


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def pieces(text: str, size: int, stopped: bool = False):
    """A stream that writes `size` bytes at a time, with an end of text behind them if asked."""
    tokens = np.frombuffer(text.encode() + b"\x00" * stopped, np.uint8).astype(np.int32)
    for end in range(size, len(tokens) + size, size):
        length = min(end, len(tokens))
        done = (STOPPED if stopped else EXHAUSTED) if length == len(tokens) else 0
        count = np.array([length])
        yield Generation(tokens[None], count, None, np.array([done]), None, None, None)


TEXT = "naïve 漢字 🙂🙂 end\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_pieces_are_whole_characters_and_together_the_text(size, stopped):
    parts = list(stream_text(pieces(TEXT, size, stopped), Bytes()))
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (["字"], "naïve 漢"),
        (["end", "🙂🙂"], "naïve 漢字 "),
        (["🙂 end"], "naïve 漢字 🙂"),
        (["end\nmore", "ve漢"], TEXT),
        (["n"], ""),
    ],
)
def test_a_stop_string_ends_the_text_and_nothing_of_it_is_shown(size, until, expected):
    parts = list(stream_text(pieces(TEXT, size), Bytes(), until=until))
    assert "".join(parts) == expected


def test_no_more_pieces_are_asked_for_after_a_stop_string():
    asked = []

    def counted():
        for piece in pieces("abcdef", 1):
            asked.append(piece)
            yield piece

    assert "".join(stream_text(counted(), Bytes(), until=["cd"])) == "ab"
    assert len(asked) == 4


def test_what_may_begin_a_stop_string_waits():
    assert ready("some STO", ["STOP"]) == len("some ")
    assert ready("some STOP it", ["STOPS"]) == len("some STOP it")
    assert ready("aa", ["aab", "ab"]) == 0


def test_text_that_really_holds_the_replacement_character_is_written_in_the_end():
    assert "".join(stream_text(pieces("odd \ufffd", 2), Bytes())) == "odd \ufffd"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="^until='': a stop string"):
        list(stream_text(pieces(TEXT, 3), Bytes(), until=["x", ""]))
