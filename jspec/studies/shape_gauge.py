"""What is measured of a draft's shape, and what is foretold of it from other rounds."""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jspec.bench.drafts import ModelDraft
from jspec.bench.suite import PLAIN, Method, Program, Workload, workload
from jspec.bench.summary import Row, summarise
from jspec.bench.timing import Run, interleave
from jspec.core.tree import Tree
from jspec.distill.data import pack
from jspec.distill.evaluation import held_out_loss
from jspec.distill.objective import language_model
from jspec.distill.progress import progress
from jspec.distill.temperatures import read_temperatures
from jspec.plan.acceptance import Acceptance, counted
from jspec.plan.costs import Costs
from jspec.plan.gain import predict
from jspec.plan.measured import Stopwatch, kept, method_of
from jspec.plan.sizes import parameters_of
from jspec.studies.material import SEED, Material, windows
from jspec.studies.records import Record
from jspec.studies.shape_recipe import DraftShapeStudy, Pupil
from jspec.verify import coupled

SIZE, LOSS = "parameters", "nats a token"
KEPT, LATENCY = "guesses kept at depth 1", "milliseconds a guess"
PER_SECOND, OVER, PER_ROUND = "tokens a second", "over plain", "tokens a round"
FORETOLD, FORETOLD_OVER = "tokens a second, foretold", "over plain, foretold"


def in_batch(measure: str, batch: int) -> str:
    """A measure in such a batch."""
    return f"{measure}, batch {batch}"


def at(measure: str, depth: int, batch: int) -> str:
    """A measure of a chain of that depth in such a batch."""
    return in_batch(f"{measure}, depth {depth}", batch)


class Gauge:
    """The prompts and the plain programs that all drafts of a target are measured beside."""

    def __init__(self, recipe: DraftShapeStudy, name: str, material: Material) -> None:
        self._recipe, self._name = recipe, name
        self._target = target = material.course.target
        context = target.model.config.context
        rows = windows(material.held_out, recipe.prompts, recipe, context=context)
        self._work = {
            batch: workload(rows, batch=batch, tokens=recipe.tokens, context=context, seed=SEED)
            for batch in {*recipe.batches, recipe.prompts}
        }
        self._plain = {
            batch: Program(Method(PLAIN), target.model, target.params, self._work[batch])
            for batch in recipe.batches
        }
        texts = material.held_out
        told = texts.at(read_temperatures("served", "1").draw(SEED, len(texts)))
        self._held_out = pack(told, recipe.teaching.length, lengths=texts.lengths)

    def records(self, pupil: Pupil, draft: ModelDraft) -> list[Record]:
        """All numbers of a draft; what is foretold of a chain comes of rounds along others."""
        found = [
            self._record(pupil, 0.0, SIZE, parameters_of(pupil.config)),
            self._record(pupil, 0.0, LOSS, self._loss(draft)),
        ]
        accepted = {served: self._acceptance(draft, served) for served in self._recipe.served}
        for batch in self._recipe.batches:
            watches = {served: self._stopwatch(draft, batch, served) for served in accepted}
            measured = list(self._measured(pupil, draft, batch, watches))
            for served, watch in watches.items():
                found += self._foretold(pupil, accepted[served], watch.costs(), batch, served)
            found += measured
        return found

    def _record(self, pupil: Pupil, served: float, measure: str, value: float) -> Record:
        return Record(
            draft=pupil.name, seed=0, domain=self._name, served=served, measure=measure, value=value
        )

    def _loss(self, draft: ModelDraft) -> float:
        """As a language model, on held-out text."""
        objective = functools.partial(language_model, model=draft.checkpoint.model)
        measure = held_out_loss(objective, (), self._held_out, self._recipe.teaching.batch)
        return measure(draft.params)["held_out_loss"]

    def _acceptance(self, draft: ModelDraft, served: float) -> Acceptance:
        depth = max(*self._recipe.depths, *self._recipe.probes)
        found = kept(
            draft, self._target, self._work[self._recipe.prompts],
            rule=coupled, temperature=served, depth=depth, width=1,
        )  # fmt: skip
        return counted(found, f"measured along chain:{depth}")

    def _stopwatch(self, draft: ModelDraft, batch: int, served: float) -> Stopwatch:
        return Stopwatch(
            draft, self._target, self._work[batch],
            rule=coupled, temperature=served,
            probes=[Tree.chain(depth) for depth in self._recipe.probes],
            tick=lambda said: None,
        )  # fmt: skip

    def _foretold(
        self, pupil: Pupil, accepted: Acceptance, spent: Costs, batch: int, served: float
    ) -> Iterator[Record]:
        yield self._record(pupil, served, in_batch(LATENCY, batch), spent.guess())
        if batch == self._recipe.batches[0]:
            yield self._record(pupil, served, KEPT, float(accepted.shares[0, 0]))
        for depth in self._recipe.depths:
            told = predict(
                Tree.chain(depth), accepted, spent, batch=batch, tokens=self._recipe.tokens
            )
            for measure, value in (
                (FORETOLD, told.tokens_per_second),
                (FORETOLD_OVER, told.speedup),
            ):
                yield self._record(pupil, served, at(measure, depth, batch), value)

    def _measured(
        self, pupil: Pupil, draft: ModelDraft, batch: int, watches: Mapping[float, Stopwatch]
    ) -> Iterator[Record]:
        work, target = self._work[batch], self._target
        programs = [self._plain[batch]]
        for depth in self._recipe.depths:
            method = method_of(draft, Tree.chain(depth), coupled, str(depth))
            programs.append(Program(method, target.model, target.params, work))
        for row in self._timed(programs, Between(watches), work):
            if row.method == PLAIN:
                yield self._record(
                    pupil, row.temperature, in_batch(PLAIN, batch), row.tokens_per_second
                )
                continue
            depth = int(row.method)
            for measure, value in (
                (PER_SECOND, row.tokens_per_second),
                (OVER, row.speedup),
                (PER_ROUND, row.tokens_per_round),
            ):
                yield self._record(pupil, row.temperature, at(measure, depth, batch), value)

    def _timed(self, programs: list[Program], between: "Between", work: Workload) -> list[Row]:
        batches = len(work.batches)
        total = self._recipe.repetitions * len(self._recipe.served) * batches
        with progress("timing", total) as show:
            done = iter(range(total))
            samples = interleave(
                [*programs, between],
                batches=batches,
                temperatures=self._recipe.served,
                repetitions=self._recipe.repetitions,
                tick=lambda said: show(next(done), said),
            )
        return summarise([one for one in samples if one.method != between.name], coupled=())


class Between(NamedTuple):
    """A `Runner` that times parts of rounds between the texts, by the stopwatch of a temperature:
    a machine's pace drifts by a tenth in minutes, and both are to be of the same minutes."""

    watches: Mapping[float, Stopwatch]
    name: str = "between"

    def __call__(self, batch: int, temperature: float) -> Run:
        self.watches[temperature].time()
        return Run(0.0, np.zeros((0, 0), np.int32))
