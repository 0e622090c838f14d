"""Whether a method writes what plain decoding writes, and how well its draft drafts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jspec.bench.agreement import differences
from jspec.bench.distribution import SMALLEST_P, first_tokens_p_value
from jspec.bench.health import MIN_ACCEPTANCE_LENGTH, Health, causes, diagnose, examine
from jspec.bench.metrics import acceptance_metrics
from jspec.bench.suite import Method, Program, Workload, plain_program
from jspec.bench.timing import Sample
from jspec.decode import NONFINITE, GenerationOutput
from jspec.draft.draft import Draft
from jspec.formats.huggingface import Checkpoint

Tick = Callable[[str], None]
STEPS = 2
"""Steps that `check_up` reports beside one for each temperature."""


@dataclass(frozen=True)
class Checkup:
    """What was found of a method.

    Attributes:
      temperatures: of each the acceptance metrics, what was compared, and whether it `passed`.
      health: of the draft on greedy text; None without a draft.
      causes: why the draft may draft badly, the likeliest first; none for one that does not.
    """

    method: Method
    temperatures: list[dict[str, Any]]
    health: Health | None
    causes: list[str]

    @property
    def passed(self) -> bool:
        """Whether the text is plain decoding's, or of its distribution, at every temperature, and
        all logits are finite."""
        faults = self.health is not None and self.health.faults
        return not faults and all(one["passed"] for one in self.temperatures)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method.name,
            "temperatures": self.temperatures,
            "health": self.health and self.health.record(),
            "causes": self.causes,
        }

    def lines(self) -> list[str]:
        """In words."""
        lines = []
        for one in self.temperatures:
            rates = ", ".join(f"{rate:.2f}" for rate in one["accepted_by_position"])
            lines.append(
                f"T={one['temperature']:g}: {_result(one)}; acceptance length "
                f"{one['acceptance_length']:.2f}, {one['accepted_per_round']:.2f} draft tokens "
                f"accepted per round; accepted by position {rates}{_early(one)}"
            )
        if self.health is not None:
            lines.append(
                f"on greedy text both have the same best token in {self.health.agreement:.0%} of "
                f"places; nats per token: target {self.health.target_loss:.2f}, draft "
                f"{self.health.draft_loss:.2f}, uniform {self.health.uniform_loss:.2f}"
            )
        if self.health is not None and self.health.faults:
            lines += [f"FAILED: {fault}" for fault in self.health.faults]
        if self.causes:
            lines += ["the draft is hardly worth its time; the likely causes, the likeliest first:"]
            lines += [f"  {number}. {cause}" for number, cause in enumerate(self.causes, start=1)]
        return lines


def check_up(
    target: Checkpoint,
    draft: Draft | None,
    method: Method,
    work: Workload,
    *,
    temperatures: Sequence[float],
    seed: int = 0,
    tick: Tick = lambda _: None,
) -> Checkup:
    """Compares a method with plain decoding on the first batch of a workload, and examines its
    draft, if it has one."""
    dtype = target_dtype(target)
    tick("compiling")
    plain = plain_program(target, work)
    ours = Program(method, target.model, target.params, work)
    found = []
    for temperature in temperatures:
        tick(f"writing at T={temperature:g}")
        found.append(_compare(temperature, target, work, plain, ours, seed, dtype))
    if draft is None:
        return Checkup(method, found, None, [])
    tick("examining the draft")
    prompts = work.batches[0]
    first = int(prompts.length.min())
    text = np.concatenate([prompts.tokens[:, :first], plain.write(0, 0.0).tokens], axis=1)
    health = examine(target, draft, text, first)
    slow = min(one["acceptance_length"] for one in found) < MIN_ACCEPTANCE_LENGTH
    if not slow and not health.faults:
        return Checkup(method, found, health, [])
    head = draft.kind == "head" and not health.faults
    variants = diagnose(draft, text, first) if head else []
    reasons = [*variants, *causes(target, draft, health, dtype=dtype)]
    return Checkup(method, found, health, reasons)


def target_dtype(target: Checkpoint) -> str:
    """The name of the type of its weights."""
    import jax

    return jax.tree.leaves(target.params)[0].dtype.name


def _compare(
    temperature: float,
    target: Checkpoint,
    work: Workload,
    plain: Program,
    ours: Program,
    seed: int,
    dtype: str,
) -> dict[str, Any]:
    """What was found at one temperature."""
    output, method = ours.write(0, temperature), ours.method
    found = {"temperature": temperature, **acceptance_metrics(output)}
    models = target.model, target.params
    texts = [output, plain.write(0, temperature)]
    broken = max(map(_count_nonfinite, texts))
    if broken:
        return found | {"texts": work.rows, "nonfinite_texts": broken, "passed": False}
    if method.rule.drafter_invariant or temperature == 0:
        samples = [
            Sample.untimed(program.name, temperature, text.tokens)
            for program, text in zip((ours, plain), texts, strict=True)
        ]
        differing = differences(samples, *models, work)
        ties = sum(difference.near_tie for difference in differing)
        return found | {
            "texts": work.rows,
            "near_ties": ties,
            "differences": [difference.record() for difference in differing],
            "passed": len(differing) == ties or dtype != "float32",
        }
    prompts = work.batches[0]
    prompt = prompts.tokens[0, : prompts.length[0]].tolist()
    p = first_tokens_p_value(method, *models, prompt, temperature=temperature, seed=seed)
    return found | {"distribution_p_value": p, "passed": p > SMALLEST_P}


def _count_nonfinite(output: GenerationOutput) -> int:
    """How many texts ended because the target's logits are not finite."""
    return int(np.sum(np.asarray(output.finish_reason) == NONFINITE))


def _early(one: dict[str, Any]) -> str:
    """What was accepted of what was drafted, where that is less than a tree's depth per round."""
    whole, drafted = one["acceptance_rate"], one["acceptance_rate_drafted"]
    if drafted in (whole, None):
        return ""
    wasted = one.get("wasted_levels_per_round")
    return (
        f"; {one['drafted_levels_per_round']:.2f} levels drafted per round"
        + ("" if wasted is None else f", {wasted:.2f} wasted")
        + f", accepted {whole:.2f} of the tree's depth and {drafted:.2f} of what was drafted"
    )


def _result(one: dict[str, Any]) -> str:
    if "distribution_p_value" in one:
        same = "the same distribution" if one["passed"] else "ANOTHER DISTRIBUTION"
        p = one["distribution_p_value"]
        return f"{same} of three tokens as plain decoding (chi-square p = {p:.3f})"
    if "nonfinite_texts" in one:
        count = f"{one['nonfinite_texts']} of {one['texts']} texts"
        return f"FAILED: the target's logits are NaN or infinite in {count}, which end there"
    differing = len(one["differences"]) - one["near_ties"]
    ties = f", {one['near_ties']} of them after a near-tie" if one["near_ties"] else ""
    if differing:
        why = ", which rounding to this dtype causes" if one["passed"] else ""
        differ = f"{differing} of {one['texts']} texts DIFFER from plain decoding's"
        return f"{differ} beyond near-ties{why}"
    return f"all {one['texts']} texts are plain decoding's{ties}"
