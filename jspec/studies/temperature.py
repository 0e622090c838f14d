"""TempSpec's question: a draft taught at one temperature, served at another."""

from collections.abc import Iterator, Mapping

from jax.sharding import Mesh

from jspec.bench.suite import PLAIN, Method, Program, workload
from jspec.bench.summary import summarise
from jspec.bench.timing import interleave
from jspec.core.tree import Tree
from jspec.core.tree_text import read_tree
from jspec.distill.checkpoints import Note
from jspec.distill.progress import progress
from jspec.distill.run import Course, distill
from jspec.distill.texts import Texts
from jspec.draft.small_model import SmallModelDrafter
from jspec.formats.folder import claim
from jspec.models.protocol import Params
from jspec.studies.gauge import Gauge
from jspec.studies.material import HOME, SEED, Material, windows
from jspec.studies.recipe import TemperatureStudy
from jspec.studies.records import Record, Records, kept_in

UNTAUGHT = "untaught"
PER_SECOND, SPEEDUP = "tokens a second", "over plain"


def temperature(
    recipe: TemperatureStudy, material: Material, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Teaches every draft, measures them all, and times one of each kind beside plain decoding.

    What is done is kept below `output/name`, and not done again. None if the machine was taken
    away meanwhile.
    """
    course = material.course
    tree = read_tree(recipe.tree, course.target.model.config.context)
    vocabulary = course.target.model.config.vocabulary
    if recipe.width > vocabulary:
        raise ValueError(f"width={recipe.width}: the target has {vocabulary} tokens")
    record = recipe.record()
    claim(recipe.folder / "study.json", record, fixed=record, what="study")
    note("the target writes what is measured on")
    gauge = Gauge(recipe, course, tree, material.domains)
    place = recipe.folder / "records"

    def measured(draft: str, seed: int, params: Params) -> list[Record]:
        compared = draft in (UNTAUGHT, recipe.reference)
        file = place / f"{draft} {seed}.json"
        return kept_in(file, lambda: gauge.records(draft, seed, params, compared=compared))

    records = measured(UNTAUGHT, 0, course.student.params)
    timed = {UNTAUGHT: course.student.params}
    total = recipe.seeds * len(recipe.taught)
    for number, (taught, seed, run) in enumerate(recipe.runs(), start=1):
        note(f"draft {number} of {total}: taught at {taught}, seed {seed}")
        done = distill(run, course, material.texts, material.held_out, mesh=mesh, note=note)
        if done.step < run.steps:
            return None
        records += measured(taught, seed, done.params)
        timed.setdefault(taught, done.params)
    return Records([*records, *_timings(recipe, course, tree, material.held_out, timed)])


def _timings(
    recipe: TemperatureStudy,
    course: Course,
    tree: Tree,
    texts: Texts,
    timed: Mapping[str, Params],
) -> Iterator[Record]:
    """One draft of each kind beside plain decoding, a prompt at a time."""
    target = course.target
    context = target.model.config.context
    rows = windows(texts, recipe.timed, recipe, context=context)
    work = workload(rows, batch=1, tokens=recipe.tokens, context=context, seed=SEED)
    drafter = SmallModelDrafter(course.student.model, tree)
    untaught = Method(UNTAUGHT, drafter, timed[UNTAUGHT])
    speculative = Program(untaught, target.model, target.params, work)
    programs = [
        Program(Method(PLAIN), target.model, target.params, work),
        *(speculative.with_draft(name, params) for name, params in timed.items()),
    ]
    total = recipe.repetitions * len(recipe.served) * recipe.timed
    with progress("timing", total) as show:
        done = iter(range(total))
        samples = interleave(
            programs,
            batches=recipe.timed,
            temperatures=recipe.served,
            repetitions=recipe.repetitions,
            tick=lambda note: show(next(done), ""),
        )
    for row in summarise(samples, coupled=list(timed)):
        for measure, value in ((PER_SECOND, row.tokens_per_second), (SPEEDUP, row.speedup)):
            yield Record(
                draft=row.method,
                seed=0,
                domain=HOME,
                served=row.temperature,
                measure=measure,
                value=value,
            )
