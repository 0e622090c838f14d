"""Who wrote what: the tokens that the draft had guessed, and those that the target supplied."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from jspec.state import Generation

# Dark enough on white, light enough on black.
STYLES = {True: "color:#2e9e4f", False: "color:#d97706;text-decoration:underline"}


def to_html(generation: Generation, tokenizer: Any, *, row: int = 0) -> str:
    """One text of a batch as HTML: green where it was guessed, amber where it was not."""
    length = int(generation.length[row])
    tokens, guessed = (x[row, :length].tolist() for x in (generation.tokens, generation.guessed))
    spans = "".join(
        f'<span style="{STYLES[hit]}">{escape(text)}</span>'
        for text, hit in runs(tokens, guessed, tokenizer)
    )
    return f'<pre style="white-space:pre-wrap">{spans}</pre>'


def runs(
    tokens: Sequence[int], guessed: Sequence[bool], tokenizer: Any
) -> Iterator[tuple[str, bool]]:
    """The text in runs of tokens from the same hand, each with whether it was guessed."""
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or guessed[end] != guessed[start]:
            yield tokenizer.decode(tokens[start:end]), guessed[start]
            start = end
