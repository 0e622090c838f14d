"""What is measured of a draft's shape, and what is predicted of it from other rounds."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jspec.bench.suite import Program, plain_program
from jspec.bench.timing import PLAIN, Run
from jspec.core.tree import Tree
from jspec.draft.draft import Draft, ModelDraft
from jspec.plan.forecast import predict
from jspec.plan.sizes import parameters_of
from jspec.studies.common.measure import (
    IN_DOMAIN,
    SEED,
    Evaluation,
    Material,
    RecordStore,
    time_in_turns,
    timings,
)
from jspec.studies.common.recipe import COUPLED
from jspec.studies.common.records import Measure, Record, Records, records_of
from jspec.studies.draft_shape.recipe import DraftShapeStudy, Shape, folder_of
from jspec.training.checkpoints import Note
from jspec.training.data import pack
from jspec.training.evaluation import held_out_loss
from jspec.training.objectives import language_model_loss
from jspec.training.recipe import read_temperatures
from jspec.training.run import make_setup
from jspec.tuning.acceptance import Acceptance, count_accepted, from_counts, method_of
from jspec.tuning.costs import Stopwatch
from jspec.verify import coupled

# What makes the material of one of the recipe's targets.
Find = Callable[[str], Material]


def measure(
    recipe: DraftShapeStudy, find: Find, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Trains drafts of every shape with every target, and measures and predicts each."""
    store = RecordStore(recipe)
    for target in recipe.targets:
        material = find(target)
        shapes = recipe.shapes(target, material.setup.target.model.config)
        note(f"{target} generates data, for all drafts")
        training = replace(recipe.training, target=target)
        data = material.teacher_data(training, recipe.folder / folder_of(target))
        drafts = []
        for number, shape in enumerate(shapes, start=1):
            note(f"draft {number} of {len(shapes)}: {shape.name}")
            run = recipe.training_run(target, shape)
            setup = make_setup(run, material.student(run, mesh), mesh=mesh)
            draft = material.train(run, setup, teacher_data=data, mesh=mesh, note=note)
            del setup  # its program, which is needed no more
            if draft is None:
                return None
            drafts.append(draft)
        measured = Measurement(recipe, target, material)
        for number, (shape, draft) in enumerate(zip(shapes, drafts, strict=True), start=1):
            note(f"measuring {number} of {len(shapes)}: {shape.name}")
            store.once(f"{folder_of(target)}/{shape.name}", measured.of, shape, draft)
    return store.records


class Measurement:
    """The prompts and the plain programs that all drafts of a target are measured beside."""

    def __init__(self, recipe: DraftShapeStudy, name: str, material: Material) -> None:
        self._recipe, self._name, self._target = recipe, name, material.setup.target
        evaluation = Evaluation(recipe, self._target, {IN_DOMAIN: material.held_out})
        sizes = {*recipe.batches, recipe.prompts}
        self._work = {batch: evaluation.work(recipe.prompts, batch) for batch in sizes}
        self._plain = {
            batch: plain_program(self._target, self._work[batch]) for batch in recipe.batches
        }
        texts = material.held_out
        documents = texts.at(read_temperatures("served", "1").draw(SEED, len(texts)))
        self._held_out = pack(documents, recipe.training.sequence_length, lengths=texts.lengths)

    def of(self, shape: Shape, draft: ModelDraft) -> Iterator[Record]:
        """All numbers of a draft."""
        recipe = self._recipe
        sizes = {
            Measure.PARAMETERS: parameters_of(shape.config),
            Measure.CROSS_ENTROPY: self._cross_entropy(draft),
        }
        place: dict[str, Any] = {"draft": shape.name, "target": self._name}
        yield from records_of(sizes, **place)
        accepted = {t: self._acceptance(draft, t) for t in recipe.temperatures}
        for temperature, found in accepted.items():
            first = {Measure.ACCEPTED_BY_POSITION: float(found.shares[0, 0])}
            yield from records_of(first, position=1, temperature=temperature, **place)
        for batch in recipe.batches:
            here = {"batch": batch, "group": shape.name, **place}
            yield from self._timed(draft, accepted, **here)

    def _cross_entropy(self, draft: ModelDraft) -> float:
        """As a language model, on held-out text."""
        objective = functools.partial(language_model_loss, model=draft.checkpoint.model)
        loss = held_out_loss(objective, (), self._held_out, self._recipe.training.batch_size)
        return loss(draft.params)["held_out_loss"]

    def _acceptance(self, draft: Draft, temperature: float) -> Acceptance:
        depth = max(*self._recipe.depths, *self._recipe.probes)
        found = count_accepted(
            draft, self._target, self._work[self._recipe.prompts],
            rule=coupled, temperature=temperature, depth=depth, width=1,
        )  # fmt: skip
        return from_counts(found, f"measured along chain:{depth}")

    def _timed(
        self, timed: Draft, accepted: Mapping[float, Acceptance], batch: int, **place: Any
    ) -> Iterator[Record]:
        """Chains as they are, beside plain decoding, since a machine is not the same all the while;
        then as they are predicted of rounds along other chains."""
        recipe, work, target = self._recipe, self._work[batch], self._target
        place["batch"] = batch
        watches = {
            temperature: Stopwatch(
                timed, target, work, rule=coupled, temperature=temperature,
                probes=[Tree.chain(depth) for depth in recipe.probes], tick=lambda _: None,
            )
            for temperature in recipe.temperatures
        }  # fmt: skip
        methods = [method_of(timed, Tree.chain(x), coupled, str(x)) for x in recipe.depths]
        programs = [Program(one, target.model, target.params, work) for one in methods]
        runners = [self._plain[batch], *programs, Between(watches)]
        for row in time_in_turns(runners, work, recipe):
            here = {**place, "temperature": row.temperature}
            speed = timings(row, Measure.TOKENS_PER_SECOND)
            if row.method == PLAIN:
                yield from records_of(speed, **{**here, "draft": PLAIN})
            else:
                speed |= timings(row, Measure.SPEEDUP, Measure.ACCEPTANCE_LENGTH)
                yield from records_of(speed, **chain(int(row.method)), **here)
        for temperature, watch in watches.items():
            here, costs = {**place, "temperature": temperature}, watch.costs()
            yield from records_of({Measure.DRAFT_MS_PER_TOKEN: costs.draft_level()}, **here)
            for depth in recipe.depths:
                found = predict(
                    Tree.chain(depth), accepted[temperature], costs,
                    batch=batch, tokens=recipe.max_new_tokens,
                )  # fmt: skip
                numbers = {
                    Measure.PREDICTED_TOKENS_PER_SECOND: found.tokens_per_second,
                    Measure.PREDICTED_SPEEDUP: found.speedup,
                }
                yield from records_of(numbers, **chain(depth), **here)


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
        """As `Runner.__call__`; there is no text."""
        del batch
        self.watches[temperature].time()
        return Run(0.0, np.zeros((0, 0), np.int32))
