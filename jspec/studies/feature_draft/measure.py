"""What is measured of heads and small models over several trees: acceptance and time."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jspec.bench.breakdown import latencies
from jspec.bench.suite import Method
from jspec.bench.timing import PLAIN
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.draft import Draft, load_draft
from jspec.studies.common.measure import (
    IN_DOMAIN,
    Evaluation,
    Material,
    acceptance,
    compile_programs,
    drop_programs,
    time_in_turns,
    timings,
)
from jspec.studies.common.recipe import COUPLED
from jspec.studies.common.records import Measure, Record, Records, RecordStore
from jspec.studies.feature_draft.recipe import FeatureDraftStudy
from jspec.training.checkpoints import Note
from jspec.training.loading import load_student
from jspec.training.loop import progress
from jspec.training.run import TrainSetup, make_setup, run_distillation
from jspec.training.student import trained_part

Trees = Mapping[str, Tree | DynamicTree]


class Contestant(NamedTuple):
    """A draft, and the trees along which it drafts."""

    name: str
    draft: Draft
    trees: tuple[str, ...]


def measure(
    recipe: FeatureDraftStudy, material: Material, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Trains every head, measures them all, and times one of each kind beside plain decoding and
    small models.

    What is done is kept below `output/name`, and not done again. None if the machine was taken
    away meanwhile.
    """
    target, config = material.setup.target, material.setup.target.model.config
    trees = recipe.read_trees(config.max_position_embeddings)
    timed = [Contestant(x, material.find(x), recipe.draft_trees) for x in recipe.drafts]
    evaluation = Evaluation(recipe, target, material.domains)
    store = RecordStore(recipe)

    def once(one: Contestant, seed: int) -> None:
        name = f"{one.name.replace('/', '_')} {seed}"
        store.once(name, lambda: _acceptances(recipe, evaluation, trees, one, seed))

    for one in timed:
        once(one, 0)
    note("the target generates data, for all heads")
    data = material.teacher_data(recipe.training, recipe.folder)
    setups: dict[str, TrainSetup] = {}
    total = recipe.seeds * len(recipe.kinds)
    for number, (kind, seed, run) in enumerate(recipe.runs(config), start=1):
        note(f"head {number} of {total}: {kind}, seed {seed}")
        drop_programs()
        student = load_draft(load_student(run, target, mesh), target)
        if kind not in setups:
            setups[kind] = make_setup(run, student, mesh=mesh)
        # One program serves all seeds, each with first parameters of its own.
        done = run_distillation(
            run, setups[kind]._replace(student=student), material.texts, material.held_out,
            teacher_data=data, mesh=mesh, note=note,
        )  # fmt: skip
        if done.step < run.steps:
            return None
        head = Contestant(kind, student.with_params(done.params), recipe.head_trees)
        once(head, seed)
        if not seed:
            timed.append(head)
    drop_programs()
    store.once("timing", lambda: _timings(recipe, evaluation, trees, timed))
    return store.records


def _acceptances(
    recipe: FeatureDraftStudy, evaluation: Evaluation, trees: Trees, one: Contestant, seed: int
) -> Iterator[Record]:
    """How much of what a draft proposes is accepted, in every domain, along each of its trees."""
    for domain in evaluation.rows:
        for tree in one.trees:
            drafter = one.draft.drafter(trees[tree])
            for temperature in recipe.temperatures:
                found = evaluation.decode(domain, temperature, drafter, one.draft.params)
                place = _place(recipe, one.name, temperature, tree)
                yield from acceptance(found, functools.partial(place, seed=seed, domain=domain))


def _timings(
    recipe: FeatureDraftStudy, evaluation: Evaluation, trees: Trees, timed: Sequence[Contestant]
) -> Iterator[Record]:
    """Whole decoding a prompt at a time, in turns; how long each draft takes; and its size."""
    target, work = evaluation.target, evaluation.timed_work()
    places = {f"{one.name}, {tree}": (one, tree) for one in timed for tree in one.trees}
    methods = [
        Method(name, one.draft.drafter(trees[tree]), one.draft.params)
        for name, (one, tree) in places.items()
    ]

    def place(method: str, temperature: float) -> functools.partial:
        if method == PLAIN:
            here = _place(recipe, PLAIN, temperature, rule="")
        else:
            one, tree = places[method]
            here = _place(recipe, one.name, temperature, tree)
        return functools.partial(here, domain=IN_DOMAIN, batch=1)

    programs = compile_programs([Method(PLAIN), *methods], target, work)
    for row in time_in_turns(programs, work, recipe.temperatures, recipe.repetitions):
        for name, value in timings(row, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP):
            yield place(row.method, row.temperature)(measure=name, value=value)
    del programs
    drop_programs()
    for temperature in recipe.temperatures:
        with progress(f"drafting, T={temperature:g}", len(methods)) as show:
            done = iter(range(1, len(methods) + 1))
            found = latencies(
                methods, target.model, target.params, work,
                temperature=temperature, repetitions=recipe.repetitions,
                tick=lambda show=show, done=done: show(next(done), ""),
            )  # fmt: skip
        for one in found:
            here = place(one.method, temperature)
            yield here(measure=Measure.DRAFT_MS, value=one.draft_ms)
            yield here(measure=Measure.ROUND_MS, value=one.round_ms)
    for one in timed:
        size = sum(x.size for x in jax.tree.leaves(trained_part(one.draft)[1]))
        target_name = recipe.training.target
        yield Record(measure=Measure.PARAMETERS, value=size, draft=one.name, target=target_name)


def _place(
    recipe: FeatureDraftStudy, draft: str, temperature: float, tree: str = "", rule: str = COUPLED
) -> functools.partial:
    """A record of a draft along a tree."""
    target = recipe.training.target
    return functools.partial(
        Record, draft=draft, target=target, temperature=temperature, rule=rule, tree=tree
    )
