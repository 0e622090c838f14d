"""Prompts out of what models of the zoo have not seen, and of what they have, ever the same."""

from collections.abc import Iterable
from typing import Any

from jspec.formats.encoding import beginning, encode_texts
from jspec.zoo.corpus import held_out_documents, out_of_domain_documents, training_documents

VALIDATED_ONE_IN = 8
READ = 16_000  # characters of a document: enough windows, and quick to encode


def held_out_prompts(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """`count` windows of `length` tokens of Python source out of held-out modules.

    The start of a module, where licences stand, is left out, and each module gives one window
    before any gives a second. A window begins with what the tokenizer begins a text with.

    Args:
      tokenizer: of transformers, as `Checkpoint.tokenizer` is.
    """
    return _windows(held_out_documents(), tokenizer, count, length)


def out_of_domain_prompts(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """The same out of prose: the topics of `pydoc`."""
    return _windows(out_of_domain_documents(), tokenizer, count, length)


def training_prompts(
    tokenizer: Any, count: int, length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """The same out of modules that the zoo learned from: `count` prompts to learn more from and, of
    other modules, one in `VALIDATED_ONE_IN` of them to validate by."""
    documents = training_documents()
    held_out = max(1, count // VALIDATED_ONE_IN)
    apart = documents[::VALIDATED_ONE_IN]
    rest = [text for place, text in enumerate(documents) if place % VALIDATED_ONE_IN]
    return (
        _windows(_spread(rest, count), tokenizer, count, length),
        _windows(_spread(apart, held_out), tokenizer, held_out, length),
    )


def _spread(documents: list[str], count: int) -> list[str]:
    """Some from everywhere, enough for `count` windows though many be short."""
    return documents[:: max(1, len(documents) // (2 * count + 8))]


def _windows(documents: Iterable[str], tokenizer: Any, count: int, length: int) -> list[list[int]]:
    if count < 1 or length < 1:
        raise ValueError(f"prompts={count}, length={length}: both must be at least 1")
    first = list(beginning(tokenizer))
    if length <= len(first):
        raise ValueError(f"length={length}: a text begins with {len(first)}, so ask for more")
    texts = [text[:READ] for text in documents]
    rows = [row[len(first) :] for row in encode_texts(tokenizer, texts)]
    taken = length - len(first)
    places = sorted(
        (start, document)
        for document, row in enumerate(rows)
        for start in range(length, len(row) - length + 1, length)
    )
    if len(places) < count:
        raise ValueError(
            f"prompts={count}: the documents hold {len(places)} windows of {length} tokens, "
            "so ask for fewer or shorter ones"
        )
    return [[*first, *rows[document][start : start + taken]] for start, document in places[:count]]
