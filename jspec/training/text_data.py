"""Training texts: the zoo's corpus, a file, a folder or a data set, some of it held out.

Data sets are read through `datasets`; what is tokenized is read from disk when it is asked for.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jspec.formats.encoding import beginning
from jspec.training.checkpoints import Note
from jspec.training.data import Document
from jspec.training.recipe import Text
from jspec.training.tokenization import NAMED, Tokenized, tokenize
from jspec.zoo import ZOO
from jspec.zoo.corpus import held_out_documents, out_of_domain_documents, training_documents

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
CORPUS, PROSE = "zoo:corpus", "zoo:prose"
OF_THE_ZOO = {"text": CORPUS, "elsewhere": PROSE}


@dataclass(frozen=True, eq=False)
class Texts(Sequence[Document]):
    """Tokenized texts, read when they are asked for.

    Attributes:
      table: as `tokenize` makes it.
      temperatures: one for each text, of its loss; None for 1.
      beginning: tokens with which the tokenizer begins every text.
    """

    table: "Dataset"
    temperatures: np.ndarray | None = None
    beginning: tuple[int, ...] = ()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.table)

    def __getitem__(self, index: int) -> Document:  # type: ignore[override]
        """The text at a place."""
        row = self.table[int(index)]
        temperature = 1.0 if self.temperatures is None else float(self.temperatures[index])
        return Document(row["tokens"], row["weight"], temperature)

    def at(self, temperatures: np.ndarray) -> "Texts":
        """The same texts with other loss temperatures `[n]`."""
        return dataclasses.replace(self, temperatures=temperatures)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[n]` tokens of each."""
        return np.asarray(self.table["length"])

    @functools.cached_property
    def prompt_lengths(self) -> np.ndarray:
        """`[n]` tokens of the prompt of a conversation's first learned turn; 0 in other texts."""
        return np.asarray(self.table["prompt_length"])

    def prompt(self, index: int) -> np.ndarray:
        """The tokens of that prompt, as it is served."""
        return self.table[int(index)]["prompt"]


def load_texts(
    wanted: Text, tokenizer: Any, end_of_text: int, *, vocab_size: int, cache: Path, note: Note
) -> tuple[Texts, Texts]:
    """Texts to train on, and held-out ones.

    Args:
      vocab_size: the model's, which may be less than the tokenizer's.
      cache: where `datasets` keeps what it reads.
      note: called with which rows are left out, and how many conversations are learned in part.

    Raises `ValueError` if no row can be used, with the reasons of the first.
    """
    import datasets

    if wanted.source == CORPUS:
        parts = [
            (datasets.Dataset.from_dict({"text": documents}), None)
            for documents in (training_documents(), held_out_documents())
        ]
    else:
        source = _not_of_the_zoo(wanted.source, "text")
        parts = _split(read_dataset(source, split=wanted.split, cache=cache), wanted)
    found = [
        tokenize(
            table, tokenizer, end_of_text,
            vocab_size=vocab_size, column=wanted.column, numbers=numbers,
        )
        for table, numbers in parts
    ]  # fmt: skip
    _tell(found, note)
    training, held_out = (Texts(one.table, beginning=beginning(tokenizer)) for one in found)
    return training, held_out


def load_out_of_domain(
    wanted: Text, tokenizer: Any, end_of_text: int, *, vocab_size: int, cache: Path
) -> Texts:
    """Texts of another domain, for evaluation only."""
    import datasets

    if wanted.source == PROSE:
        table = datasets.Dataset.from_dict({"text": out_of_domain_documents()})
    else:
        source = _not_of_the_zoo(wanted.source, "elsewhere")
        table = read_dataset(source, split=wanted.split, cache=cache, name="elsewhere")
    done = tokenize(table, tokenizer, end_of_text, vocab_size=vocab_size, column=wanted.column)
    return Texts(done.table, beginning=beginning(tokenizer))


def read_dataset(
    source: str, *, split: str = "train", cache: Path | None = None, name: str = "text"
) -> "Dataset":
    """A data set: a local JSON, JSON lines, Parquet, text or Arrow file, a folder, or a hub name.

    Args:
      cache: where `datasets` keeps what it reads; its own folder if None.
      name: of the argument, for errors.
    """
    import datasets

    place = Path(source).expanduser()
    cache_dir = None if cache is None else str(cache)
    try:
        if place.suffix == ".arrow" and place.is_file():
            return datasets.Dataset.from_file(str(place))
        if place.is_file():
            if place.suffix not in READERS:
                raise ValueError(f"a file ends in .arrow, {', '.join(READERS)}")
            options: Any = {"sample_by": "document"} if READERS[place.suffix] == "text" else {}
            return datasets.load_dataset(
                READERS[place.suffix], data_files=str(place), split="train", cache_dir=cache_dir,
                **options,
            )  # fmt: skip
        if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(place))
            return found if isinstance(found, datasets.Dataset) else found[split]
        books = sorted(map(str, place.rglob("*.txt"))) if place.is_dir() else []
        if books:
            return datasets.load_dataset(
                "text", data_files=books, sample_by="document", split="train", cache_dir=cache_dir
            )
        return datasets.load_dataset(
            str(place) if place.is_dir() else source, split=split, cache_dir=cache_dir
        )
    # Whatever the readers raise: bad files, missing splits, no network.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name}.source={source!r}, split {split!r}: cannot be read ({type(error).__name__}: "
            f"{reason[:300]}): give a file ({', '.join(READERS)}, .arrow), a folder, or, with "
            "network, a data set's name on the hub"
        ) from error


def _not_of_the_zoo(source: str, name: str) -> str:
    if source.startswith(ZOO):
        raise ValueError(f"{name}.source={source!r}: of the zoo it can be {OF_THE_ZOO[name]}")
    return source


def _tell(found: Sequence[Tokenized], note: Note) -> None:
    """Says what of a data set is not learned."""
    unusable, rows = sum(one.unusable for one in found), sum(one.rows for one in found)
    if unusable:
        reasons = [reason for one in found for reason in one.reasons]
        more = "" if unusable <= NAMED else ", and so on"
        note(f"{unusable} of {rows} rows cannot be used: {'; '.join(reasons[:NAMED])}{more}")
    shortened = sum(one.shortened for one in found)
    if shortened:
        note(
            f"of {shortened} conversations only the last turn is learned: the tokenizer's chat "
            "template rewrites earlier ones"
        )


def _split(table: "Dataset", wanted: Text) -> "list[tuple[Dataset, np.ndarray | None]]":
    """Rows to train on and rows that are held out, and their numbers; of a single text, its end is
    held out."""
    text = table[0].get(wanted.column or "text") if len(table) == 1 else None
    if isinstance(text, str):
        place = round(len(text) * (1 - wanted.held_out))
        return [(table.from_dict({"text": [part]}), None) for part in (text[:place], text[place:])]
    if len(table) < 2:
        raise ValueError(
            f"text.source={wanted.source!r} has {len(table)} rows: at least two are needed, one to "
            "train on and one to evaluate on"
        )
    count = min(max(1, round(len(table) * wanted.held_out)), len(table) - 1)
    order = np.random.default_rng(0).permutation(len(table))
    return [(table.select(rows), rows) for rows in (order[count:], order[:count])]
