"""Text on its way to stdout, and the prompt on its way in."""

import sys
from pathlib import Path

from jspec.decode import FINISH_REASONS, STOP, GenerationOutput
from jspec.serving import TextPiece, TextReader

INTERRUPTION = "interrupted"
"""The finish reason of a text whose generation the user interrupted."""


class Writing:
    """The text so far, printed as it comes unless `quiet`."""

    def __init__(self, reader: TextReader, *, quiet: bool) -> None:
        self.reader, self.quiet = reader, quiet
        self.last: GenerationOutput | None = None
        self.read, self.printed = TextPiece(), 0

    @property
    def finish_reason(self) -> str:
        """One of `FINISH_REASONS`, or `interrupted`."""
        if self.last is None:
            return INTERRUPTION
        reason = STOP if self.read.stopped else int(self.last.finish_reason[0])
        return FINISH_REASONS.get(reason, INTERRUPTION)

    def show(self, piece: GenerationOutput, *, ended: bool = False) -> None:
        """Prints what is new and cannot change any more; all that is left of what has `ended`."""
        self.last, self.read = piece, self.reader.read(piece, ended=ended)
        end = self.read.ready
        if not self.quiet and end > self.printed:
            new, self.printed = self.read.text[self.printed : end], end
            sys.stdout.write(new)
            sys.stdout.flush()

    def finish(self) -> None:
        """Prints the rest and ends the line."""
        if self.last is not None:
            self.show(self.last, ended=True)
        if not self.quiet and self.read.text:
            print(flush=True)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text from the option, the file or standard input; raises `ValueError` if it is empty."""
    if prompt is not None:
        # What a shell passes may be any bytes.
        name, content = "prompt=''", prompt.encode("utf-8", "surrogateescape")
    elif file is not None:
        name = f"file={str(file)!r}"
        if not file.is_file():
            raise FileNotFoundError(f"{name}: no such file; name one that holds the prompt")
        content = file.read_bytes()
    elif sys.stdin.isatty():
        raise ValueError("prompt is missing: give --prompt, --file, or text on standard input")
    else:
        name, content = "prompt (standard input)", sys.stdin.buffer.read()
    if not content:
        raise ValueError(f"{name} is empty: a prompt needs at least one character")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8 ({error}): convert it first") from None
