"""A text as tokens: the one way for prompts, for what is learned, and for what is measured.

What a model is served begins as its tokenizer begins a text, so what it learns from and what it is
measured on does too. A text that a chat template wrote has these tokens already.
"""

from collections.abc import Sequence
from typing import Any


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, with those that the tokenizer adds to one.

    >>> encode_texts(target.tokenizer, ["import os"])  # doctest: +SKIP

    Args:
      tokenizer: of transformers, as `Checkpoint.tokenizer` is.
    """
    return tokenizer(list(texts), verbose=False)["input_ids"] if texts else []


def encode_written(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts that a chat template wrote, and nothing more."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """The tokens with which every text begins, such as Llama's; none for many tokenizers."""
    whole, bare = (encode(tokenizer, ["a"])[0] for encode in (encode_texts, encode_written))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start])
    return ()


def check_tokens(tokens: Sequence[int], tokenizer: Any, vocab_size: int) -> None:
    """Raises `ValueError` for a token that the model does not have, naming it and its text.

    A tokenizer may have more tokens than its model, such as those that were added to it later.
    """
    highest = max(tokens, default=0)
    if highest >= vocab_size:
        raise ValueError(
            f"token {highest} ({tokenizer.decode([highest])!r}) is not one of the model's "
            f"{vocab_size}"
        )
