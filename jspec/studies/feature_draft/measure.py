"""What is measured of heads and small models over several trees: acceptance and time."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jspec.bench.breakdown import latencies
from jspec.bench.suite import Method
from jspec.bench.timing import PLAIN
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.draft import Draft
from jspec.studies.common.measure import (
    IN_DOMAIN,
    Evaluation,
    Material,
    RecordStore,
    compile_programs,
    drop_programs,
    time_in_turns,
    timings,
)
from jspec.studies.common.recipe import COUPLED
from jspec.studies.common.records import Measure, Record, Records, records_of
from jspec.studies.feature_draft.recipe import FeatureDraftStudy
from jspec.training.checkpoints import Note
from jspec.training.loop import progress
from jspec.training.run import TrainSetup, make_setup
from jspec.training.student import trained_part

Trees = Mapping[str, Tree | DynamicTree]
# What is measured of a draft over a tree beside plain decoding.
TIMED = Measure.DRAFT_MS, Measure.ROUND_MS, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP


def measure(
    recipe: FeatureDraftStudy, material: Material, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Trains every head, measures them all, and times one of each kind beside plain decoding and
    small models."""
    target, config = material.setup.target, material.setup.target.model.config
    trees = recipe.read_trees(config.max_position_embeddings)
    timed = {name: material.find(name) for name in recipe.drafts}
    evaluation = Evaluation(recipe, target, material.domains)
    store = RecordStore(recipe)
    measured = functools.partial(_acceptances, recipe, evaluation, trees)
    for name, draft in timed.items():
        store.once(f"{name.replace('/', '_')} 0", measured, name, 0, draft)
    note("the target generates data, for all heads")
    data = material.teacher_data(recipe.training, recipe.folder)
    setups: dict[str, TrainSetup] = {}
    total = recipe.seeds * len(recipe.kinds)
    for number, (kind, seed, run) in enumerate(recipe.runs(config), start=1):
        note(f"head {number} of {total}: {kind}, seed {seed}")
        student = material.student(run, mesh)
        if kind not in setups:
            setups[kind] = make_setup(run, student, mesh=mesh)
        # One program serves all seeds, each with first parameters of its own.
        setup = setups[kind]._replace(student=student)
        draft = material.train(run, setup, teacher_data=data, mesh=mesh, note=note)
        if draft is None:
            return None
        store.once(f"{kind} {seed}", measured, kind, seed, draft)
        timed.setdefault(kind, draft)
    store.once("timing", _timings, recipe, evaluation, trees, timed)
    return store.records


def _acceptances(
    recipe: FeatureDraftStudy,
    evaluation: Evaluation,
    trees: Trees,
    name: str,
    seed: int,
    draft: Draft,
) -> Iterator[Record]:
    """How much of what a draft proposes is accepted, in every domain, along each of its trees."""
    target = recipe.training.target
    place: dict[str, Any] = {"draft": name, "seed": seed, "target": target, "rule": COUPLED}
    for domain in evaluation.rows:
        for tree in recipe.trees_of(name):
            drafter = draft.drafter(trees[tree])
            for temperature in recipe.temperatures:
                here = {"domain": domain, "temperature": temperature, "tree": tree}
                yield from evaluation.acceptance(drafter, draft.params, **place, **here)


def _timings(
    recipe: FeatureDraftStudy, evaluation: Evaluation, trees: Trees, timed: Mapping[str, Draft]
) -> Iterator[Record]:
    """Whole decoding a prompt at a time, in turns; how long each draft takes; and its size."""
    target, work = evaluation.target, evaluation.work(recipe.timed_prompts)
    methods, places = [], {PLAIN: {"draft": PLAIN}}
    for name, draft in timed.items():
        for tree in recipe.trees_of(name):
            along = f"{name}, {tree}"
            methods.append(Method(along, draft.drafter(trees[tree]), draft.params))
            places[along] = {"draft": name, "rule": COUPLED, "tree": tree}
    target_name = recipe.training.target
    alike: dict[str, Any] = {"target": target_name, "domain": IN_DOMAIN, "batch": 1}
    programs = compile_programs([Method(PLAIN), *methods], target, work)
    for row in time_in_turns(programs, work, recipe):
        found = timings(row, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP)
        yield from records_of(found, temperature=row.temperature, **places[row.method], **alike)
    del programs
    drop_programs()
    for temperature in recipe.temperatures:
        with progress(f"drafting, T={temperature:g}", len(methods)) as show:
            done = iter(range(1, len(methods) + 1))
            rows = latencies(
                methods, target.model, target.params, work,
                temperature=temperature, repetitions=recipe.repetitions,
                tick=lambda show=show, done=done: show(next(done), ""),
            )  # fmt: skip
        for row in rows:
            found = {Measure.DRAFT_MS: row.draft_ms, Measure.ROUND_MS: row.round_ms}
            yield from records_of(found, temperature=temperature, **places[row.method], **alike)
    for name, draft in timed.items():
        size = sum(x.size for x in jax.tree.leaves(trained_part(draft)[1]))
        yield Record(measure=Measure.PARAMETERS, value=size, draft=name, target=target_name)
