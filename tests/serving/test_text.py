"""Text while it is written: whole characters, and nothing of a stop string."""

import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jspec import GenerationOutput
from jspec.decode import LENGTH, STOP
from jspec.serving import TextReader, ready, stream_text


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def pieces(text: str, size: int, stopped: bool = False):
    """A stream that writes `size` bytes at a time, with an end of text behind them if asked."""
    tokens = [*text.encode(), *[0] * stopped]
    ends = [min(end, len(tokens)) for end in range(size, len(tokens) + size, size)]
    return cut_at(ends, tokens, STOP if stopped else LENGTH)


def cut_at(ends: Sequence[int], tokens: Sequence[int], reason: int = LENGTH):
    """A stream of these tokens in pieces that end there."""
    for end in ends:
        done, count = np.array([reason if end == len(tokens) else 0]), np.array([end])
        yield GenerationOutput(np.array([tokens]), count, None, done, None, None, None, None, None)


def every_way(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Where pieces may end."""
    for inner in itertools.product([False, True], repeat=len(tokens) - 1):
        yield (*np.flatnonzero(inner) + 1, len(tokens))


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
    parts = list(stream_text(pieces(TEXT, size), Bytes(), stop=until))
    assert "".join(parts) == expected


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (["cd", "abcdef"], "ab"),
        (["abcdef", "cd"], "ab"),
        (["bc", "bcde", "abcde"], "a"),
        (["cd", "bcd", "d"], "a"),
        (["éf", "cdéfg", "xyz"], "abcd"),
        (["gx", "fgh"], "abcdéfg"),
    ],
)
def test_of_stop_strings_the_one_that_is_complete_first_counts(until, expected):
    tokens = list("abcdéfg".encode())
    for ends in every_way(tokens):
        assert "".join(stream_text(cut_at(ends, tokens), Bytes(), stop=until)) == expected
        readings = [TextReader(Bytes(), until).read(piece) for piece in cut_at(ends, tokens)]
        counts = {reading.tokens for reading in readings if reading.stopped}
        whole = [n for n in range(9) if any(s in Bytes().decode(tokens[:n]) for s in until)]
        assert counts == set(whole[:1])


# Of a kind that Llama 2's is of: bytes where there is no token, and no space at the beginning.
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
A, B = 256, 257


@pytest.fixture(scope="module")
def falling_back() -> PreTrainedTokenizerFast:
    vocabulary = {**BYTES, "▁a": A, "b": B, "?": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="?", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("after", [(), (B, A), (A, *"漢".encode()), "漢".encode()[:1]])
@pytest.mark.parametrize(
    "tokens",
    [
        (A, *"é好".encode(), B),
        (A, *"é好".encode()[:-1]),
        (*"é".encode(), *b"\xe5", B, A),
        (*b"\xbc\xa2", A, A),
    ],
)
def test_bytes_are_shown_once_no_other_can_turn_them(falling_back, tokens, after):
    before, whole = falling_back.decode(list(after)), falling_back.decode([*after, *tokens])
    for ends in every_way(tokens):
        text = "".join(stream_text(cut_at(ends, tokens), falling_back, prompt_tokens=after))
        # Bytes that turn those of the prompt are shown with what became of them.
        kept = before if whole.startswith(before) else os.path.commonprefix([before, whole])
        assert kept + text == whole


def test_a_stop_string_of_bytes_counts_once_it_stays(falling_back):
    tokens = (A, *"é".encode(), *b"\xe5", B, *"é".encode(), B, B)
    reader = TextReader(falling_back, ["é"])
    for ends in every_way(tokens):
        cut = [reading for reading in map(reader.read, cut_at(ends, tokens)) if reading.stopped]
        assert {(reading.text, reading.tokens) for reading in cut} == {("a\ufffd\ufffd\ufffdb", 7)}


def test_a_prompt_and_its_text_are_what_both_are_together(falling_back):
    def text(tokens: Sequence[int], tokenizer, after: Sequence[int]) -> str:
        return "".join(stream_text(cut_at([len(tokens)], tokens), tokenizer, prompt_tokens=after))

    assert text([A], falling_back, ()) == "a"
    assert text([A], falling_back, [B]) == " a"
    assert text([A], falling_back, [A] * 9) == " a"
    *first, last = "漢".encode()
    assert text([last], Bytes(), first) == "漢"
    assert text(list(b"!"), Bytes(), "odd \ufffd".encode()) == "!"


# However long a text is


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """Of the kind of Llama 3 and Qwen: tokens are bytes, and may end within a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT, "好好 漢漢字 🙂🙃 né né"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Whole:
    """Decodes all of a text every time: what is meant, slowly."""

    def __init__(self, tokenizer, prompt: Sequence[int]) -> None:
        self.decode, self.prompt = tokenizer.decode, list(prompt)

    def after(self, ids: Sequence[int]) -> str:
        before, text = self.decode(self.prompt), self.decode([*self.prompt, *ids])
        return text[len(os.path.commonprefix([before, text])) :]

    def until(self, ids: list[int], stop: Sequence[str]) -> tuple[str, int]:
        """The text before the stop string that is complete first, and how many tokens it takes."""
        text, count = self.after(ids), len(ids)
        found = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
        if not found:
            return text, count
        end, start = min(found)
        while self.after(ids[: count - 1]).startswith(text[:end]):
            count -= 1
        return text[:start], count


def random_tokens(rng: np.random.Generator, tokenizer, size: int) -> list[int]:
    """Text, bytes that are none, and all that is between."""
    ids: list[int] = []
    vocabulary = len(tokenizer)
    while len(ids) < size:
        kind = rng.integers(4)
        if kind == 0:
            ids += rng.integers(vocabulary, size=rng.integers(1, 9)).tolist()
        elif kind == 1:
            ids += [int(rng.integers(vocabulary))] * int(rng.integers(1, 30))
        else:
            words = rng.choice(["né", "漢字", "🙂", " a b", "b", " ", "\ufffd"], rng.integers(1, 9))
            ids += tokenizer.encode("".join(words))
    return ids[:size]


@pytest.mark.parametrize("kind", ["byte_level", "falling_back"])
@pytest.mark.parametrize("seed", range(30))
def test_a_long_text_is_what_decoding_all_of_it_gives_however_it_is_cut(kind, seed, request):
    tokenizer, rng = request.getfixturevalue(kind), np.random.default_rng(seed)
    after = random_tokens(rng, tokenizer, int(rng.integers(0, 40)))
    tokens = random_tokens(rng, tokenizer, int(rng.integers(1, 400)))
    whole = Whole(tokenizer, after)
    text = whole.after(tokens)
    places = rng.integers(len(text) + 1, size=(3, 2)) if rng.random() < 0.7 else ()
    stop = [text[min(pair) : max(pair)][:7] for pair in places]
    stop = [string for string in stop if string]
    expected, count = whole.until(tokens, stop)
    for most in (1, 3, 50, 999):
        steps = np.cumsum(rng.integers(1, most + 1, size=len(tokens)))
        ends = [*steps[steps < len(tokens)].tolist(), len(tokens)]
        cut = list(cut_at(ends, tokens))
        shown = list(stream_text(iter(cut), tokenizer, stop=stop, prompt_tokens=after))
        assert "".join(shown) == expected
        reader = TextReader(tokenizer, stop, after)
        read = [reader.read(piece) for piece in cut]
        assert all(expected.startswith(one.text[: one.ready]) for one in read)
        assert reader.read(cut[-1], ended=True).tokens == count


class Counting:
    """How many tokens a tokenizer is asked to decode."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.count = tokenizer, 0
        self.convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

    def decode(self, ids: Sequence[int]) -> str:
        self.count += len(ids)
        return self.tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "falling_back"])
@pytest.mark.parametrize("stop", [[], ["never this", "nor\nthat"]])
def test_a_piece_costs_the_same_however_long_the_text_is(kind, stop, request):
    tokenizer, rng = Counting(request.getfixturevalue(kind)), np.random.default_rng(3)
    tokens = random_tokens(rng, tokenizer.tokenizer, 2000)
    reader, spent = TextReader(tokenizer, stop), []
    for piece in cut_at(range(1, len(tokens) + 1), tokens):
        tokenizer.count = 0
        assert not reader.read(piece).stopped
        spent.append(tokenizer.count)
    assert max(spent[-500:]) <= max(spent[:500]) + 60
    assert np.mean(spent[-500:]) < 1.2 * np.mean(spent[:500]) < 120


def test_a_reader_begins_again_where_a_piece_is_shorter_than_the_one_before():
    reader = TextReader(Bytes())
    for text in ("first", "two", "a"):
        (piece,) = cut_at([len(text)], list(text.encode()))
        assert reader.read(piece).text == text


def test_no_more_pieces_are_asked_for_after_a_stop_string():
    asked = []

    def counted():
        for piece in pieces("abcdef", 1):
            asked.append(piece)
            yield piece

    assert "".join(stream_text(counted(), Bytes(), stop=["cd"])) == "ab"
    assert len(asked) == 4


def test_what_may_begin_a_stop_string_waits():
    assert ready("some STO", ["STOP"]) == len("some ")
    assert ready("some STOP it", ["STOPS"]) == len("some STOP it")
    assert ready("aa", ["aab", "ab"]) == 0


def test_text_that_really_holds_the_replacement_character_is_written_in_the_end():
    assert "".join(stream_text(pieces("odd \ufffd", 2), Bytes())) == "odd \ufffd"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="^stop='': a stop string"):
        list(stream_text(pieces(TEXT, 3), Bytes(), stop=["x", ""]))
