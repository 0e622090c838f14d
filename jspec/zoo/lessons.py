"""Texts to distil on: the zoo's corpus, or anybody's."""

from pathlib import Path
from typing import Any

from jspec.distill.checkpoints import Note
from jspec.distill.recipe import Text
from jspec.distill.texts import Texts, read, tokenize
from jspec.zoo.corpus import held_out_documents, out_of_domain_documents, training_documents

CORPUS, PROSE = "zoo:corpus", "zoo:prose"


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
        table = read(wanted.source, split=wanted.split, cache=cache)
        if len(table) < 2:
            raise ValueError(
                f"text.source={wanted.source!r} has {len(table)} rows: at least two are needed, "
                "one to learn from and one to measure on"
            )
        parts = table.train_test_split(wanted.held_out, seed=0)
        seen, kept = parts["train"], parts["test"]
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
        table = read(wanted.source, split=wanted.split, cache=cache)
    return Texts(tokenize(table, tokenizer, end_of_text, column=wanted.column)[0])
