"""`jspec bench`: methods side by side, in one process, on the same prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jspec.bench import settings
from jspec.cli.held_out import check_counts, check_seed, check_temperatures, held_out_work
from jspec.cli.pair import LOSSY, Dtype, Rule, find_draft, find_rule, read_target, under, warn_of
from jspec.cli.screen import console, emit, steps
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    from jspec.bench.breakdown import Breakdown
    from jspec.bench.drafts import Draft
    from jspec.bench.fullness import Fullness
    from jspec.bench.peers import Peer
    from jspec.bench.scores import Foresight
    from jspec.bench.suite import Method, Program, Workload
    from jspec.formats.huggingface import Checkpoint

Tick = Callable[[str], None]


@dataclass(kw_only=True)
class Bench(Verb):
    """Time plain and speculative decoding, interleaved, on held-out code."""

    target: str = settings.TARGET
    """zoo:target, a local Hugging Face folder, or a hub name."""
    drafts: tuple[str, ...] = settings.DRAFTS
    """Drafts to compare: small models, and heads made for the target."""
    trees: tuple[str, ...] = settings.TREES
    """Trees for each draft: chain:5, 4x2x2x1, fork:4x5, comb:3x2x2, grow:4x4x12, or a file of JSON
    paths."""
    lookups: tuple[str, ...] = settings.LOOKUPS
    """Chains and forks for prompt look-up."""
    stop: tuple[str, ...] = ()
    """What stops drafting early, each one more way along the static trees: confidence:0.3,
    entropy:0.2, margin:0.3, running:0.3, network (beside the draft), or a folder of jspec decide.
    """
    rules: tuple[Rule, ...] = ("coupled",)
    """Verification rules; each is run with the trees and drafters that it is exact for, and lossy,
    which is for none, with small models."""
    temperatures: tuple[float, ...] = settings.TEMPERATURES
    """Temperatures to sample at."""
    prompts: int = settings.BENCH_PROMPTS
    """How many held-out prompts."""
    prompt_length: int = settings.PROMPT_LENGTH
    """Tokens of each."""
    tokens: int = settings.TOKENS
    """New tokens of each."""
    batch: int = 1
    """Prompts decoded together."""
    repetitions: int = settings.BENCH_REPETITIONS
    """How often everything is run."""
    dtype: Dtype = "float32"
    """Of weights and computation."""
    seed: int = settings.SEED
    """Of the noise."""
    prose: bool = False
    """Use prose, which the zoo has not been trained on, instead of code."""
    against_transformers: bool = False
    """Also time Hugging Face generate and assisted generation (PyTorch, float32)."""
    queue: bool = False
    """Also put all prompts, cut to mixed lengths, through `generate_many`, and hold its speed
    against a batch that never empties."""
    breakdown: bool = False
    """Also measure the share of a round that is spent outside the models' forward passes."""
    scores: bool = False
    """Also measure how well the scores that trees grow by foretell the target's picks."""

    def run(self) -> int:
        from jspec.bench.agreement import differences
        from jspec.bench.report import Report
        from jspec.bench.suite import PLAIN_TEXT
        from jspec.bench.summary import summarise
        from jspec.bench.timing import interleave

        self._check()
        target = read_target(self.target, self.dtype)
        drafts = {name: find_draft(name, target, self.dtype) for name in self.drafts}
        work = self._workload(target)
        methods = self._methods(target, drafts)
        batches = len(work.batches)
        runs = self.repetitions * len(self.temperatures) * batches
        parts = (self.breakdown + self.queue) * len(self._speculative(methods))
        parts += self.scores * len(drafts) * len(self.temperatures)
        with steps(len(methods) + self.against_transformers + runs + parts) as tick:
            programs = [self._compile(method, target, work, tick) for method in methods]
            samples = interleave(
                [*programs, *self._peers(target, drafts, work, tick)],
                batches=batches,
                temperatures=self.temperatures,
                repetitions=self.repetitions,
                tick=tick,
            )
            breakdowns = self._breakdowns(methods, target, work, tick)
            queues = self._queues(methods, target, work, tick)
            scores = self._scores(drafts, target, work, tick)
        ours = {method.name: method.rule in PLAIN_TEXT for method in methods}
        own = [s for s in samples if s.method in ours and (ours[s.method] or s.temperature == 0)]
        report = Report(
            summarise(samples, coupled=[name for name, same in ours.items() if same]),
            differences(own, target.model, target.params, work),
            breakdowns,
            queues,
            scores,
            {program.name: program.compile_seconds for program in programs},
            self._setting(target),
        )
        if self.json:
            emit(report.record())
        else:
            report.show(console())
        exact = self.dtype == "float32"
        lossy = [method.name for method in methods if method.lossy]
        wrong = [d for d in report.differences if not d.near_tie and d.method not in lossy]
        return FAILED if wrong and exact else DONE

    def _check(self) -> None:
        from jspec.bench.peers import check_torch

        check_counts(
            prompts=self.prompts,
            prompt_length=self.prompt_length,
            tokens=self.tokens,
            batch=self.batch,
            repetitions=self.repetitions,
        )
        check_seed(self.seed)
        check_temperatures(self.temperatures)
        if self.stop and self.breakdown:
            raise ValueError(
                "breakdown: rounds that stop early are of many sizes, so leave it or --stop out"
            )
        for name in ("drafts", "trees", "lookups", "stop", "rules", "temperatures"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                twice = " ".join(map(str, given))
                raise ValueError(f"{name}={twice} names one twice: give each once")
        if self.against_transformers:
            check_torch()

    def _workload(self, target: "Checkpoint") -> "Workload":
        return held_out_work(
            target,
            prompts=self.prompts,
            prompt_length=self.prompt_length,
            batch=self.batch,
            tokens=self.tokens,
            seed=self.seed,
            prose=self.prose,
        )

    def _methods(self, target: "Checkpoint", drafts: "dict[str, Draft]") -> "list[Method]":
        from jspec.bench.drafts import ModelDraft
        from jspec.bench.stops import stops_early
        from jspec.bench.suite import PLAIN, Method, admitted, drafted, lookup

        context = target.model.config.context
        methods = []
        for word in self.rules:
            rule, said = find_rule(word), "" if word == "coupled" else f" {word}"
            methods += [
                drafted(
                    " ".join(filter(None, (name, tree, stop))) + said,
                    under(word, draft, target),
                    tree,
                    context,
                    rule,
                    stop,
                )
                for name, draft in drafts.items()
                for tree in self.trees
                if word != LOSSY or isinstance(draft, ModelDraft)
                for stop in self._stops(tree, context)
            ]
            methods += [
                lookup(f"look-up {tree}{said}", tree, context, rule) for tree in self.lookups
            ]
        if self.stop and not any(stops_early(m.drafter) for m in methods):
            raise ValueError(
                f"stop={' '.join(self.stop)}: drafts stop early along static trees, and there is "
                "none: give a draft, and a tree such as chain:8"
            )
        found = [Method(PLAIN), *admitted(methods)]
        for word in self.rules:
            warn_of(word)
        return found

    def _stops(self, tree: str, context: int) -> tuple[str | None, ...]:
        """In what ways drafting along a tree may end: at its leaves, and early."""
        from jspec.core.tree import Tree
        from jspec.core.tree_text import read_tree

        return (None, *(self.stop if isinstance(read_tree(tree, context), Tree) else ()))

    def _compile(
        self, method: "Method", target: "Checkpoint", work: "Workload", tick: Tick
    ) -> "Program":
        from jspec.bench.suite import Program

        tick(f"compiling {method.name}")
        return Program(method, target.model, target.params, work)

    def _peers(
        self,
        target: "Checkpoint",
        drafts: "dict[str, Draft]",
        work: "Workload",
        tick: Tick,
    ) -> "list[Peer]":
        from jspec.bench.drafts import ModelDraft
        from jspec.bench.peers import peers

        if not self.against_transformers:
            return []
        tick("loading transformers")
        models = {name: d for name, d in drafts.items() if isinstance(d, ModelDraft)}
        folders = [(name, draft.checkpoint.folder) for name, draft in models.items()]
        return peers(target.folder, folders, work)

    def _speculative(self, methods: "Sequence[Method]") -> "list[tuple[Method, float]]":
        speculative = [method for method in methods if method.drafter is not None]
        return [(method, t) for method in speculative for t in self.temperatures]

    def _breakdowns(
        self,
        methods: "Sequence[Method]",
        target: "Checkpoint",
        work: "Workload",
        tick: Tick,
    ) -> "list[Breakdown]":
        from jspec.bench.breakdown import breakdown

        found = []
        for method, temperature in self._speculative(methods) if self.breakdown else []:
            tick(f"taking apart {method.name}")
            found.append(
                breakdown(
                    method,
                    target.model,
                    target.params,
                    work,
                    temperature=temperature,
                    repetitions=max(self.repetitions, 5),
                )
            )
        return found

    def _queues(
        self,
        methods: "Sequence[Method]",
        target: "Checkpoint",
        work: "Workload",
        tick: Tick,
    ) -> "list[Fullness]":
        from jspec.bench.fullness import fullness, ragged

        found = []
        for method, temperature in self._speculative(methods) if self.queue else []:
            tick(f"a queue for {method.name}")
            found.append(
                fullness(
                    method,
                    target.model,
                    target.params,
                    ragged(work, shortest=self.prompt_length // 8 or 1, seed=self.seed),
                    batch=self.batch,
                    tokens=self.tokens,
                    temperature=temperature,
                    repetitions=self.repetitions,
                )
            )
        return found

    def _scores(
        self,
        drafts: "dict[str, Draft]",
        target: "Checkpoint",
        work: "Workload",
        tick: Tick,
    ) -> "list[tuple[str, Foresight]]":
        from jspec.bench.scores import foresight

        found = []
        for name, draft in drafts.items() if self.scores else ():
            for temperature in self.temperatures:
                tick(f"what {name} foretells")
                said = foresight(
                    target.params,
                    *work.together(),
                    target=target.model,
                    guess=draft.logits,
                    temperature=temperature,
                    tokens=self.tokens,
                )
                found.append((name, said))
        return found

    def _setting(self, target: "Checkpoint") -> dict[str, Any]:
        from jspec.bench.machine import machine

        return {
            "target": self.target,
            "drafts": list(self.drafts),
            "dtype": self.dtype,
            "batch": self.batch,
            "context": target.model.config.context,
            "prompts": self.prompts,
            "prompt_tokens": self.prompt_length,
            "new_tokens": self.tokens,
            "repetitions": self.repetitions,
            "seed": self.seed,
            "text": "prose" if self.prose else "held-out code",
            **machine(),
        }
