"""Text on its way to stdout, and the prompt on its way in."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jspec.decode import Generation
    from jspec.formats.huggingface import Checkpoint


class Writing:
    """The text so far, printed as it comes unless `quiet`; it ends before a string of `until`."""

    def __init__(self, target: "Checkpoint", *, until: Sequence[str], quiet: bool) -> None:
        self.target, self.until, self.quiet = target, until, quiet
        self.last: Generation | None = None
        self.text, self.printed, self.cut = "", 0, False

    @property
    def ids(self) -> list[int]:
        """The tokens written, an end of text included."""
        return [] if self.last is None else self.last.tokens[0, : int(self.last.length[0])].tolist()

    @property
    def guessed(self) -> list[bool]:
        """For each of `ids`, whether the drafter had guessed it."""
        return [] if self.last is None else self.last.guessed[0, : len(self.ids)].tolist()

    @property
    def ended_by(self) -> str:
        """Why the text is no longer."""
        from jspec.decode import EXHAUSTED, STOPPED

        reasons = {EXHAUSTED: "number of tokens", STOPPED: "end of text"}
        reason = 0 if self.last is None else int(self.last.reason[0])
        return "stop string" if self.cut else reasons.get(reason, "interruption")

    def show(self, piece: "Generation") -> None:
        """Prints what is new and cannot change any more."""
        from jspec.text import cut, decode, ready

        self.last = piece
        self.text, self.cut = cut(decode(piece, self.target.tokenizer), self.until)
        self._print(len(self.text) if self.cut else ready(self.text, self.until))

    def finish(self) -> None:
        """Prints the rest and ends the line."""
        self._print(len(self.text))
        if not self.quiet and self.text:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _print(self, end: int) -> None:
        if not self.quiet and end > self.printed:
            new, self.printed = self.text[self.printed : end], end
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
