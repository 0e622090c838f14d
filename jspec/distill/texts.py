"""Texts to learn from, through `datasets`: found, tokenized, with what of them is to be learned."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jspec.distill.data import Document

if TYPE_CHECKING:
    from datasets import Dataset

READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
TEXTS = ("text", "content")
CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
# Names of the speakers in the field's data sets, by the name that chat templates know.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
ROWS_AT_A_TIME = 256

Rows = dict[str, list[Any]]  # of a data set, by column


def read(
    source: str, *, split: str = "train", cache: Path | None = None, name: str = "text"
) -> "Dataset":
    """A data set: a local JSON, JSON lines, Parquet, text or Arrow file, a folder, or a hub name.

    Args:
      cache: where `datasets` keeps what it has read; its own place if None.
      name: the argument that asks for it.
    """
    import datasets

    place = Path(source).expanduser()
    kept = None if cache is None else str(cache)
    try:
        if place.suffix == ".arrow" and place.is_file():
            return datasets.Dataset.from_file(str(place))
        if place.is_file():
            if place.suffix not in READERS:
                raise ValueError(f"a file ends in .arrow, {', '.join(READERS)}")
            options = {"sample_by": "document"} if READERS[place.suffix] == "text" else {}
            return datasets.load_dataset(
                READERS[place.suffix], data_files=str(place), split="train", cache_dir=kept,
                **options,
            )  # fmt: skip
        if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(place))
            return found if isinstance(found, datasets.Dataset) else found[split]
        books = sorted(map(str, place.rglob("*.txt"))) if place.is_dir() else []
        if books:
            return datasets.load_dataset(
                "text", data_files=books, sample_by="document", split="train", cache_dir=kept
            )
        return datasets.load_dataset(
            str(place) if place.is_dir() else source, split=split, cache_dir=kept
        )
    # Whatever the readers raise: bad files, missing splits, no network.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name}.source={source!r}, split {split!r}: cannot be read ({type(error).__name__}: "
            f"{reason[:300]}): give a file ({', '.join(READERS)}, .arrow), a folder, or, with "
            "network, a data set's name on the hub"
        ) from error


@dataclass(frozen=True, eq=False)
class Texts(Sequence[Document]):
    """Tokenized texts, read when they are asked for.

    Attributes:
      table: rows of `tokens` and `weight` `[n]`, their `length`, and in `prompt` how many tokens of
        a conversation come before the first that counts; 0 of other texts.
      temperatures: one for each text, of its loss; None for 1.
    """

    table: "Dataset"
    temperatures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Document:
        row = self.table[int(index)]
        temperature = 1.0 if self.temperatures is None else float(self.temperatures[index])
        return Document(row["tokens"], row["weight"], temperature)

    def at(self, temperatures: np.ndarray) -> "Texts":
        """The same texts at other temperatures of the loss."""
        return dataclasses.replace(self, temperatures=temperatures)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[n]` tokens of each."""
        return np.asarray(self.table["length"])

    @functools.cached_property
    def prompts(self) -> np.ndarray:
        """`[n]` tokens of each that come before the first that counts."""
        return np.asarray(self.table["prompt"])


def tokenize(
    table: "Dataset", tokenizer: Any, end_of_text: int, *, column: str = ""
) -> "tuple[Dataset, int]":
    """The table of `Texts`, by what the columns of a data set are.

    Text counts whole and is closed by `end_of_text`. Of a conversation the assistant's turns count,
    with what the tokenizer's chat template writes to end them; where a template rewrites earlier
    turns, the last one alone. So do pairs of a prompt and its answer.

    Args:
      column: which to take; by its name, if empty.

    Returns:
      The table, and of how many conversations only the last turn counts. Raises `ValueError` if
      no column is usable, naming those there are.
    """
    names = table.column_names
    if column and column not in names:
        raise ValueError(f"text.column={column!r} is not there: there are {', '.join(names)}")
    # Data sets of pairs and conversations often have them as one text, too.
    known = [column] if column else [name for name in CONVERSATIONS if name in names]
    pair = None if known else next((pair for pair in PAIRS if set(pair) <= set(names)), None)
    if not (known or pair):
        known = [name for name in TEXTS if name in names]
    if known and str(getattr(table.features[known[0]], "dtype", "")).endswith("string"):
        encode = functools.partial(_whole, tokenizer=tokenizer, column=known[0], end=end_of_text)
    elif known or pair:
        _check_template(tokenizer)
        talks = operator.itemgetter(known[0]) if known else functools.partial(_pairs, pair=pair)
        encode = functools.partial(_answers, tokenizer=tokenizer, talks=talks)
    else:
        raise ValueError(
            f"text: no usable column among {', '.join(names)}: one of "
            f"{', '.join((*CONVERSATIONS, *TEXTS))}, or {' or '.join(map('+'.join, PAIRS))}; "
            "text.column names another"
        )
    told = table.map(
        encode,
        batched=True,
        batch_size=ROWS_AT_A_TIME,
        remove_columns=names,
        load_from_cache_file=False,
    )
    if not any(told["counts"]):
        raise ValueError(
            "text: nothing in it is to be learned: conversations need turns of the assistant"
        )
    shortened = len(told) - sum(told["whole"])
    return told.remove_columns(["whole", "counts"]).with_format("numpy"), shortened


def _check_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "text: conversations need a tokenizer with a chat template, and the target's has none: "
            "give plain text, or put chat_template.jinja beside its tokenizer.json"
        )


def _whole(rows: Rows, *, tokenizer: Any, column: str, end: int) -> Rows:
    """Texts that count from end to end."""
    for text in rows[column]:
        if not isinstance(text, str):
            raise ValueError(f"text: a row has {column}={text!r}, where text belongs: leave it out")
    encoded = tokenizer(rows[column], add_special_tokens=False, verbose=False)["input_ids"]
    ids = [[*row, end] for row in encoded]
    return _told(ids, [[1.0] * len(row) for row in ids], [True] * len(ids))


def _answers(rows: Rows, *, tokenizer: Any, talks: Callable[[Rows], Any]) -> Rows:
    """Conversations of which the assistant's turns count."""
    return _told(*zip(*(_converse(talk, tokenizer) for talk in talks(rows)), strict=True))


def _told(tokens: Any, weight: Any, whole: Any) -> Rows:
    return {
        "tokens": list(tokens),
        "weight": list(weight),
        "length": [len(row) for row in tokens],
        "prompt": [int(np.argmax(row)) if len(row) else 0 for row in weight],
        "whole": list(whole),
        "counts": [bool(np.any(row)) for row in weight],
    }


def _pairs(rows: Rows, *, pair: tuple[str, str]) -> list[list[dict[str, str]]]:
    """Prompts and answers as conversations, if they are not pieces of one already; Alpaca's `input`
    follows its instruction."""
    added = rows.get("input", [""] * len(rows[pair[0]]))
    return [
        [*asked, *answered]
        if isinstance(asked, list) and isinstance(answered, list)
        else [
            {"role": "user", "content": f"{asked}\n\n{more}" if more else asked},
            {"role": "assistant", "content": answered},
        ]
        for asked, more, answered in zip(rows[pair[0]], added, rows[pair[1]], strict=True)
    ]


def _converse(talk: list[dict[str, str]], tokenizer: Any) -> tuple[list[int], list[float], bool]:
    """Tokens, how much each counts, and whether all of the assistant's turns do."""
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
    """Where a turn begins and ends in the whole text; None if the template rewrote it."""
    before = tokenizer.apply_chat_template(
        messages[:turn], tokenize=False, add_generation_prompt=True
    )
    through = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
    if whole.startswith(before) and whole.startswith(through):
        return len(before), len(through)
    return None


def _message(turn: dict[str, str]) -> dict[str, str]:
    """A turn as chat templates take it, from either way of writing them."""
    if not isinstance(turn, dict):
        raise ValueError(f"text: a turn is {turn!r}, where role and content belong")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(
            f"text: a turn is {turn!r}: it needs role and content, or from and value, all text"
        )
    return {"role": ROLES.get(role, role), "content": content}
