"""What is measured of a draft's shape, and what is predicted of it from other rounds."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jspec.bench.suite import Program, plain_program, workload
from jspec.bench.timing import PLAIN, Run
from jspec.core.tree import Tree
from jspec.draft.draft import ModelDraft, load_draft
from jspec.models.transformer import transformer
from jspec.plan.forecast import predict
from jspec.plan.sizes import parameters_of
from jspec.studies.common.measure import (
    SEED,
    Material,
    drop_programs,
    evaluation_prompts,
    time_in_turns,
    timings,
)
from jspec.studies.common.recipe import COUPLED
from jspec.studies.common.records import Measure, Record, Records, RecordStore
from jspec.studies.draft_shape.recipe import DraftShapeStudy, Shape, folder_of
from jspec.training.checkpoints import Note
from jspec.training.data import pack
from jspec.training.evaluation import held_out_loss
from jspec.training.loading import load_student
from jspec.training.objectives import language_model_loss
from jspec.training.recipe import read_temperatures
from jspec.training.run import make_setup, run_distillation
from jspec.tuning.acceptance import Acceptance, count_accepted, from_counts, method_of
from jspec.tuning.costs import Stopwatch
from jspec.verify import coupled

# What makes the material of one of the recipe's targets.
Find = Callable[[str], Material]


def measure(
    recipe: DraftShapeStudy, find: Find, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Trains drafts of every shape with every target, and measures and predicts each.

    What is done is kept below `output/name`, and not done again. None if the machine was taken
    away meanwhile.
    """
    store = RecordStore(recipe)
    for target in recipe.targets:
        material = find(target)
        drafts = []
        for shape, draft in _trained(recipe, target, material, mesh, note):
            if draft is None:
                return None
            drafts.append((shape, draft))
        drop_programs()
        measured = Measurement(recipe, target, material)
        for number, (shape, draft) in enumerate(drafts, start=1):
            note(f"measuring {number} of {len(drafts)}: {shape.name}")
            place = f"{folder_of(target)}/{shape.name}"
            store.once(place, functools.partial(measured.of, shape, draft))
            drop_programs()
    return store.records


def _trained(
    recipe: DraftShapeStudy, target: str, material: Material, mesh: Mesh | None, note: Note
) -> Iterator[tuple[Shape, ModelDraft | None]]:
    """Each draft once it is trained; None in its place if there was no time."""
    teacher = material.setup.target
    shapes = recipe.shapes(target, teacher.model.config)
    note(f"{target} generates data, for all drafts")
    place = recipe.folder / folder_of(target)
    data = material.teacher_data(replace(recipe.training, target=target), place)
    for number, shape in enumerate(shapes, start=1):
        note(f"draft {number} of {len(shapes)}: {shape.name}")
        run = recipe.training_run(target, shape)
        student = load_draft(load_student(run, teacher, mesh), teacher)
        drop_programs()
        done = run_distillation(
            run, make_setup(run, student, mesh=mesh), material.texts, material.held_out,
            teacher_data=data, mesh=mesh, note=note,
        )  # fmt: skip
        if done.step < run.steps:
            yield shape, None
            return
        trained = replace(teacher, model=transformer(shape.config), params=done.params)
        yield shape, ModelDraft(teacher, shape.name, trained)


class Measurement:
    """The prompts and the plain programs that all drafts of a target are measured beside."""

    def __init__(self, recipe: DraftShapeStudy, name: str, material: Material) -> None:
        self._recipe, self._name = recipe, name
        self._target = target = material.setup.target
        context = target.model.config.max_position_embeddings
        rows = evaluation_prompts(
            material.held_out, recipe.prompts, length=recipe.prompt_length,
            max_new_tokens=recipe.max_new_tokens, context=context,
        )  # fmt: skip
        sizes = {"tokens": recipe.max_new_tokens, "context": context, "seed": SEED}
        self._work = {
            batch: workload(rows, batch=batch, **sizes)
            for batch in {*recipe.batches, recipe.prompts}
        }
        self._plain = {batch: plain_program(target, self._work[batch]) for batch in recipe.batches}
        texts = material.held_out
        documents = texts.at(read_temperatures("served", "1").draw(SEED, len(texts)))
        self._held_out = pack(documents, recipe.training.sequence_length, lengths=texts.lengths)

    def of(self, shape: Shape, draft: ModelDraft) -> Iterator[Record]:
        """All numbers of a draft; what is predicted of a chain comes of rounds along others."""
        recipe = self._recipe
        here = functools.partial(Record, draft=shape.name, target=self._name)
        yield here(measure=Measure.PARAMETERS, value=parameters_of(shape.config))
        yield here(measure=Measure.CROSS_ENTROPY, value=self._cross_entropy(draft))
        accepted = {t: self._acceptance(draft, t) for t in recipe.temperatures}
        for temperature, found in accepted.items():
            share = float(found.shares[0, 0])
            first = {"position": 1, "temperature": temperature, "value": share}
            yield here(measure=Measure.ACCEPTED_BY_POSITION, **first)
        for batch in recipe.batches:
            watches = {t: self._stopwatch(draft, batch, t) for t in recipe.temperatures}
            # Plain decoding is timed beside each: a machine is not the same all the while.
            there = functools.partial(here, batch=batch, group=shape.name)
            yield from self._measured(there, draft, batch, watches)
            for temperature, watch in watches.items():
                place = functools.partial(there, temperature=temperature)
                yield from self._predicted(place, accepted[temperature], watch, batch)

    def _cross_entropy(self, draft: ModelDraft) -> float:
        """As a language model, on held-out text."""
        objective = functools.partial(language_model_loss, model=draft.checkpoint.model)
        loss = held_out_loss(objective, (), self._held_out, self._recipe.training.batch_size)
        return loss(draft.params)["held_out_loss"]

    def _acceptance(self, draft: ModelDraft, temperature: float) -> Acceptance:
        depth = max(*self._recipe.depths, *self._recipe.probes)
        found = count_accepted(
            draft, self._target, self._work[self._recipe.prompts],
            rule=coupled, temperature=temperature, depth=depth, width=1,
        )  # fmt: skip
        return from_counts(found, f"measured along chain:{depth}")

    def _stopwatch(self, draft: ModelDraft, batch: int, temperature: float) -> Stopwatch:
        return Stopwatch(
            draft, self._target, self._work[batch],
            rule=coupled, temperature=temperature,
            probes=[Tree.chain(depth) for depth in self._recipe.probes],
            tick=lambda _: None,
        )  # fmt: skip

    def _predicted(
        self, here: Callable[..., Record], accepted: Acceptance, watch: Stopwatch, batch: int
    ) -> Iterator[Record]:
        costs = watch.costs()
        yield here(measure=Measure.DRAFT_MS_PER_TOKEN, value=costs.draft_level())
        for depth in self._recipe.depths:
            found = predict(
                Tree.chain(depth), accepted, costs,
                batch=batch, tokens=self._recipe.max_new_tokens,
            )  # fmt: skip
            for name, value in (
                (Measure.PREDICTED_TOKENS_PER_SECOND, found.tokens_per_second),
                (Measure.PREDICTED_SPEEDUP, found.speedup),
            ):
                yield here(measure=name, value=value, **chain(depth))

    def _measured(
        self,
        here: Callable[..., Record],
        draft: ModelDraft,
        batch: int,
        watches: Mapping[float, Stopwatch],
    ) -> Iterator[Record]:
        recipe, work, target = self._recipe, self._work[batch], self._target
        methods = [
            method_of(draft, Tree.chain(depth), coupled, str(depth)) for depth in recipe.depths
        ]
        programs = [Program(one, target.model, target.params, work) for one in methods]
        runners, between = [self._plain[batch], *programs], Between(watches)
        for row in time_in_turns(
            [*runners, between], work, recipe.temperatures, recipe.repetitions,
            left_out=[between.name],
        ):  # fmt: skip
            there = functools.partial(here, temperature=row.temperature)
            if row.method == PLAIN:
                yield there(
                    measure=Measure.TOKENS_PER_SECOND, value=row.tokens_per_second, draft=PLAIN
                )
                continue
            for name, value in timings(
                row, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP, Measure.ACCEPTANCE_LENGTH
            ):
                yield there(measure=name, value=value, **chain(int(row.method)))


def chain(depth: int) -> dict[str, Any]:
    """The fields that find a chain of that depth."""
    return {"rule": COUPLED, "tree": f"chain:{depth}"}


@dataclass(eq=False)
class Between:
    """A `Runner` that times parts of rounds between the texts, by the stopwatch of a temperature:
    a machine's pace drifts by a tenth in minutes, and both are to be of the same minutes."""

    watches: Mapping[float, Stopwatch]
    name: str = "between"

    def __call__(self, batch: int, temperature: float) -> Run:
        """As `Runner.__call__`."""
        del batch
        self.watches[temperature].time()
        return Run(0.0, np.zeros((0, 0), np.int32))
