"""What `jspec plan` computes: costs, acceptance, and shapes that are searched."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jspec.bench import settings
from jspec.cli.contenders import Planned
from jspec.cli.held_out import held_out_work

if TYPE_CHECKING:
    from jspec.cli.plan import Plan
    from jspec.config import ModelConfig
    from jspec.plan.acceptance import Acceptance
    from jspec.plan.outlook import Outlook
    from jspec.plan.sources import Contender, Source

HERE, MEASURED = "here", "measured"
# What is taken to be kept at every depth where nobody says and nothing is measured.
ASSUMED = "0.7"
# Held-out prompts that are decoded where acceptance is measured, and how far and wide is guessed.
PROMPTS, PROMPT_LENGTH, TOKENS, DEPTH, WIDTH = 16, 64, 128, 8, 4
FOUND = 8  # shapes that a search shows
ALONE = {"data": 1, "fsdp": 1, "tensor": 1}  # one device


class Sources(NamedTuple):
    """Where costs come from, where they come from at no cost, if anywhere, and how many chips lie
    along each axis of the mesh that they are of."""

    source: "Source"
    cheap: "Source | None"
    ways: Mapping[str, int]


def sources_of(asked: "Plan", target: Planned, tick: Callable[[str], None]) -> Sources:
    """For the hardware that is asked for."""
    from jspec.parallel.sharding import divides, read_sizes, widest
    from jspec.plan.accelerators import accelerator
    from jspec.plan.sources import Work, compiling, declared, measuring, remembering
    from jspec.plan.topologies import devices_of, mesh_on, slice_of

    work = Work(asked.context // 2, asked.context - asked.context // 2)
    if asked.context > target.model.config.context:
        raise ValueError(
            f"context={asked.context}: the target has one of {target.model.config.context}"
        )
    if asked.hardware == HERE:
        how = {"temperature": asked.temperature, "dtype": asked.numbers}
        source = remembering(measuring(target.trained, work, **how, tick=tick))
        return Sources(source, None, ALONE)
    how = {"dtype": asked.numbers, "replicated": asked.replicate_draft}
    sizes = read_sizes(asked.mesh)
    wanted = slice_of(asked.hardware)
    if wanted is not None:
        chip, sides = wanted
        mesh = mesh_on(devices_of(asked.hardware), sizes or {"tensor": math.prod(sides)})
        if not divides(mesh.shape, target.model.config):
            chips = math.prod(sides)
            ways = widest(target.model.config, [n for n in range(1, chips + 1) if not chips % n])
            raise ValueError(
                f"mesh={asked.mesh or f'tensor={chips}'!r} does not divide the heads, the width "
                f"and the feed-forward of {asked.target}: take fsdp={chips // ways},tensor={ways}"
            )
        guessed = declared(target.model, chip, work, ways=mesh.shape, **how)
        found = compiling(target.model, chip, mesh, work, **how, tick=tick)
        return Sources(remembering(found), guessed, mesh.shape)
    name, _, count = asked.hardware.partition(":")
    chip, chips = accelerator(name), _count(asked.hardware, count)
    if sizes and (set(sizes) != {"tensor"} or math.prod(sizes.values()) != chips):
        raise ValueError(
            f"mesh={asked.mesh!r}: what a maker declares is planned for tensor={chips} on "
            f"{asked.hardware}; other meshes are compiled for (v5e:2x4, say)"
        )
    ways = {**ALONE, "tensor": chips}
    if not divides(ways, target.model.config):
        raise ValueError(
            f"hardware={asked.hardware!r}: {chips} do not divide the heads and the feed-forward of "
            f"{asked.target}: take fewer, or compile for a slice with a mesh of two axes "
            "(v5e:4x4 and data=2,tensor=8, say)"
        )
    found = declared(target.model, chip, work, ways=ways, **how)
    return Sources(found, found, ways)


def check_measurable(asked: "Plan", target: Planned, drafts: "Sequence[Contender]") -> None:
    """Raises `ValueError` where acceptance is to be measured and cannot be."""
    if asked.acceptance != MEASURED:
        return
    if target.trained.tokenizer is None:
        raise ValueError(
            f"acceptance='measured': {asked.target} has no tokenizer, so that no prompt can be "
            "read: give numbers, such as 0.7"
        )
    for draft in drafts:
        if draft.trained is None and not asked.search:
            raise ValueError(
                f"acceptance='measured': {draft.name} was never trained, so that nothing can be "
                "measured of it: give numbers, such as 0.7"
            )


def outlooks_of(
    asked: "Plan",
    target: Planned,
    draft: "Contender",
    sources: Sources,
    tick: Callable[[str], None],
) -> "list[Outlook]":
    """What is to be expected of a draft at each batch size."""
    from jspec.plan.outlook import outlooks
    from jspec.plan.sources import size_of_draft

    accepted = acceptance_of(asked, target, draft, tick)
    size = size_of_draft(draft.part, target.model.config, "float32")
    cheap = sources.cheap
    return list(
        outlooks(
            draft.name,
            size.parameters,
            asked.batch,
            lambda batch: sources.source(draft, batch),
            accepted,
            cheap=cheap and (lambda batch: cheap(draft, batch)),
        )
    )


def acceptance_of(
    asked: "Plan", target: Planned, draft: "Contender", tick: Callable[[str], None]
) -> "Acceptance":
    """How often a draft's guesses are kept: as is said, as is measured, or as is assumed."""
    from jspec.plan.acceptance import counted, read_acceptance
    from jspec.plan.measured import kept
    from jspec.verify import coupled

    measured = asked.acceptance == MEASURED or (not asked.acceptance and asked.hardware == HERE)
    if measured and draft.trained is not None and target.trained.tokenizer is not None:
        tick(f"measuring what is accepted of {draft.name}")
        work = held_out_work(
            target.trained,
            prompts=PROMPTS,
            prompt_length=PROMPT_LENGTH,
            batch=PROMPTS,
            tokens=min(TOKENS, target.model.config.context - PROMPT_LENGTH),
            seed=settings.SEED,
        )
        found = kept(
            draft.trained, target.trained, work,
            rule=coupled, temperature=asked.temperature, depth=DEPTH, width=WIDTH,
        )  # fmt: skip
        told = f"measured on {PROMPTS} held-out prompts at T={asked.temperature:g}"
        return counted(found, told)
    if asked.acceptance not in ("", MEASURED):
        return read_acceptance(asked.acceptance)
    from dataclasses import replace

    assumed = read_acceptance(ASSUMED)
    return replace(assumed, source=f"assumed: {ASSUMED} at every depth (--acceptance says other)")


def searched(asked: "Plan", target: Planned, sources: Sources) -> "list[Contender]":
    """The draft shapes within the budget that should be fastest, were all kept as often; within
    milliseconds alone, the largest, for all of them are as fast."""
    from jspec.models.transformer import transformer
    from jspec.parallel.sharding import divides
    from jspec.plan.acceptance import read_acceptance
    from jspec.plan.gain import best
    from jspec.plan.imagined import describe, read_count, shapes
    from jspec.plan.outlook import chains
    from jspec.plan.sizes import parameters_of
    from jspec.plan.sources import Contender

    said = asked.acceptance not in ("", MEASURED)
    same, batch = read_acceptance(asked.acceptance if said else ASSUMED), asked.batch[0]
    source = sources.cheap or sources.source

    def contender(shape: "ModelConfig") -> "Contender":
        return Contender(describe(shape), transformer(shape))

    def cuts(shape: "ModelConfig") -> bool:
        return asked.replicate_draft or divides(sources.ways, shape)

    def quick(shape: "ModelConfig") -> bool:
        return not asked.latency or source(contender(shape), batch)[0].guess() <= asked.latency

    def worth(shape: "ModelConfig") -> float:
        if not asked.parameters:
            return parameters_of(shape)
        costs, _ = source(contender(shape), batch)
        return best(chains(), same, costs, batch=batch).tokens_per_second

    config = target.model.config
    if asked.parameters:
        budget = read_count(asked.parameters)
        within = shapes(config, lambda shape: parameters_of(shape) <= budget, cuts)
        kept = [one for one in within if 2 * parameters_of(one) >= budget and quick(one)]
    else:
        kept = list(shapes(config, quick, cuts))
    if not kept:
        raise ValueError(
            f"parameters={asked.parameters!r}, latency={asked.latency}: no shape is within both: "
            "give more"
        )
    return [contender(one) for one in sorted(kept, key=worth, reverse=True)[:FOUND]]


def _count(hardware: str, text: str) -> int:
    if not text:
        return 1
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 4096:
        raise ValueError(f"hardware={hardware!r}: write a number of them, as h100:8")
    return int(text)
