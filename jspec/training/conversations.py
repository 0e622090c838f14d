"""Tokenizing a data set: plain texts, conversations and pairs, and which tokens are learned."""

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS = ("text", "content")
CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
# Names of speakers in public data sets, by the name that chat templates know.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
ROWS_AT_A_TIME = 256

Rows = dict[str, list[Any]]  # of a data set, by column


def tokenize(
    table: "Dataset", tokenizer: Any, end_of_text: int, *, column: str = ""
) -> "tuple[Dataset, int]":
    """Tokenizes a data set, by what its columns are.

    All of a text is learned, and `end_of_text` closes it. Of a conversation the assistant's turns
    are learned, with what the tokenizer's chat template writes to end them; where a template
    rewrites earlier turns, only the last one. A pair of prompt and completion is a conversation.

    Args:
      column: which to take; empty to find it by its name.

    Returns:
      Rows of `tokens` and loss `weight` `[n]`, their `length`, and `prompt`, how many tokens of a
      conversation come before the first that is learned (0 of other texts); and of how many
      conversations only the last turn is learned.

    Raises `ValueError` if no column is usable, naming those there are.
    """
    names = table.column_names
    if column and column not in names:
        raise ValueError(f"text.column={column!r} does not exist: there are {', '.join(names)}")
    # Data sets of pairs and conversations often have all of it as one text, too.
    known = [column] if column else [name for name in CONVERSATIONS if name in names]
    pair = None if known else next((pair for pair in PAIRS if set(pair) <= set(names)), None)
    if not (known or pair):
        known = [name for name in TEXTS if name in names]
    if known and str(getattr(table.features[known[0]], "dtype", "")).endswith("string"):
        encode = functools.partial(_texts, tokenizer=tokenizer, column=known[0], end=end_of_text)
    elif known or pair:
        _check_template(tokenizer)
        talks = functools.partial(_pairs, pair=pair) if pair else operator.itemgetter(known[0])
        encode = functools.partial(_conversations, tokenizer=tokenizer, talks=talks)
    else:
        raise ValueError(
            f"text: no usable column among {', '.join(names)}: one of "
            f"{', '.join((*CONVERSATIONS, *TEXTS))}, or {' or '.join(map('+'.join, PAIRS))}; "
            "text.column names another"
        )
    tokenized = table.map(
        encode,
        batched=True,
        batch_size=ROWS_AT_A_TIME,
        remove_columns=names,
        load_from_cache_file=False,
    )
    if not any(tokenized["learned"]):
        raise ValueError(
            "text: nothing in it is to be learned: conversations need turns of the assistant"
        )
    shortened = len(tokenized) - sum(tokenized["whole"])
    return tokenized.remove_columns(["whole", "learned"]).with_format("numpy"), shortened


def _check_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "text: conversations need a tokenizer with a chat template, and the target's has none: "
            "give plain text, or put chat_template.jinja beside its tokenizer.json"
        )


def _texts(rows: Rows, *, tokenizer: Any, column: str, end: int) -> Rows:
    """Texts that are learned from start to end."""
    for text in rows[column]:
        if not isinstance(text, str):
            raise ValueError(f"text: a row has {column}={text!r}, where text belongs: leave it out")
    encoded = tokenizer(rows[column], add_special_tokens=False, verbose=False)["input_ids"]
    ids = [[*row, end] for row in encoded]
    return _columns(ids, [[1.0] * len(row) for row in ids], [True] * len(ids))


def _conversations(rows: Rows, *, tokenizer: Any, talks: Callable[[Rows], Any]) -> Rows:
    """Conversations, of which the assistant's turns are learned."""
    return _columns(*zip(*(_conversation(talk, tokenizer) for talk in talks(rows)), strict=True))


def _columns(tokens: Any, weight: Any, whole: Any) -> Rows:
    return {
        "tokens": list(tokens),
        "weight": list(weight),
        "length": [len(row) for row in tokens],
        "prompt": [int(np.argmax(row)) if len(row) else 0 for row in weight],
        "whole": list(whole),
        "learned": [bool(np.any(row)) for row in weight],
    }


def _pairs(rows: Rows, *, pair: tuple[str, str]) -> list[list[Any]]:
    """Prompts and completions as conversations, unless they are parts of one already. Alpaca's
    `input` is added to its instruction."""
    added = rows.get("input", [""] * len(rows[pair[0]]))
    return [
        [*prompt, *completion]
        if isinstance(prompt, list) and isinstance(completion, list)
        else [
            {"role": "user", "content": f"{prompt}\n\n{more}" if more else prompt},
            {"role": "assistant", "content": completion},
        ]
        for prompt, more, completion in zip(rows[pair[0]], added, rows[pair[1]], strict=True)
    ]


def _conversation(
    talk: list[dict[str, str]], tokenizer: Any
) -> tuple[list[int], list[float], bool]:
    """Tokens, their weights, and whether all of the assistant's turns are learned."""
    if not isinstance(talk, list) or not talk:
        raise ValueError(f"text: a conversation is {talk!r}, where a list of turns belongs")
    messages = [_message(turn) for turn in talk]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = [_span(messages, turn, whole, tokenizer) for turn in turns]
    known = [span for span in spans if span is not None]
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    weight = [
        float(any(begin < last and first < end for begin, end in known))
        for first, last in encoded["offset_mapping"]
    ]
    return encoded["input_ids"], weight, len(known) == len(spans)


def _span(
    messages: list[dict[str, str]], turn: int, whole: str, tokenizer: Any
) -> tuple[int, int] | None:
    """Where a turn starts and ends in the whole text; None if the template rewrites it."""
    before = tokenizer.apply_chat_template(
        messages[:turn], tokenize=False, add_generation_prompt=True
    )
    through = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
    if whole.startswith(before) and whole.startswith(through):
        return len(before), len(through)
    return None


def _message(turn: dict[str, str]) -> dict[str, str]:
    """A turn as chat templates take it, from either way of writing it."""
    if not isinstance(turn, dict):
        raise ValueError(f"text: a turn is {turn!r}, where role and content belong")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(
            f"text: a turn is {turn!r}: it needs role and content, or from and value, all text"
        )
    return {"role": ROLES.get(role, role), "content": content}
