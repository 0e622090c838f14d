"""`jspec generate`: text from a target, with any draft or with none."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jspec.api import SamplingOptions, Speculator
from jspec.bench import settings
from jspec.bench.metrics import acceptance_metrics
from jspec.bench.timing import machine
from jspec.cli.models import Dtype, draft_under, find_rule, load_target, warn_of_loss
from jspec.cli.verb import DONE, FAILED, INTERRUPTED, Distributed, Verb, emit, say, waiting
from jspec.cli.writing import INTERRUPTION, Writing, read_prompt
from jspec.core.checks import check_counts, check_seed
from jspec.core.sampling import SamplingParams
from jspec.core.tree_text import write_tree
from jspec.decode import FINISH_REASONS, NONFINITE, WHY_NONFINITE
from jspec.draft.draft import LOOKUP, load_draft
from jspec.draft.early_stopping import check_drafter
from jspec.formats.huggingface import Checkpoint
from jspec.parallel.launch import join
from jspec.parallel.sharding import REPLICATED, RULES, read_mesh
from jspec.serving import TextReader, check_stop_strings

OF_DRAFTS = ("draft", "tree", "rule", "stop_drafting")


@dataclass(kw_only=True)
class Generate(Verb):
    """Generate text. The same seed gives the same text with any draft and tree, or with none."""

    target: str = settings.TARGET  # zoo:target, a local Hugging Face folder, or a hub name.
    draft: str | None = None
    """A small model, a head that was made for the target, or lookup (n-grams of the prompt and the
    text); zoo:distilled for the zoo's target."""
    plain: bool = False  # Do not speculate.
    prompt: str | None = None
    """The text to continue; without it and --file, standard input is read."""
    file: Path | None = None  # A file that holds the prompt.
    chat: bool = False  # Take the prompt as a user's turn, by the tokenizer's chat template.
    max_new_tokens: int = settings.TOKENS  # How many tokens to generate at most.
    temperature: float = 0.0  # 0 is greedy.
    top_k: int = 0  # Keep the k most likely tokens; 0 keeps all.
    top_p: float = 1.0  # Keep the most likely tokens that hold this much probability.
    min_p: float = 0.0  # Keep tokens at least this many times as likely as the most likely one.
    repetition_penalty: float = 1.0
    """Divide the logits of tokens of the prompt and the text by this; 1 changes nothing."""
    presence_penalty: float = 0.0  # Take this off the logits of generated tokens.
    frequency_penalty: float = 0.0  # Take this off for each time that a token was generated.
    min_new_tokens: int = 0  # Tokens to generate before a stop token may come.
    logit_bias: tuple[str, ...] = ()  # Add to the logits of tokens: 42=-1.5 7=-inf.
    stop: tuple[str, ...] = ()  # Strings before which the text ends.
    ignore_eos: bool = False  # Continue past the target's stop tokens.
    seed: int = 0  # Of the noise that decides among tokens.
    tree: str = settings.AUTO
    """What to draft: chain:5, 4x2x2x1 (children by level), fork:4x5 (4 chains of 5), comb:3x2x2
    (only the first node of each level has children), dynamic:4x4x12 (EAGLE-2: of the 4 likeliest at
    each of 4 levels the best 12 in all), or a file of JSON paths. auto is what jspec tune found for
    the pair on this machine, and the usual tree where it never ran."""
    rule: str = "coupled"
    """Which draft tokens are accepted. The text is plain decoding's under coupled, by_confidence
    and one_sample. Under token_level, block, traversal, with_replacement and without_replacement it
    is another one of the same distribution; under lossy, which is for comparison, of none."""
    stop_drafting: str | None = None
    """What stops drafting early: confidence:0.3, entropy:0.2, margin:0.3, running:0.3, network
    (beside the draft), or a folder of jspec decide. The text keeps its distribution, and under
    coupled it is the same text."""
    dtype: Dtype = "float32"  # Of the weights and the computation.
    mesh: tuple[str, ...] = ()  # Shard the models over all devices: data=2 tensor=4, or fsdp=8.
    replicate_draft: bool = False  # Put the whole draft on every device of the mesh.
    allow_token_mismatch: bool = False  # Take a draft model with other tokens, with a warning.
    distributed: Distributed = False

    def run(self) -> int:
        """Generates the text, and its statistics."""
        if self.distributed:
            join()
        self._check()
        text = read_prompt(self.prompt, self.file)
        mesh = read_mesh(",".join(self.mesh))
        target = load_target(self.target, self.dtype, mesh)
        engine = self._engine(target, mesh)
        ids = self._encode(engine, text)
        sampling = engine.sampling_params(1, () if self.ignore_eos else None, **self._sampling())
        pieces = engine.stream_outputs(
            ids, sampling=sampling, max_new_tokens=self.max_new_tokens, seed=self.seed
        )
        self._note(engine, len(ids))
        first = jax.process_index() == 0
        reader = TextReader(target.tokenizer, self.stop, ids)
        writing, interrupted = Writing(reader, quiet=self.json or not first), False
        with waiting("compiling, and reading the prompt") as arrived:
            try:
                for piece in pieces:
                    arrived()
                    writing.show(piece)
                    if writing.read.stopped:
                        break
            except KeyboardInterrupt:
                interrupted = True
        writing.finish()
        if first:
            self._report(writing, engine, len(ids))
        if writing.finish_reason == FINISH_REASONS[NONFINITE]:
            say(WHY_NONFINITE)
            return FAILED
        return INTERRUPTED if interrupted else DONE

    def _check(self) -> None:
        """What needs no model."""
        check_stop_strings(self.stop)
        check_counts(max_new_tokens=self.max_new_tokens)
        check_seed(self.seed)
        sampling = self._sampling()
        del sampling["logit_bias"]  # which needs the target's vocabulary
        SamplingParams.create(1, **sampling)
        for name in (*OF_DRAFTS, "replicate_draft", "allow_token_mismatch"):
            given = getattr(self, name)
            if self.plain and given != getattr(Generate, name):
                raise ValueError(
                    f"{name}={given!r}: plain decoding drafts nothing, so leave it out"
                )
        if self.replicate_draft and (self.draft == LOOKUP or not self.mesh):
            raise ValueError("replicate_draft: no mesh, or no draft to put there, so leave it out")
        if self.prompt is not None and self.file is not None:
            raise ValueError(f"file={str(self.file)!r}: there is a prompt too, so leave one out")
        if self.draft is None and not self.plain and self.target != settings.TARGET:
            raise ValueError(
                f"target={self.target!r} has no draft of its own: give --draft (a model, a head or "
                "lookup) or --plain"
            )

    def _sampling(self) -> dict[str, Any]:
        """The options that `SamplingParams.create` has under the same names."""
        options = {name: getattr(self, name) for name in SamplingOptions.__annotations__}
        return options | {"logit_bias": _read_biases(self.logit_bias)}

    def _engine(self, target: Checkpoint, mesh: Mesh | None) -> Speculator:
        """The target and its draft, over the tree that is drafted."""
        if self.plain:
            return Speculator(target, mesh=mesh)
        rule, rules = find_rule(self.rule), REPLICATED if self.replicate_draft else RULES
        name = settings.DRAFT if self.draft is None else self.draft
        draft = load_draft(
            name, target,
            dtype=self.dtype, mesh=mesh, rules=rules,
            allow_token_mismatch=self.allow_token_mismatch,
        )  # fmt: skip
        draft = draft_under(self.rule, draft)
        engine = Speculator(target, draft, rule, self.tree, self.stop_drafting, mesh)
        _, drafter, _ = engine.drafter_for(self.temperature)
        check_drafter(rule, drafter)
        return replace(engine, tree=write_tree(drafter.tree))

    def _encode(self, engine: Speculator, text: str) -> list[int]:
        if not self.chat:
            return engine.encode(text)
        try:
            return engine.encode_chat([{"role": "user", "content": text}])
        except ValueError as error:
            raise ValueError(str(error).replace("messages", "chat", 1)) from error

    def _note(self, engine: Speculator, prompt: int) -> None:
        """Says, once nothing is refused, which tree auto is, and what to expect of the draft."""
        warn_of_loss(self.rule)
        draft, context = engine.draft, engine.target.model.config.max_position_embeddings
        if draft is None:
            return
        if self.tree == settings.AUTO:
            say(f"tree=auto: {engine.tree}")
        made_for = draft.max_position_embeddings
        if made_for < min(context, prompt + self.max_new_tokens):
            say(
                f"draft={draft.name!r}: max_position_embeddings says that it was made for "
                f"texts of {made_for} tokens, and the target for {context}; past {made_for} it may "
                "draft badly, and the text stays what it is"
            )

    def _report(self, writing: Writing, engine: Speculator, prompt: int) -> None:
        """Statistics on stderr, or everything as one object on stdout."""
        last, tokens, drafted = writing.last, [], []
        rounds: dict[str, Any] = {}
        if last is not None:
            rows = last.tokens[0], last.is_draft_token[0]
            tokens, drafted = (row[: writing.read.tokens].tolist() for row in rows)
            measured = acceptance_metrics(last)
            del measured["tokens"]
            rounds = {
                "num_rounds": measured.pop("rounds"),
                "num_draft_tokens": int(last.num_draft_tokens[0]),
                **measured,
            }
        if not self.json:
            say(*describe(writing, prompt, rounds))
            return
        options = {**asdict(self), "file": self.file and str(self.file)}
        if engine.draft is not None:
            options |= {"draft": engine.draft.name, "tree": engine.tree}
        emit(
            {
                "text": writing.read.text,
                "token_ids": tokens,
                "is_draft_token": drafted,
                "finish_reason": writing.finish_reason,
                "num_prompt_tokens": prompt,
                **rounds,
                "options": options,
                "machine": machine(),
            }
        )


def _read_biases(texts: tuple[str, ...]) -> dict[int, float]:
    """`42=-1.5` and the like as tokens with what is added to their logits."""
    biases: dict[int, float] = {}
    for text in texts:
        token, _, value = text.partition("=")
        try:
            number, bias = int(token), float(value)
        except ValueError:
            raise ValueError(f"logit_bias={text!r}: write token=number, such as 42=-1.5") from None
        if number in biases:
            raise ValueError(
                f"logit_bias={text!r}: token {number} has a bias already, so leave one out"
            )
        biases[number] = bias
    return biases


def describe(writing: Writing, prompt: int, rounds: dict[str, Any]) -> list[str]:
    """The statistics of one generation after `prompt` tokens, in lines."""
    if not rounds:
        return [f"{INTERRUPTION} before the first token"]
    accepted, length = rounds["accepted_per_round"], rounds["acceptance_length"]
    lines = [
        f"{writing.read.tokens} tokens after a prompt of {prompt}, finish_reason "
        f"{writing.finish_reason}",
        f"{rounds['num_rounds']} rounds, acceptance_length {length:.2f}: {accepted:.2f} draft "
        f"tokens and {length - accepted:.2f} of the target",
    ]
    if rounds["accepted_by_position"]:
        rates = ", ".join(f"{rate:.2f}" for rate in rounds["accepted_by_position"])
        rate, drafted = rounds["acceptance_rate"], rounds["acceptance_rate_drafted"]
        early = ""
        if drafted not in (None, rate):
            levels = rounds["drafted_levels_per_round"]
            early = f", acceptance_rate_drafted {drafted:.2f} at {levels:.2f} levels"
        lines += [
            f"accepted_by_position {rates}; acceptance_rate {rate:.2f}{early}",
            f"({rounds['acceptance_definition']})",
        ]
    if writing.read.stopped:
        lines += ["(the rounds and their rates count what was generated past the stop string)"]
    return lines
