"""A whole benchmark: methods side by side in one process, and all that is measured of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jspec.bench import peers
from jspec.bench.agreement import differences
from jspec.bench.breakdown import breakdown
from jspec.bench.calibration import fit_scores
from jspec.bench.report import Report
from jspec.bench.suite import Method, Program, Workload
from jspec.bench.throughput import mixed_lengths, queue_throughput
from jspec.bench.timing import interleave, machine, summarise
from jspec.draft.draft import Draft
from jspec.formats.huggingface import Checkpoint

Tick = Callable[[str], None]


def compare(
    target: Checkpoint,
    methods: Sequence[Method],
    drafts: Mapping[str, Draft],
    work: Workload,
    *,
    temperatures: Sequence[float],
    repetitions: int,
    seed: int = 0,
    against_transformers: bool = False,
    breakdowns: bool = False,
    queue: bool = False,
    scores: bool = False,
    setting: Mapping[str, Any] | None = None,
    tick: Tick = lambda _: None,
) -> Report:
    """Times all methods in turns, and measures what else is asked for.

    Args:
      methods: plain decoding first.
      drafts: by name, for `scores` and for assisted generation.
      against_transformers: also time Hugging Face `generate` and assisted generation.
      breakdowns: also measure where the time of a round goes; queue: also put all prompts, cut to
        mixed lengths, through `generate_many`; scores: also measure how well the scores of dynamic
        trees predict the target's picks.
      setting: what the report says of itself beside the machine.
      tick: hears what is done, `count_steps` times.
    """
    programs = []
    for method in methods:
        tick(f"compiling {method.name}")
        programs.append(Program(method, target.model, target.params, work))
    others = _peers(target, drafts, work, tick) if against_transformers else []
    samples = interleave(
        [*programs, *others],
        batches=len(work.batches),
        temperatures=temperatures,
        repetitions=repetitions,
        tick=tick,
    )
    pairs = [(one, t) for one in methods if one.drafter is not None for t in temperatures]
    models = target.model, target.params
    parts, queues, fits = [], [], []
    for method, temperature in pairs if breakdowns else ():
        tick(f"taking apart {method.name}")
        how = {"temperature": temperature, "repetitions": max(repetitions, 5)}
        parts.append(breakdown(method, *models, work, **how))
    prompt_length = work.batches[0].length.max() if queue else 0
    for method, temperature in pairs if queue else ():
        tick(f"a queue for {method.name}")
        mixed = mixed_lengths(work, shortest=int(prompt_length) // 8 or 1, seed=seed)
        how = {"temperature": temperature, "repetitions": repetitions}
        sizes = {"batch": work.rows, "tokens": work.tokens}
        queues.append(queue_throughput(method, *models, mixed, **sizes, **how))
    for name, draft in drafts.items() if scores else ():
        for temperature in temperatures:
            tick(f"what the scores of {name} predict")
            found = fit_scores(
                target.params,
                *work.as_one_batch(),
                target=target.model,
                draft_logits=lambda tokens, draft=draft: draft.hidden_and_logits(tokens)[1],
                temperature=temperature,
                tokens=work.tokens,
            )
            fits.append((name, found))
    same = {method.name: method.rule.drafter_invariant for method in methods}
    ours = [s for s in samples if s.method in same and (same[s.method] or s.temperature == 0)]
    return Report(
        summarise(samples, coupled=[name for name, is_same in same.items() if is_same]),
        differences(ours, *models, work),
        parts,
        queues,
        fits,
        {program.name: program.compile_seconds for program in programs},
        {**(setting or {}), **machine()},
    )


def count_steps(
    methods: Sequence[Method],
    drafts: Mapping[str, Draft],
    work: Workload,
    *,
    temperatures: Sequence[float],
    repetitions: int,
    against_transformers: bool = False,
    breakdowns: bool = False,
    queue: bool = False,
    scores: bool = False,
) -> int:
    """How often `compare` says what it does."""
    speculative = sum(method.drafter is not None for method in methods)
    each = repetitions * len(work.batches) + (breakdowns + queue) * speculative
    each += scores * len(drafts)
    return len(methods) + against_transformers + each * len(temperatures)


def _peers(
    target: Checkpoint, drafts: Mapping[str, Draft], work: Workload, tick: Tick
) -> list[peers.Peer]:
    tick("loading transformers")
    models = [(name, one.checkpoint.folder) for name, one in drafts.items() if one.kind == "model"]
    return peers.peers(target.folder, models, work)
