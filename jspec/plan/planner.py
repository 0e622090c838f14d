"""`plan`: the forecasts of drafts for a target on some hardware, ranked; and shapes that are
searched within a budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jspec.bench import settings
from jspec.bench.suite import held_out_work
from jspec.config import ModelConfig
from jspec.core.checks import check_counts, check_distinct, check_temperatures
from jspec.models.transformer import transformer
from jspec.parallel.sharding import divides, most_tensor_devices, read_sizes
from jspec.plan.drafts import PlannedTarget, planned_draft, planned_target
from jspec.plan.forecast import Forecast, best, chains, forecasts, ranking
from jspec.plan.hardware import accelerators, devices_of, mesh_on, slice_of
from jspec.plan.shapes import SHAPES, read_count, shapes, write_shape
from jspec.plan.sizes import parameters_of, size_of_draft
from jspec.plan.sources import (
    PlannedDraft,
    Source,
    TextLengths,
    cached,
    compiling,
    declared,
    measuring,
)
from jspec.tuning.acceptance import Acceptance, count_accepted, from_counts, read_acceptance
from jspec.verify import coupled

HERE, MEASURED = "here", "measured"
# What is accepted at every depth where nobody says and nothing is measured.
ASSUMED = "0.7"
# Held-out prompts that are decoded where acceptance is measured, and how deep and wide it is.
PROMPTS, PROMPT_LENGTH, TOKENS, DEPTH, WIDTH = 16, 64, 128, 8, 4
FOUND = 8  # shapes that a search shows
ALONE = {"data": 1, "fsdp": 1, "tensor": 1}  # one device
Tick = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to plan for.

    Attributes:
      target, drafts: by name, as `planned_target` and `planned_draft` take them.
      hardware: `here` is measured, `v5e:2x4` is compiled for, `h100:8` is declared.
      batch: texts that are written together; a forecast for each.
      context: tokens of a text, one half of them prompt.
      acceptance: as `read_acceptance` takes it, or `measured`; empty for measured where it can be,
        else `ASSUMED`.
      mesh: such as `data=2,tensor=4`; empty for `tensor=` all chips.
      dtype: of weights and caches; empty for float32 here and bfloat16 elsewhere.
      replicate_draft: whether every device has the whole draft.
      search: whether draft shapes are searched, within `parameters` or `latency` (milliseconds of
        one level of drafting).
    """

    target: str = settings.TARGET
    drafts: tuple[str, ...] = (settings.DRAFT,)
    hardware: str = HERE
    batch: tuple[int, ...] = (1,)
    context: int = 256
    temperature: float = 0.0
    acceptance: str = ""
    mesh: str = ""
    dtype: str = ""
    replicate_draft: bool = False
    search: bool = False
    parameters: str = ""
    latency: float = 0.0

    def __post_init__(self) -> None:
        for batch in self.batch:
            check_counts(batch=batch)
        if not self.batch:
            raise ValueError("batch is empty: give at least one size")
        if self.context < 2:
            raise ValueError(f"context={self.context}: a prompt and a new token are at least 2")
        check_temperatures((self.temperature,))
        if not self.drafts and not self.search:
            raise ValueError("drafts is empty: name at least one, or --search")
        check_distinct(drafts=self.drafts, batch=self.batch)
        if self.hardware == HERE and self.mesh:
            raise ValueError(
                f"mesh={self.mesh!r}: what is measured here is one device; name other hardware for "
                "a mesh"
            )
        self._check_search()
        if self.acceptance == MEASURED and self.target in SHAPES:
            raise ValueError(
                f"acceptance='measured': {self.target} is a shape without weights: name a folder "
                "or a hub name, or give numbers, such as 0.7"
            )

    @property
    def numbers(self) -> str:
        """The type of weights and caches."""
        return self.dtype or ("float32" if self.hardware == HERE else "bfloat16")

    @property
    def lengths(self) -> TextLengths:
        """Of prompts and of what follows."""
        return TextLengths(self.context // 2, self.context - self.context // 2)

    def _check_search(self) -> None:
        if self.latency < 0 or math.isnan(self.latency):
            raise ValueError(f"latency={self.latency}: milliseconds, 0 for no limit")
        if self.search and not (self.parameters or self.latency):
            raise ValueError("search has no budget: give --parameters 2M or --latency 0.5")
        if self.search and not self.parameters and self.hardware == HERE:
            raise ValueError(
                f"latency={self.latency}: here every shape would have to be timed, so give "
                "--parameters as well, or other --hardware"
            )
        if self.parameters:
            read_count(self.parameters)
        if (self.parameters or self.latency) and not self.search:
            raise ValueError(
                f"parameters={self.parameters!r}, latency={self.latency}: these are of a search: "
                "add --search"
            )


def plan(request: PlanRequest, tick: Tick = lambda _: None) -> list[Forecast]:
    """Forecasts for every draft and batch size, the fastest of each size first.

    Raises `ValueError` where nothing fits, with what would.
    """
    needs_weights = request.hardware == HERE or request.acceptance == MEASURED
    target = planned_target(request.target, request.numbers, weights=needs_weights)
    drafts = [planned_draft(name, target, request.numbers) for name in request.drafts]
    _check_measurable(request, target, drafts)
    costs = cost_sources(request, target, tick)
    if request.search:
        drafts += search_shapes(request, target, costs)
    found = [one for draft in drafts for one in _forecasts(request, target, draft, costs, tick)]
    ranked = [
        one
        for batch in request.batch
        for one in ranking(each for each in found if each.batch == batch)
    ]
    if not any(one.memory.fits for one in ranked):
        least = min(ranked, key=lambda one: one.memory.needed)
        raise ValueError(
            f"hardware={request.hardware!r}: {request.target} with {least.draft} at batch "
            f"{least.batch} {least.memory.refusal()}"
        )
    return ranked


class CostSources(NamedTuple):
    """Where costs come from.

    Attributes:
      source: the best there is; cheap: one that takes no time, None where there is none.
      mesh_shape: how many chips there are along each axis of the mesh.
    """

    source: Source
    cheap: Source | None
    mesh_shape: Mapping[str, int]


def cost_sources(request: PlanRequest, target: PlannedTarget, tick: Tick) -> CostSources:
    """For the hardware that is asked for; raises `ValueError` for hardware or a mesh that cannot
    run the target."""
    config = target.model.config
    if request.context > config.max_position_embeddings:
        raise ValueError(
            f"context={request.context}: the target has one of {config.max_position_embeddings}"
        )
    if request.hardware == HERE:
        how = {"temperature": request.temperature, "dtype": request.numbers}
        return CostSources(
            cached(measuring(target.trained, request.lengths, **how, tick=tick)), None, ALONE
        )
    if slice_of(request.hardware) is not None:
        return _slice_costs(request, target, tick)
    chip, chips = accelerators(request.hardware)
    sizes = read_sizes(request.mesh)
    if sizes and (set(sizes) != {"tensor"} or math.prod(sizes.values()) != chips):
        raise ValueError(
            f"mesh={request.mesh!r}: what a maker declares is planned for tensor={chips} on "
            f"{request.hardware}; other meshes are compiled for (v5e:2x4, say)"
        )
    mesh_shape = {**ALONE, "tensor": chips}
    if not divides(mesh_shape, config):
        raise ValueError(
            f"hardware={request.hardware!r}: {chips} do not divide the heads and the feed-forward "
            f"of {request.target}: take fewer, or compile for a slice with a mesh of two axes "
            "(v5e:4x4 and data=2,tensor=8, say)"
        )
    how = {"dtype": request.numbers, "replicated": request.replicate_draft}
    found = declared(target.model, chip, request.lengths, mesh_shape=mesh_shape, **how)
    return CostSources(found, found, mesh_shape)


def acceptance_of(
    request: PlanRequest, target: PlannedTarget, draft: PlannedDraft, tick: Tick
) -> Acceptance:
    """How often a draft is accepted: as stated, as measured, or as assumed."""
    wanted = request.acceptance == MEASURED or (not request.acceptance and request.hardware == HERE)
    if wanted and draft.trained is not None and target.trained.tokenizer is not None:
        tick(f"measuring the acceptance of {draft.name}")
        work = held_out_work(
            target.trained,
            prompts=PROMPTS,
            prompt_length=PROMPT_LENGTH,
            batch=PROMPTS,
            tokens=min(TOKENS, target.model.config.max_position_embeddings - PROMPT_LENGTH),
            seed=settings.SEED,
        )
        counts = count_accepted(
            draft.trained, target.trained, work,
            rule=coupled, temperature=request.temperature, depth=DEPTH, width=WIDTH,
        )  # fmt: skip
        source = f"measured on {PROMPTS} held-out prompts at T={request.temperature:g}"
        return from_counts(counts, source)
    if request.acceptance not in ("", MEASURED):
        return read_acceptance(request.acceptance)
    source = f"assumed: {ASSUMED} at every depth (--acceptance gives another)"
    return replace(read_acceptance(ASSUMED), source=source)


def search_shapes(
    request: PlanRequest, target: PlannedTarget, costs: CostSources
) -> list[PlannedDraft]:
    """The draft shapes within the budget that should be fastest if all were accepted as often;
    within milliseconds alone the largest, for all of them are as fast."""
    config, batch = target.model.config, request.batch[0]
    stated = request.acceptance not in ("", MEASURED)
    same = read_acceptance(request.acceptance if stated else ASSUMED)
    source = costs.cheap or costs.source

    def draft(shape: ModelConfig) -> PlannedDraft:
        return PlannedDraft(write_shape(shape), transformer(shape))

    def divided(shape: ModelConfig) -> bool:
        return request.replicate_draft or divides(costs.mesh_shape, shape)

    def quick(shape: ModelConfig) -> bool:
        limit = request.latency
        return not limit or source(draft(shape), batch)[0].draft_level() <= limit

    def worth(shape: ModelConfig) -> float:
        if not request.parameters:
            return parameters_of(shape)
        found, _ = source(draft(shape), batch)
        return best(chains(), same, found, batch=batch).tokens_per_second

    if request.parameters:
        budget = read_count(request.parameters)
        within = shapes(config, lambda shape: parameters_of(shape) <= budget, divided)
        found = [one for one in within if 2 * parameters_of(one) >= budget and quick(one)]
    else:
        found = list(shapes(config, quick, divided))
    if not found:
        raise ValueError(
            f"parameters={request.parameters!r}, latency={request.latency}: no shape is within "
            "both: give more"
        )
    return [draft(one) for one in sorted(found, key=worth, reverse=True)[:FOUND]]


def _check_measurable(
    request: PlanRequest, target: PlannedTarget, drafts: Sequence[PlannedDraft]
) -> None:
    """Raises `ValueError` where acceptance should be measured and cannot be."""
    if request.acceptance != MEASURED:
        return
    if target.trained.tokenizer is None:
        raise ValueError(
            f"acceptance='measured': {request.target} has no tokenizer, so that no prompt can be "
            "read: give numbers, such as 0.7"
        )
    for draft in drafts:
        if draft.trained is None and not request.search:
            raise ValueError(
                f"acceptance='measured': {draft.name} was never trained, so that nothing can be "
                "measured of it: give numbers, such as 0.7"
            )


def _slice_costs(request: PlanRequest, target: PlannedTarget, tick: Tick) -> CostSources:
    """By compiling for a TPU slice."""
    chip, sides = slice_of(request.hardware)
    config, chips = target.model.config, math.prod(sides)
    sizes = read_sizes(request.mesh) or {"tensor": chips}
    mesh = mesh_on(devices_of(request.hardware), sizes)
    if not divides(mesh.shape, config):
        most = most_tensor_devices(config, [n for n in range(1, chips + 1) if not chips % n])
        raise ValueError(
            f"mesh={request.mesh or f'tensor={chips}'!r} does not divide the heads, the width "
            f"and the feed-forward of {request.target}: take fsdp={chips // most},tensor={most}"
        )
    how = {"dtype": request.numbers, "replicated": request.replicate_draft}
    estimate = declared(target.model, chip, request.lengths, mesh_shape=mesh.shape, **how)
    found = compiling(target.model, chip, mesh, request.lengths, **how, tick=tick)
    return CostSources(cached(found), estimate, mesh.shape)


def _forecasts(
    request: PlanRequest, target: PlannedTarget, draft: PlannedDraft, costs: CostSources, tick: Tick
) -> list[Forecast]:
    """Of a draft at each batch size."""
    accepted = acceptance_of(request, target, draft, tick)
    size = size_of_draft(draft.part, target.model.config, "float32")
    cheap = costs.cheap
    return list(
        forecasts(
            draft.name,
            size.parameters,
            request.batch,
            lambda batch: costs.source(draft, batch),
            accepted,
            cheap=cheap and (lambda batch: cheap(draft, batch)),
        )
    )
