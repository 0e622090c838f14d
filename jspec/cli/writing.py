"""Text on its way to stdout, and the prompt on its way in."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jspec.decode import GenerationOutput
    from jspec.serving import TextReader

INTERRUPTION = "interrupted"
"""The finish reason of a text whose generation the user interrupted."""


class Writing:
    """The text so far, printed as it comes unless `quiet`."""

    def __init__(self, reader: "TextReader", *, quiet: bool) -> None:
        from jspec.serving import TextPiece

        self.reader, self.quiet = reader, quiet
        self.last: GenerationOutput | None = None
        self.read, self.printed = TextPiece(), 0

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the text, with the stop string's or the stop token that ended it."""
        return [] if self.last is None else self.last.tokens[0, : self.read.tokens].tolist()

    @property
    def is_draft_token(self) -> list[bool]:
        """For each of `token_ids`, whether it is an accepted draft token."""
        if self.last is None:
            return []
        return self.last.is_draft_token[0, : self.read.tokens].tolist()

    @property
    def finish_reason(self) -> str:
        """`stop`, `length` or `interrupted`."""
        from jspec.decode import LENGTH, STOP

        reason = None if self.last is None else int(self.last.finish_reason[0])
        if self.read.stopped or reason == STOP:
            return "stop"
        return "length" if reason == LENGTH else INTERRUPTION

    def show(self, piece: "GenerationOutput") -> None:
        """Prints what is new and cannot change any more."""
        self.last, self.read = piece, self.reader.read(piece)
        self._print()

    def finish(self) -> None:
        """Prints the rest and ends the line."""
        if self.last is not None:
            self.read = self.reader.read(self.last, ended=True)
        self._print()
        if not self.quiet and self.read.text:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _print(self) -> None:
        end = self.read.ready
        if not self.quiet and end > self.printed:
            new, self.printed = self.read.text[self.printed : end], end
            sys.stdout.write(new)
            sys.stdout.flush()


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text from the option, the file or standard input; raises `ValueError` if it is empty."""
    if prompt is not None:
        name, text = "prompt=''", prompt
    elif file is not None:
        name = f"file={str(file)!r}"
        if not file.is_file():
            raise FileNotFoundError(f"{name}: no such file; name one that holds the prompt")
        text = _decode(file.read_bytes(), name)
    elif sys.stdin.isatty():
        raise ValueError("prompt is missing: give --prompt, --file, or text on standard input")
    else:
        name, text = "prompt (standard input)", _decode(sys.stdin.buffer.read(), "standard input")
    if not text:
        raise ValueError(f"{name} is empty: a prompt needs at least one character")
    # What a shell passes may be any bytes.
    _decode(text.encode("utf-8", "surrogateescape"), name)
    return text


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8 ({error}): convert it first") from None
