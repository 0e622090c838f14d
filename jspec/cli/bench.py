"""`jspec bench`: methods side by side, in one process, on the same prompts."""

from dataclasses import dataclass

from jspec.bench import settings
from jspec.bench.peers import check_torch
from jspec.bench.suite import Method, compatible, held_out_work, methods_under
from jspec.bench.timing import PLAIN
from jspec.cli.models import LOSSY, Dtype, draft_under, find_rule, load_target, warn_of_loss
from jspec.cli.verb import DONE, FAILED, Verb, console, emit, steps
from jspec.core.checks import check_counts, check_distinct, check_seed, check_temperatures
from jspec.draft.draft import Draft, load_draft
from jspec.draft.early_stopping import early_drafter_of
from jspec.formats.huggingface import Checkpoint


@dataclass(kw_only=True)
class Bench(Verb):
    """Time plain and speculative decoding, interleaved, on held-out code."""

    target: str = settings.TARGET  # zoo:target, a local Hugging Face folder, or a hub name.
    drafts: tuple[str, ...] = settings.DRAFTS
    """Drafts to compare: small models, and heads made for the target."""
    trees: tuple[str, ...] = settings.TREES
    """Trees for each draft: chain:5, 4x2x2x1, fork:4x5, comb:3x2x2, dynamic:4x4x12, or a file of
    JSON paths."""
    lookups: tuple[str, ...] = settings.LOOKUPS  # Chains and forks for prompt lookup.
    stop_drafting: tuple[str, ...] = ()
    """What stops drafting early, each one more method along the static trees: confidence:0.3,
    entropy:0.2, margin:0.3, running:0.3, network (beside the draft), or a folder of jspec decide.
    """
    rules: tuple[str, ...] = ("coupled",)
    """Verification rules; each is run with the trees and drafters that it is exact for, and lossy,
    which is exact for none, with small models."""
    temperatures: tuple[float, ...] = settings.TEMPERATURES  # Temperatures to sample at.
    prompts: int = settings.BENCH_PROMPTS  # How many held-out prompts.
    prompt_length: int = settings.PROMPT_LENGTH  # Tokens of each.
    max_new_tokens: int = settings.TOKENS  # New tokens of each.
    batch_size: int = 1  # Prompts decoded together.
    repetitions: int = settings.BENCH_REPETITIONS  # How often everything is run.
    dtype: Dtype = "float32"  # Of the weights and the computation.
    allow_token_mismatch: bool = False  # Take draft models with other tokens, with a warning.
    seed: int = settings.SEED  # Of the noise.
    prose: bool = False  # Use prose, which the zoo has not been trained on, instead of code.
    against_transformers: bool = False
    """Also time Hugging Face generate and assisted generation (PyTorch, float32)."""
    queue: bool = False
    """Also put all prompts, cut to mixed lengths, through `generate_many`, and compare its speed
    with that of a batch that is always full."""
    breakdown: bool = False  # Also measure the share of a round outside the models' forward passes.
    scores: bool = False
    """Also measure how well the scores of dynamic trees predict the target's picks."""

    def run(self) -> int:
        """Times all methods, and shows what was found."""
        from jspec.bench.comparison import compare, count_steps  # scipy takes a while to import

        self._check()
        target = load_target(self.target, self.dtype)
        drafts = {
            name: load_draft(
                name, target,
                dtype=self.dtype, allow_token_mismatch=self.allow_token_mismatch,
            )
            for name in self.drafts
        }  # fmt: skip
        work = held_out_work(
            target,
            prompts=self.prompts,
            prompt_length=self.prompt_length,
            batch=self.batch_size,
            tokens=self.max_new_tokens,
            seed=self.seed,
            prose=self.prose,
        )
        methods = self._methods(target, drafts)
        asked = {
            "temperatures": self.temperatures,
            "repetitions": self.repetitions,
            "against_transformers": self.against_transformers,
            "breakdowns": self.breakdown,
            "queue": self.queue,
            "scores": self.scores,
        }
        setting = {
            "target": self.target,
            "drafts": list(self.drafts),
            "dtype": self.dtype,
            "batch": self.batch_size,
            "context": target.model.config.max_position_embeddings,
            "prompts": self.prompts,
            "prompt_tokens": self.prompt_length,
            "new_tokens": self.max_new_tokens,
            "repetitions": self.repetitions,
            "seed": self.seed,
            "text": "prose" if self.prose else "held-out code",
        }
        with steps(count_steps(methods, drafts, work, **asked)) as tick:
            report = compare(
                target, methods, drafts, work, **asked, seed=self.seed, setting=setting, tick=tick
            )
        if self.json:
            emit(report.record())
        else:
            report.show(console())
        lossy = [method.name for method in methods if method.lossy]
        wrong = [d for d in report.differences if not d.near_tie and d.method not in lossy]
        return FAILED if wrong and self.dtype == "float32" else DONE

    def _check(self) -> None:
        counts = ("prompts", "prompt_length", "max_new_tokens", "batch_size", "repetitions")
        check_counts(**{name: getattr(self, name) for name in counts})
        check_seed(self.seed)
        check_temperatures(self.temperatures)
        if self.stop_drafting and self.breakdown:
            raise ValueError(
                "breakdown: rounds that stop early are of many sizes, so leave it or "
                "--stop-drafting out"
            )
        names = ("drafts", "trees", "lookups", "stop_drafting", "rules", "temperatures")
        check_distinct(**{name: getattr(self, name) for name in names})
        if self.against_transformers:
            check_torch()

    def _methods(self, target: Checkpoint, drafts: dict[str, Draft]) -> list[Method]:
        methods = []
        for rule in self.rules:
            usable = {
                name: draft_under(rule, draft)
                for name, draft in drafts.items()
                if rule != LOSSY or draft.kind == "model"
            }
            methods += methods_under(
                find_rule(rule),
                usable,
                trees=self.trees,
                lookups=self.lookups,
                stops=self.stop_drafting,
                context=target.model.config.max_position_embeddings,
                suffix="" if rule == "coupled" else f" {rule}",
            )
        if self.stop_drafting and not any(early_drafter_of(m.drafter) for m in methods):
            raise ValueError(
                f"stop_drafting={' '.join(self.stop_drafting)}: drafts stop early along static "
                "trees, and there is none: give a draft, and a tree such as chain:8"
            )
        found = [Method(PLAIN), *compatible(methods)]
        warn_of_loss(*self.rules)
        return found
