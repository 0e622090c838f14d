"""`jspec verify`, the doctor: is the text the same, and is the draft well?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jspec.bench import settings
from jspec.cli.held_out import check_counts, check_seed, check_temperatures, held_out_work
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
from jspec.cli.screen import console, emit, steps
from jspec.cli.trees import find_tree
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    import numpy as np

    from jspec.bench.drafts import Draft
    from jspec.bench.health import Health
    from jspec.bench.suite import Method, Program, Workload
    from jspec.formats.huggingface import Checkpoint

Tick = Callable[[str], None]


@dataclass(kw_only=True)
class Verify(Verb):
    """Hold speculative decoding against plain decoding, and say how well the draft guesses."""

    target: str = settings.TARGET
    """zoo:target, a local Hugging Face folder, or a hub name."""
    draft: str | None = None
    """The small model, or the head made for the target, that guesses; zoo:distilled when nothing is
    given."""
    lookup: bool = False
    """Guess by looking up what followed earlier in the text, without a draft."""
    tree: str | None = None
    """What to guess: chain:5, 4x2x2x1, fork:4x5, comb:3x2x2, grow:4x4x12, or a file of JSON paths.
    """
    rule: Rule = "coupled"
    """Which guesses are kept."""
    stop: str | None = None
    """What stops drafting early: confidence:0.3, entropy:0.2, margin:0.3, running:0.3, network
    (beside the draft), or a folder of jspec decide."""
    temperatures: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Temperatures to sample at."""
    prompts: int = 4
    """How many held-out prompts."""
    prompt_length: int = settings.PROMPT_LENGTH
    """Tokens of each."""
    tokens: int = 128
    """New tokens of each."""
    dtype: Dtype = "float32"
    """Of weights and computation."""
    seed: int = settings.SEED
    """Of the noise."""

    def run(self) -> int:
        from jspec.bench.health import WORTHLESS

        self._check()
        target = read_target(self.target, self.dtype)
        draft = None if self.lookup else find_draft(self._guesser, target, self.dtype)
        work = self._workload(target)
        method = self._method(target, draft)
        with steps(3 + len(self.temperatures)) as tick:
            plain, ours = self._compile(method, target, work, tick)
            rows = [
                self._compare(t, method, target, work, plain, ours, tick) for t in self.temperatures
            ]
            slow = min(row["tokens_per_round"] for row in rows) < WORTHLESS
            health, reasons = None, []
            if draft is not None:
                tick("examining the draft")
                text = self._text(work, plain)
                health, reasons = self._examine(target, draft, text, slow=slow)
        if self.json:
            emit({"rule": self.rule, "method": method.name, "temperatures": rows,
                  "health": health and health.record(), "causes": reasons})  # fmt: skip
        else:
            console().print("\n".join(_lines(method, rows, health, reasons)), soft_wrap=True)
        return DONE if all(row["passed"] for row in rows) else FAILED

    @property
    def _guesser(self) -> str:
        return settings.DRAFT if self.draft is None else self.draft

    def _check(self) -> None:
        if self.lookup and self.draft is not None:
            raise ValueError("draft and lookup exclude each other: give one of them")
        if self.lookup and self.stop is not None:
            raise ValueError(f"stop={self.stop!r}: look-up has nothing to stop, so leave it out")
        check_rule(self.rule, lookup=self.lookup, stop=self.stop)
        check_counts(prompts=self.prompts, prompt_length=self.prompt_length, tokens=self.tokens)
        check_seed(self.seed)
        check_temperatures(self.temperatures)

    def _workload(self, target: "Checkpoint") -> "Workload":
        return held_out_work(
            target,
            prompts=self.prompts,
            prompt_length=self.prompt_length,
            batch=self.prompts,
            tokens=self.tokens,
            seed=self.seed,
        )

    def _method(self, target: "Checkpoint", draft: "Draft | None") -> "Method":
        from jspec.bench.stops import admit, stopping
        from jspec.bench.suite import Method, lookup
        from jspec.core.tree_text import write_tree

        rule, context = find_rule(self.rule), target.model.config.context
        if draft is None:
            tree = self.tree or settings.LOOKUP
            method = lookup(f"look-up {tree}", tree, context, rule)
        else:
            named = self.tree or usual_tree(self.rule, self.stop)
            draft = under(self.rule, draft, target)
            hot, how = max(self.temperatures), {"rule": rule, "dtype": self.dtype}
            tree = find_tree(named, target, draft, **how, temperature=hot, stop=self.stop)
            name = " ".join(filter(None, (self._guesser, write_tree(tree), self.stop)))
            drafter, params = stopping(draft, draft.drafter(tree), self.stop)
            method = Method(name, drafter, params, rule, draft.reading)
        admit(rule, method.drafter)
        warn_of(self.rule)
        return method

    def _compile(
        self, method: "Method", target: "Checkpoint", work: "Workload", tick: Tick
    ) -> "tuple[Program, Program]":
        from jspec.bench.suite import PLAIN, Method, Program

        tick("compiling")
        plain = Program(Method(PLAIN), target.model, target.params, work)
        return plain, Program(method, target.model, target.params, work)

    def _compare(
        self,
        temperature: float,
        method: "Method",
        target: "Checkpoint",
        work: "Workload",
        plain: "Program",
        ours: "Program",
        tick: Tick,
    ) -> dict[str, Any]:
        """What was found at one temperature."""
        from jspec.bench.acceptance import acceptance
        from jspec.bench.agreement import differences
        from jspec.bench.law import SMALLEST_P, first_tokens_law
        from jspec.bench.suite import PLAIN_TEXT
        from jspec.bench.timing import Sample

        tick(f"writing at T={temperature:g}")
        written = ours.write(0, temperature)
        found = {"temperature": temperature, **acceptance(written)}
        if method.rule in PLAIN_TEXT or temperature == 0:
            samples = [
                Sample.untimed(program.name, temperature, tokens)
                for program, tokens in (
                    (plain, plain.write(0, temperature).tokens),
                    (ours, written.tokens),
                )
            ]
            parted = differences(samples, target.model, target.params, work)
            ties = sum(difference.near_tie for difference in parted)
            compared = {
                "texts": self.prompts,
                "near_ties": ties,
                "differences": [difference.record() for difference in parted],
                "passed": len(parted) == ties or self.dtype != "float32",
            }
        else:
            p = first_tokens_law(
                method, target.model, target.params, self._prompt(work),
                temperature=temperature, seed=self.seed,
            )  # fmt: skip
            compared = {"law_p_value": p, "passed": p > SMALLEST_P}
        return {**found, **compared}

    def _prompt(self, work: "Workload") -> list[int]:
        prompts = work.batches[0]
        return prompts.tokens[0, : prompts.length[0]].tolist()

    def _text(self, work: "Workload", plain: "Program") -> "np.ndarray":
        """The prompts and what the target goes on with."""
        import numpy as np

        prompts = work.batches[0].tokens[:, : self.prompt_length]
        return np.concatenate([prompts, plain.write(0, 0.0).tokens], axis=1)

    def _examine(
        self, target: "Checkpoint", draft: "Draft", text: "np.ndarray", *, slow: bool
    ) -> "tuple[Health, list[str]]":
        """How well the draft knows the text, and why it may not where it is slow."""
        from jspec.bench.diagnosis import diagnose
        from jspec.bench.drafts import HeadDraft
        from jspec.bench.health import causes, examine

        health = examine(target, draft, text, self.prompt_length)
        if not slow:
            return health, []
        head = isinstance(draft, HeadDraft)
        found = diagnose(draft, text, self.prompt_length) if head else []
        return health, [*found, *causes(target, draft, health, dtype=self.dtype)]


def _lines(
    method: "Method", rows: list[dict[str, Any]], health: "Health | None", reasons: list[str]
) -> list[str]:
    """The findings in words."""
    lines = [f"{method.name}, rule {method.rule.__name__.rpartition('.')[2]}"]
    for row in rows:
        rates = ", ".join(f"{rate:.2f}" for rate in row["accepted_by_depth"])
        lines.append(
            f"T={row['temperature']:g}: {_verdict(row)}; {row['tokens_per_round']:.2f} tokens a "
            f"round, {row['guessed_tokens_per_round']:.2f} guessed; accepted by depth {rates}"
            f"{_early(row)}"
        )
    if health is not None:
        lines.append(
            f"on greedy text both have the same best token in {health.agreement:.0%} of places; "
            f"nats a token: target {health.target_loss:.2f}, draft {health.draft_loss:.2f}, "
            f"chance {health.uniform:.2f}"
        )
    if reasons:
        lines += ["the draft is hardly worth its time; the likely causes, the likeliest first:"]
        lines += [f"  {number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return lines


def _early(row: dict[str, Any]) -> str:
    """What was kept of what was drafted, where that is less than a tree's depth a round."""
    whole, drafted = row["acceptance_rate"], row["acceptance_rate_drafted"]
    if drafted in (whole, None):
        return ""
    waited = f", {row['waited_per_round']:.2f} waited" if "waited_per_round" in row else ""
    return (
        f"; {row['levels_per_round']:.2f} levels drafted a round{waited}, kept {whole:.2f} of the "
        f"tree's depth and {drafted:.2f} of what was drafted"
    )


def _verdict(row: dict[str, Any]) -> str:
    if "law_p_value" in row:
        same = "the same law" if row["passed"] else "ANOTHER LAW"
        return f"{same} of three tokens as plain decoding (chi-square p = {row['law_p_value']:.3f})"
    parted = len(row["differences"]) - row["near_ties"]
    ties = f", {row['near_ties']} of them after a near-tie" if row["near_ties"] else ""
    if parted:
        why = ", which rounding to this dtype does" if row["passed"] else ""
        differ = f"{parted} of {row['texts']} texts DIFFER from plain decoding's"
        return f"{differ} beyond near-ties{why}"
    return f"all {row['texts']} texts are plain decoding's{ties}"
