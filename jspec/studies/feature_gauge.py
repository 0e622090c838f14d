"""What is measured of drafts over several trees: rounds, by decoding, and time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from jspec.bench.latency import Latency, latencies
from jspec.bench.suite import PLAIN, Method, Program, Workload, workload
from jspec.bench.summary import summarise
from jspec.bench.timing import Sample, interleave
from jspec.core.tree import Growth, Tree
from jspec.distill.evaluation import TOKENS_PER_ROUND, decoding
from jspec.distill.progress import progress
from jspec.distill.student import Student
from jspec.distill.temperatures import Temperatures
from jspec.distill.texts import Texts
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Params
from jspec.studies.material import HOME, SEED, windows
from jspec.studies.programs import drop_programs
from jspec.studies.recipe import FeatureDraftStudy
from jspec.studies.records import Record

PER_ROUND = TOKENS_PER_ROUND
PER_SECOND, SPEEDUP = "tokens a second", "over plain"
DRAFT_MS, ROUND_MS = "milliseconds a round, the draft", "milliseconds a round"
SIZE = "parameters"


def on(measure: str, tree: str) -> str:
    """A measure of a draft that guesses this tree."""
    return f"{measure}, {tree}"


def kept(depth: int) -> str:
    """The share of rounds that kept a node at that depth, below guesses from guesses."""
    return f"kept_{depth}"


class Contestant(NamedTuple):
    """A draft with its parameters, and the trees that it guesses."""

    name: str
    student: Student
    params: Params
    trees: tuple[str, ...]


class Rounds:
    """Prompts of each domain, which all drafts guess ahead of."""

    def __init__(
        self,
        recipe: FeatureDraftStudy,
        target: Checkpoint,
        trees: Mapping[str, Tree | Growth],
        domains: Mapping[str, Texts],
    ) -> None:
        self._recipe, self._target, self._trees = recipe, target, trees
        context = target.model.config.context
        self._prompts = {
            domain: windows(texts, recipe.prompts, recipe, context=context)
            for domain, texts in domains.items()
        }

    def records(self, one: Contestant, seed: int) -> list[Record]:
        """Tokens a round and what rounds kept at each depth, by decoding."""
        served = {repr(t): Temperatures((t,)) for t in self._recipe.served}
        found = []
        for domain, rows in self._prompts.items():
            for tree in one.trees:
                measure = decoding(
                    self._target.params,
                    rows,
                    served,
                    target=self._target.model,
                    drafter=one.student.drafter(self._target.model, self._trees[tree]),
                    drafting=one.student.drafting,
                    tokens=self._recipe.tokens,
                )
                for name, value in measure(one.params).items():
                    quantity, _, at = name.partition("@")
                    found.append(
                        Record(
                            draft=one.name,
                            seed=seed,
                            domain=domain,
                            served=float(at),
                            measure=on(quantity, tree),
                            value=value,
                        )
                    )
        return found


def timings(
    recipe: FeatureDraftStudy,
    target: Checkpoint,
    trees: Mapping[str, Tree | Growth],
    texts: Texts,
    timed: Sequence[Contestant],
) -> Iterator[Record]:
    """Whole decoding a prompt at a time, in turns; how long each draft guesses; and its size."""
    context = target.model.config.context
    rows = windows(texts, recipe.timed, recipe, context=context)
    work = workload(rows, batch=1, tokens=recipe.tokens, context=context, seed=SEED)
    places = {on(one.name, tree): (one, tree) for one in timed for tree in one.trees}
    methods = [
        Method(
            name,
            one.student.drafter(target.model, trees[tree]),
            one.student.drafting(one.params, target.params),
        )
        for name, (one, tree) in places.items()
    ]

    def record(name: str, served: float, measure: str, value: float) -> Record:
        draft, place = name, measure
        if name in places:
            draft, place = places[name][0].name, on(measure, places[name][1])
        return Record(draft=draft, seed=0, domain=HOME, served=served, measure=place, value=value)

    for row in summarise(_samples(recipe, target, work, methods), coupled=list(places)):
        yield record(row.method, row.temperature, PER_SECOND, row.tokens_per_second)
        yield record(row.method, row.temperature, SPEEDUP, row.speedup)
    drop_programs()
    for served in recipe.served:
        for one in _latencies(recipe, target, work, methods, served):
            yield record(one.method, served, DRAFT_MS, one.draft_ms)
            yield record(one.method, served, ROUND_MS, one.round_ms)
        for one in timed:
            size = sum(x.size for x in jax.tree.leaves(one.params))
            yield record(one.name, served, SIZE, size)


def _samples(
    recipe: FeatureDraftStudy, target: Checkpoint, work: Workload, methods: Sequence[Method]
) -> list[Sample]:
    """Plain decoding and all methods, interleaved."""
    programs = []
    with progress("compiling", 1 + len(methods)) as show:
        for method in (Method(PLAIN), *methods):
            programs.append(Program(method, target.model, target.params, work))
            show(len(programs), "")
    total = recipe.repetitions * len(recipe.served) * recipe.timed
    with progress("timing", total) as show:
        done = iter(range(total))
        return interleave(
            programs,
            batches=recipe.timed,
            temperatures=recipe.served,
            repetitions=recipe.repetitions,
            tick=lambda note: show(next(done), ""),
        )


def _latencies(
    recipe: FeatureDraftStudy,
    target: Checkpoint,
    work: Workload,
    methods: Sequence[Method],
    served: float,
) -> list[Latency]:
    with progress(f"drafting, T={served:g}", len(methods)) as show:
        done = iter(range(1, len(methods) + 1))
        return latencies(
            methods,
            target.model,
            target.params,
            work,
            temperature=served,
            repetitions=recipe.repetitions,
            tick=lambda: show(next(done), ""),
        )
