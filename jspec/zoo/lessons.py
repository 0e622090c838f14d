"""Texts to distil on: the zoo's corpus, or anybody's."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jspec.distill.checkpoints import Note
from jspec.distill.recipe import Text
from jspec.distill.texts import Texts, read, tokenize
from jspec.zoo import PREFIX
from jspec.zoo.corpus import held_out_documents, out_of_domain_documents, training_documents

if TYPE_CHECKING:
    from datasets import Dataset

CORPUS, PROSE = "zoo:corpus", "zoo:prose"
KNOWN = {"text": CORPUS, "elsewhere": PROSE}


def lessons(
    wanted: Text, tokenizer: Any, end_of_text: int, *, cache: Path, note: Note
) -> tuple[Texts, Texts]:
    """Texts to learn from, and others that are kept for measuring.

    Args:
      cache: where what is read is kept; note: told of conversations that are not learned whole.
    """
    import datasets

    if wanted.source == CORPUS:
        seen, kept = (
            datasets.Dataset.from_dict({"text": documents})
            for documents in (training_documents(), held_out_documents())
        )
    else:
        table = read(_outside(wanted.source, "text"), split=wanted.split, cache=cache)
        seen, kept = _split(table, wanted)
    told = [tokenize(part, tokenizer, end_of_text, column=wanted.column) for part in (seen, kept)]
    shortened = sum(count for _, count in told)
    if shortened:
        note(
            f"of {shortened} conversations the last turn alone is learned: the tokenizer's chat "
            "template rewrites earlier ones"
        )
    return Texts(told[0][0]), Texts(told[1][0])


def elsewhere(wanted: Text, tokenizer: Any, end_of_text: int, *, cache: Path) -> Texts:
    """Texts of another domain, to measure on alone."""
    import datasets

    if wanted.source == PROSE:
        table = datasets.Dataset.from_dict({"text": out_of_domain_documents()})
    else:
        table = read(
            _outside(wanted.source, "elsewhere"), split=wanted.split, cache=cache, name="elsewhere"
        )
    return Texts(tokenize(table, tokenizer, end_of_text, column=wanted.column)[0])


def _outside(source: str, name: str) -> str:
    if source.startswith(PREFIX):
        raise ValueError(f"{name}.source={source!r}: of the zoo it can be {KNOWN[name]}")
    return source


def _split(table: "Dataset", wanted: Text) -> "tuple[Dataset, Dataset]":
    """Rows to learn from and rows that are held out; of a single text, its end is."""
    text = table[0].get(wanted.column or "text") if len(table) == 1 else None
    if isinstance(text, str):
        place = round(len(text) * (1 - wanted.held_out))
        return tuple(table.from_dict({"text": [part]}) for part in (text[:place], text[place:]))
    if len(table) < 2:
        raise ValueError(
            f"text.source={wanted.source!r} has {len(table)} rows: at least two are needed, one to "
            "learn from and one to measure on"
        )
    count = min(max(1, round(len(table) * wanted.held_out)), len(table) - 1)
    parts = table.train_test_split(count, seed=0)
    return parts["train"], parts["test"]
