"""Tokenizing a data set by what its columns are: plain texts, conversations, or pairs."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jspec.formats.encoding import check_tokens, encode_texts
from jspec.training.conversations import (
    NO_TEMPLATE,
    Conversation,
    as_turns,
    tokenize_conversation,
)

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS = ("text", "content")
CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
TOOLS = "tools"
ROWS_AT_A_TIME = 256
NAMED = 3  # rows that cannot be used

NOTHING = Conversation([], [], [], True)

Rows = dict[str, list[Any]]  # of a data set, by column


class Tokenized(NamedTuple):
    """A data set that was tokenized.

    Attributes:
      table: a row for each that can be used: `tokens` and loss `weight` `[n]`, their `length`, and
        of a conversation the `prompt` of its first learned turn, whose `prompt_length` is 0 in
        other texts.
      rows: of the data set.
      unusable: how many of them are left out; reasons: of the first of these, with their numbers.
      shortened: of how many conversations not all turns of the assistant are learned.
    """

    table: "Dataset"
    rows: int
    unusable: int
    reasons: tuple[str, ...]
    shortened: int


def tokenize(
    table: "Dataset",
    tokenizer: Any,
    end_of_text: int,
    *,
    vocab_size: int,
    column: str = "",
    numbers: np.ndarray | None = None,
) -> Tokenized:
    """Tokenizes a data set, by what its columns are.

    All of a text is learned, and `end_of_text` closes it. Of a conversation the assistant's turns
    are learned, with what the tokenizer's chat template writes to end them. A pair of prompt and
    completion is a conversation. A row that cannot be used is left out and told of.

    Args:
      vocab_size: the model's; a row with other tokens cannot be used.
      column: which to take; empty to find it by its name.
      numbers: `[n]` of the rows, where they come from a larger table.

    Raises `ValueError` if no column is usable, naming those there are, or no row.
    """
    import datasets

    names = table.column_names
    encode = _encoder(table, tokenizer, end_of_text, column)
    integers, floats = (datasets.Sequence(datasets.Value(kind)) for kind in ("int32", "float32"))
    features = datasets.Features(
        tokens=integers,
        weight=floats,
        length=datasets.Value("int32"),
        prompt=integers,
        prompt_length=datasets.Value("int32"),
        whole=datasets.Value("bool"),
        reason=datasets.Value("string"),
    )
    done = table.map(
        lambda rows: _columns(encode(rows), tokenizer, vocab_size),
        batched=True,
        batch_size=ROWS_AT_A_TIME,
        remove_columns=names,
        features=features,
        load_from_cache_file=False,
    )
    reasons = np.array(done["reason"], dtype=object)
    usable = np.flatnonzero(reasons == "")
    unusable = np.flatnonzero(reasons != "")
    numbers = np.arange(len(table)) if numbers is None else numbers
    told = tuple(f"row {numbers[row]}: {reasons[row]}" for row in unusable[:NAMED])
    if not len(usable):
        raise ValueError(f"text: none of {len(table)} rows can be used: {'; '.join(told)}")
    if len(unusable):
        done = done.select(usable)
    shortened = len(done) - sum(done["whole"])
    kept = done.remove_columns(["whole", "reason"]).with_format("numpy")
    return Tokenized(kept, len(table), len(unusable), told, shortened)


def _encoder(
    table: "Dataset", tokenizer: Any, end_of_text: int, column: str
) -> Callable[[Rows], list[Conversation | str]]:
    """A function of rows: each tokenized, or the reason why it cannot be used."""
    names = table.column_names
    if column and column not in names:
        raise ValueError(f"text.column={column!r} does not exist: there are {', '.join(names)}")
    # Data sets of pairs and conversations often have all of it as one text, too.
    known = [column] if column else [name for name in CONVERSATIONS if name in names]
    pair = None if known else next((pair for pair in PAIRS if set(pair) <= set(names)), None)
    if not (known or pair):
        known = [name for name in TEXTS if name in names]
    if known and _holds_text(table, known[0]):
        return functools.partial(_texts, tokenizer=tokenizer, column=known[0], end=end_of_text)
    if not (known or pair):
        raise ValueError(
            f"text: no usable column among {', '.join(names)}: one of "
            f"{', '.join((*CONVERSATIONS, *TEXTS))}, or {' or '.join(map('+'.join, PAIRS))}; "
            "text.column names another"
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(NO_TEMPLATE)
    turns = functools.partial(_pairs, pair=pair) if pair else lambda rows: rows[known[0]]
    return functools.partial(_conversations, tokenizer=tokenizer, turns=turns)


def _holds_text(table: "Dataset", column: str) -> bool:
    """Whether a column is of plain texts, and not of conversations as JSON's text."""
    if not str(getattr(table.features[column], "dtype", "")).endswith("string"):
        return False
    some = table[:ROWS_AT_A_TIME][column]
    lists = any(text.lstrip().startswith("[") for text in some if text)
    return column not in CONVERSATIONS or not lists


def _texts(rows: Rows, *, tokenizer: Any, column: str, end: int) -> list[Conversation | str]:
    """Texts that are learned from start to end."""
    given = rows[column]
    encoded = iter(encode_texts(tokenizer, [text for text in given if isinstance(text, str)]))
    found: list[Conversation | str] = []
    for text in given:
        if not isinstance(text, str):
            found.append(f"{column} is {text!r}, where text belongs")
            continue
        ids = next(encoded)
        ids = ids if ids[-1:] == [end] else [*ids, end]
        found.append(Conversation(ids, [1.0] * len(ids), [], True))
    return found


def _conversations(
    rows: Rows, *, tokenizer: Any, turns: Callable[[Rows], Sequence[Any]]
) -> list[Conversation | str]:
    """Conversations, of which the assistant's turns are learned."""
    found: list[Conversation | str] = []
    given = turns(rows)
    for one, tools in zip(given, rows.get(TOOLS, [None] * len(given)), strict=True):
        try:
            found.append(tokenize_conversation(one, tools, tokenizer))
        except ValueError as error:
            found.append(str(error))
    return found


def _pairs(rows: Rows, *, pair: tuple[str, str]) -> list[list[Any]]:
    added = rows.get("input", [""] * len(rows[pair[0]]))
    return [
        as_turns(prompt, completion, more)
        for prompt, more, completion in zip(rows[pair[0]], added, rows[pair[1]], strict=True)
    ]


def _columns(rows: list[Conversation | str], tokenizer: Any, vocab_size: int) -> Rows:
    """Rows as columns of a table; what cannot be used is empty beside its reason."""
    kept: list[tuple[Conversation, str]] = []
    for row in rows:
        reason = row if isinstance(row, str) else _unknown(row.tokens, tokenizer, vocab_size)
        kept.append((NOTHING if reason or isinstance(row, str) else row, reason))
    return {
        "tokens": [row.tokens for row, _ in kept],
        "weight": [row.weight for row, _ in kept],
        "length": [len(row.tokens) for row, _ in kept],
        "prompt": [row.prompt for row, _ in kept],
        "prompt_length": [len(row.prompt) for row, _ in kept],
        "whole": [row.whole for row, _ in kept],
        "reason": [reason for _, reason in kept],
    }


def _unknown(tokens: Sequence[int], tokenizer: Any, vocab_size: int) -> str:
    """Why the model cannot read tokens; empty if it can."""
    try:
        check_tokens(tokens, tokenizer, vocab_size)
    except ValueError as error:
        return str(error)
    return ""
