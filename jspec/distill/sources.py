"""Where the rows come from that a draft learns, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text as it is: where the other sources take their prompts from, too.

    Attributes:
      weight: its share of the rows, against the other sources'.
      source: `zoo:corpus`, a file (JSON, JSON lines, Parquet, text, Arrow), a folder, a hub name.
      split: of a folder or a hub name; column: which to read, by its name if empty.
      held_out: the share of the texts that is kept for measuring; the zoo's corpus has its own.
    """

    weight: float = 1.0
    source: str = "zoo:corpus"
    split: str = "train"
    column: str = ""
    held_out: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the target writes itself after the beginnings of texts.

    Attributes:
      weight: its share of the rows, against the other sources'.
      count: how many; tokens: the most that one has.
      prompt: tokens of a text that each goes on from. Of a conversation it is all that comes before
        the assistant's first turn, which may be longer.
      temperature: the one they are sampled at: a number, a set `0.7,0.8` or a range `0.3..1.5`.
      batch: how many are written at a time; tree: what the draft guesses.
    """

    weight: float = 1.0
    count: int = 1024
    prompt: int = 64
    tokens: int = 448
    temperature: str = "1"
    batch: int = 8
    tree: str = "comb:2x1"


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What the student writes itself, to be taught where it goes (on policy).

    Attributes:
      weight: its share of the rows, against the other sources'.
      every: steps after which they are written anew.
      count, prompt, tokens, temperature, batch: as of the answers.
    """

    weight: float = 0.0
    every: int = 200
    count: int = 256
    prompt: int = 64
    tokens: int = 448
    temperature: str = "1"
    batch: int = 8
