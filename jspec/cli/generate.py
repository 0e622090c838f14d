"""`jspec generate`: text from a target, speculated by a draft, by look-up, or not at all."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jspec.bench import settings
from jspec.cli.pair import Dtype, read_draft, read_target
from jspec.cli.screen import console, emit, waiting
from jspec.cli.verb import DONE, INTERRUPTED, Verb
from jspec.cli.writing import Writing, read_prompt

if TYPE_CHECKING:
    from jspec.decode import Generation
    from jspec.formats.huggingface import Checkpoint


@dataclass(kw_only=True)
class Generate(Verb):
    """Write text. The same seed gives the same text with any draft and tree, or with none."""

    target: str = settings.TARGET
    """zoo:target, a local Hugging Face folder, or a hub name."""
    draft: str | None = None
    """The small model that guesses; zoo:wide when the target is the zoo's."""
    lookup: bool = False
    """Guess by looking up what followed earlier in the text, without a draft."""
    plain: bool = False
    """Do not speculate."""
    prompt: str | None = None
    """The text to go on from; without it and --file, standard input is read."""
    file: Path | None = None
    """A file that holds the prompt."""
    tokens: int = settings.TOKENS
    """How many to write at most."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that hold this much probability."""
    seed: int = 0
    """Of the noise that decides among tokens."""
    tree: str | None = None
    """What to guess: chain:5, 4x2x2x1, fork:4x5, comb:3x2x2, or a file of JSON paths."""
    dtype: Dtype = "float32"
    """Of the weights and the computation."""
    no_stop: bool = False
    """Write on past an end of text."""

    def run(self) -> int:
        from jspec.sampling import sampling

        self._check()
        text = read_prompt(self.prompt, self.file)
        law = sampling(1, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        target = read_target(self.target, self.dtype)
        ids = target.tokenizer(text, verbose=False)["input_ids"]
        pieces = self._write(target, ids, law)
        writing = Writing(target, quiet=self.json)
        interrupted = False
        with waiting("compiling, and reading the prompt") as arrived:
            try:
                for piece in pieces:
                    arrived()
                    writing.show(piece)
            except KeyboardInterrupt:
                interrupted = True
        writing.finish()
        self._report(writing, len(ids), interrupted)
        return INTERRUPTED if interrupted else DONE

    def _check(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: must lie in 0..{2**32 - 1}")
        if self.lookup + self.plain + (self.draft is not None) > 1:
            raise ValueError("draft, lookup and plain exclude each other: give one of them")
        if self.plain and self.tree is not None:
            raise ValueError(f"tree={self.tree!r}: plain decoding guesses nothing, so leave it out")
        if self.prompt is not None and self.file is not None:
            raise ValueError(f"file={str(self.file)!r}: there is a prompt too, so leave one out")

    def _write(self, target: "Checkpoint", ids: list[int], law: Any) -> "Iterator[Generation]":
        """Checks what is left to check, and starts the generation."""
        import jax
        import jax.numpy as jnp

        from jspec.decode import prompts
        from jspec.stream import stream, stream_plain

        context = target.model.config.context
        batch = prompts([ids], context=context, tokens=self.tokens)
        keys = jax.random.key(self.seed)[None]
        stops = jnp.array(() if self.no_stop else target.end_of_text, jnp.int32)
        options = {"target": target.model, "tokens": self.tokens}
        if self.plain:
            return stream_plain(target.params, batch, keys, law, stops, **options)
        drafter, draft = self._drafter(target, context)
        return stream(target.params, draft, batch, keys, law, stops, drafter=drafter, **options)

    def _drafter(self, target: "Checkpoint", context: int) -> tuple[Any, Any]:
        """The drafter and its parameters."""
        from jspec.bench.shapes import read_tree
        from jspec.draft.lookup import LookupDrafter
        from jspec.draft.small_model import SmallModelDrafter

        if self.lookup:
            return LookupDrafter(read_tree(self.tree or settings.LOOKUP, context)), ()
        if self.draft is None and self.target != settings.TARGET:
            raise ValueError(
                f"target={self.target!r} has no draft of its own: give --draft, --lookup or --plain"
            )
        tree = read_tree(self.tree or settings.TREE, context)
        draft = read_draft(self.draft or settings.DRAFT, target, self.dtype)
        return SmallModelDrafter(draft.model, tree), draft.params

    def _report(self, writing: Writing, prompt: int, interrupted: bool) -> None:
        """Statistics on stderr, or everything as one object on stdout."""
        from jspec.bench.acceptance import acceptance
        from jspec.bench.machine import machine

        ended = "end of text" if writing.stopped else "number of tokens"
        ended = "interruption" if interrupted else ended
        found = {} if writing.last is None else acceptance(writing.last)
        if self.json:
            text = {"text": writing.text, "ids": writing.ids, "guessed": writing.guessed}
            asked = {**dataclasses.asdict(self), "file": self.file and str(self.file)}
            emit(
                {
                    **text,
                    "ended_by": ended,
                    "prompt_tokens": prompt,
                    **found,
                    "options": asked,
                    "machine": machine(),
                }
            )
        else:
            console().print("\n".join(describe(found, prompt, ended)), soft_wrap=True)


def describe(found: dict[str, Any], prompt: int, ended: str) -> list[str]:
    """The statistics of one generation, in lines."""
    if not found:
        return [f"ended by {ended} before the first token"]
    lines = [
        f"{found['tokens']} tokens after a prompt of {prompt}, ended by {ended}",
        f"{found['rounds']} rounds of {found['tokens_per_round']:.2f} tokens: "
        f"{found['guessed_tokens_per_round']:.2f} guessed, and one of the target's own",
    ]
    if found["accepted_by_depth"]:
        rates = ", ".join(f"{rate:.2f}" for rate in found["accepted_by_depth"])
        lines += [
            f"accepted_by_depth {rates}; acceptance_rate {found['acceptance_rate']:.2f}",
            f"({found['acceptance_definition']})",
        ]
    return lines
