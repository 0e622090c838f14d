"""`jspec generate`: text from a target, speculated by a draft, by look-up, or not at all."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jspec.bench import settings
from jspec.cli.held_out import check_seed
from jspec.cli.pair import (
    Dtype,
    Rule,
    check_rule,
    find_draft,
    find_rule,
    read_target,
    under,
    usual_tree,
    warn_of,
)
from jspec.cli.placement import joined, placed
from jspec.cli.screen import console, emit, waiting
from jspec.cli.trees import AUTO, find_tree
from jspec.cli.verb import DONE, INTERRUPTED, Verb
from jspec.cli.writing import Writing, read_prompt

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jspec.core.candidates import Rule as Verification
    from jspec.core.sampling import Sampling
    from jspec.decode import Generation
    from jspec.draft.protocol import Drafter
    from jspec.formats.huggingface import Checkpoint
    from jspec.models.protocol import LinenModel, Params


@dataclass(kw_only=True)
class Generate(Verb):
    """Write text. The same seed gives the same text with any draft and tree, or with none."""

    target: str = settings.TARGET
    """zoo:target, a local Hugging Face folder, or a hub name."""
    draft: str | None = None
    """The small model, or the head made for the target, that guesses; zoo:distilled when the target
    is the zoo's."""
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
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest."""
    repetition: float = 1.0
    """Divide the logits of what was said by this; 1 changes nothing."""
    presence: float = 0.0
    """Take this off the logits of what was written."""
    frequency: float = 0.0
    """Take this off for each time that it was written."""
    bias: tuple[str, ...] = ()
    """Add to the logits of tokens: 42=-1.5 7=-inf."""
    minimum: int = 0
    """Tokens to write before an end of text may come."""
    until: tuple[str, ...] = ()
    """Strings before which the text ends."""
    chat: bool = False
    """Take the prompt as a user's turn, by the tokenizer's chat template."""
    seed: int = 0
    """Of the noise that decides among tokens."""
    tree: str | None = None
    """What to guess: chain:5, 4x2x2x1, fork:4x5, comb:3x2x2, grow:4x4x12, or a file of JSON paths;
    auto, as where nothing is said, is the static tree that was fastest when it was measured on this
    machine, once for the pair (in a launch of several processes chain:3)."""
    rule: Rule = "coupled"
    """Which guesses are kept. The text is plain decoding's under coupled, by_confidence and
    one_sample, and under the others another of the same law; but lossy, which is there to be
    compared with, follows none."""
    stop: str | None = None
    """What stops drafting early: confidence:0.3, entropy:0.2, margin:0.3, running:0.3, network
    (beside the draft), or a folder of jspec decide. The text keeps its law, and under coupled it
    is the same text."""
    dtype: Dtype = "float32"
    """Of the weights and the computation."""
    no_stop: bool = False
    """Write on past an end of text."""
    mesh: tuple[str, ...] = ()
    """Cut the models over all devices: data=2 tensor=4, or fsdp=8."""
    replicate_draft: bool = False
    """Give every device of the mesh the whole draft."""
    distributed: bool = False
    """Join the other processes of a launch, which SLURM, a TPU pod or JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID tell of."""

    def run(self) -> int:
        from jspec.parallel.sharding import read_mesh
        from jspec.serving import Reader

        if self.distributed and self.tree == AUTO:
            raise ValueError("tree='auto': each process would find its own: name one, as chain:3")
        first = joined() if self.distributed else True
        self._check()
        text = read_prompt(self.prompt, self.file)
        mesh = read_mesh(",".join(self.mesh))
        target = read_target(self.target, self.dtype, mesh)
        ids = self._encode(target, text)
        pieces = self._write(target, ids, mesh)
        reader = Reader(target.tokenizer, until=self.until, after=ids)
        writing = Writing(reader, quiet=self.json or not first)
        interrupted = False
        with placed(mesh), waiting("compiling, and reading the prompt") as arrived:
            try:
                for piece in pieces:
                    arrived()
                    writing.show(piece)
                    if writing.reading.cut:
                        break
            except KeyboardInterrupt:
                interrupted = True
        writing.finish()
        if first:
            self._report(writing, len(ids))
        return INTERRUPTED if interrupted else DONE

    def _check(self) -> None:
        from jspec.serving import check_stop_strings

        check_stop_strings(self.until)
        self._law(vocabulary=None)
        check_seed(self.seed)
        if self.lookup + self.plain + (self.draft is not None) > 1:
            raise ValueError("draft, lookup and plain exclude each other: give one of them")
        if self.plain and self.tree is not None:
            raise ValueError(f"tree={self.tree!r}: plain decoding guesses nothing, so leave it out")
        if self.plain and self.rule != "coupled":
            raise ValueError(f"rule={self.rule!r}: plain decoding keeps no guess, so leave it out")
        if (self.plain or self.lookup) and self.stop is not None:
            way = "look-up" if self.lookup else "plain decoding"
            raise ValueError(f"stop={self.stop!r}: {way} has nothing to stop, so leave it out")
        check_rule(self.rule, lookup=self.lookup, stop=self.stop)
        if self.replicate_draft and (self.plain or self.lookup or not self.mesh):
            raise ValueError("replicate_draft: no mesh, or no draft to put there, so leave it out")
        if self.prompt is not None and self.file is not None:
            raise ValueError(f"file={str(self.file)!r}: there is a prompt too, so leave one out")

    def _law(self, vocabulary: int | None, stops: tuple[int, ...] = ()) -> "Sampling":
        """How to sample; tokens can be biased once the vocabulary is known."""
        from jspec.core.sampling import sampling

        bias = _read_biases(self.bias)
        return sampling(
            1,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition=self.repetition,
            presence=self.presence,
            frequency=self.frequency,
            minimum=self.minimum,
            bias=bias if vocabulary else None,
            stops=stops,
            vocabulary=vocabulary,
        )

    def _encode(self, target: "Checkpoint", text: str) -> list[int]:
        if not self.chat:
            return target.tokenizer(text, verbose=False)["input_ids"]
        if not target.tokenizer.chat_template:
            raise ValueError(f"chat: the tokenizer of target={self.target!r} has no chat template")
        turn = {"role": "user", "content": text}
        try:
            return target.tokenizer.apply_chat_template(
                [turn], add_generation_prompt=True, return_dict=False
            )
        # A template is a program: it may raise anything.
        except Exception as error:
            raise ValueError(
                f"chat: the chat_template of target={self.target!r} cannot write a user's turn, so "
                f"mend it or leave --chat out ({type(error).__name__}: {error})"
            ) from error

    def _write(
        self, target: "Checkpoint", ids: list[int], mesh: "Mesh | None"
    ) -> "Iterator[Generation]":
        """Checks what is left to check, and starts the generation."""
        import jax

        from jspec.bench.stops import admit
        from jspec.core.prompts import prompts
        from jspec.serving import stream, stream_plain

        stops = () if self.no_stop else target.end_of_text
        law = self._law(target.model.config.vocabulary, stops)
        context = target.model.config.context
        vocabulary = target.model.config.vocabulary
        batch = prompts([ids], context=context, tokens=self.tokens, vocabulary=vocabulary)
        keys = jax.random.key(self.seed)[None]
        if self.plain:
            options = {"target": target.model, "tokens": self.tokens}
            return stream_plain(target.params, batch, keys, law, **options)
        rule = find_rule(self.rule)
        model, drafter, draft = self._drafter(target, len(ids) + self.tokens, rule, mesh)
        admit(rule, drafter)
        warn_of(self.rule)
        return stream(
            target.params,
            draft,
            batch,
            keys,
            law,
            target=model,
            drafter=drafter,
            rule=rule,
            tokens=self.tokens,
        )

    def _drafter(
        self, target: "Checkpoint", length: int, rule: "Verification", mesh: "Mesh | None"
    ) -> "tuple[LinenModel, Drafter, Params]":
        """For a text of at most `length` tokens the target to run, and the drafter with its
        parameters."""
        from jspec.bench.stops import stopping
        from jspec.core.tree_text import read_tree, write_tree
        from jspec.draft.lookup import LookupDrafter

        context = target.model.config.context
        if self.lookup:
            tree = read_tree(settings.LOOKUP if self.tree is None else self.tree, context)
            return target.model, LookupDrafter(tree), ()
        usual = usual_tree(self.rule, self.stop)
        if usual == AUTO and self.distributed:
            # Processes that measured each for itself could end with different trees.
            usual = settings.CHAIN
        named = usual if self.tree is None else self.tree
        if named != AUTO:
            read_tree(named, context)  # what is misnamed is told before a draft is loaded
        if self.draft is None and self.target != settings.TARGET:
            raise ValueError(
                f"target={self.target!r} has no draft of its own: give --draft, --lookup or --plain"
            )
        draft = find_draft(
            settings.DRAFT if self.draft is None else self.draft,
            target,
            self.dtype,
            mesh,
            replicated=self.replicate_draft,
        )
        if length > draft.context:
            console().print(
                f"draft={self.draft!r}: max_position_embeddings says that it was made for texts of "
                f"{draft.context} tokens, and the target for {context}; past {draft.context} it "
                "may guess badly, and the text stays what it is",
                soft_wrap=True,
            )
        draft = under(self.rule, draft, target)
        tree = find_tree(
            named, target, draft,
            rule=rule, temperature=self.temperature, dtype=self.dtype, mesh=mesh,
            stop=self.stop,
        )  # fmt: skip
        self.tree = write_tree(tree)
        return draft.reading(target.model), *stopping(draft, draft.drafter(tree), self.stop)

    def _report(self, writing: Writing, prompt: int) -> None:
        """Statistics on stderr, or everything as one object on stdout."""
        from jspec.bench.acceptance import acceptance
        from jspec.bench.machine import machine

        ended = writing.ended_by
        ids = writing.ids
        # The rounds went on past a stop string, which the text's own length must not.
        found = {} if writing.last is None else {**acceptance(writing.last), "tokens": len(ids)}
        if self.json:
            text = {"text": writing.reading.text, "ids": ids, "guessed": writing.guessed}
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


def _read_biases(texts: tuple[str, ...]) -> dict[int, float]:
    """`42=-1.5` and the like as tokens with what is added to their logits."""
    biases: dict[int, float] = {}
    for text in texts:
        token, _, value = text.partition("=")
        try:
            number, bias = int(token), float(value)
        except ValueError:
            raise ValueError(f"bias={text!r}: write token=number, such as 42=-1.5") from None
        if number in biases:
            raise ValueError(f"bias={text!r}: token {number} has a bias already, so leave one out")
        biases[number] = bias
    return biases


def describe(found: dict[str, Any], prompt: int, ended: str) -> list[str]:
    """The statistics of one generation, in lines."""
    if not found:
        return [f"ended by {ended} before the first token"]
    guessed = found["guessed_tokens_per_round"]
    lines = [
        f"{found['tokens']} tokens after a prompt of {prompt}, ended by {ended}",
        f"{found['rounds']} rounds of {found['tokens_per_round']:.2f} tokens: "
        f"{guessed:.2f} guessed, and {found['tokens_per_round'] - guessed:.2f} of the target's own",
    ]
    if found["accepted_by_depth"]:
        rates = ", ".join(f"{rate:.2f}" for rate in found["accepted_by_depth"])
        lines += [
            f"accepted_by_depth {rates}; acceptance_rate {found['acceptance_rate']:.2f}"
            + _of_drafted(found),
            f"({found['acceptance_definition']})",
        ]
    if ended == "stop string":
        lines += ["(rounds, and the rates a round, count what was written past the stop string)"]
    return lines


def _of_drafted(found: dict[str, Any]) -> str:
    """The same rate over the levels that were drafted, if there are any."""
    rate = found["acceptance_rate_drafted"]
    if rate is None:
        return ""
    levels = found["levels_per_round"]
    return f", acceptance_rate_drafted {rate:.2f} at {levels:.2f} levels a round"
