"""What is measured of ways to guess many candidates: time, rounds, and drift."""

import functools
import importlib
from dataclasses import replace
from typing import NamedTuple

import jax

from jspec.bench.drafts import ModelDraft, StartedDraft, target_started
from jspec.bench.drift import Bias, bias, likelihood, parting
from jspec.bench.suite import PLAIN, Method, Program, Workload, drafted
from jspec.bench.summary import Row, summarise
from jspec.bench.timing import interleave
from jspec.config import ModelConfig
from jspec.core.candidates import Rule
from jspec.core.tree_text import read_tree
from jspec.distill.progress import progress
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.target_started import TargetStartedParams
from jspec.formats.huggingface import Checkpoint
from jspec.models.transformer import transformer
from jspec.studies.multi_recipe import MultiCandidateStudy, Way
from jspec.studies.records import Record

PER_SECOND, OVER, PER_ROUND = "tokens a second", "over plain", "tokens a round"
SPREAD = "half the range, tokens a second"
FIXED, DRAFTED = "depth rate, of the tree's depth", "depth rate, of the depth drafted"
EQUAL, SHARED, NATS = "texts equal", "tokens before a difference", "nats a token"
VARIATION, CHANCE = "total variation of three tokens", "the same of an exact rule"
NODES = "candidates a round"
DRIFT = "drift"
# A model of few tokens, on which a law can be counted.
FEW = ModelConfig(
    vocabulary=6, width=8, feedforward=8, layers=1, heads=1, kv_heads=1, channels=8, context=256
)
PROMPT, HOT, SHARPER, PIECES = [3], 1.0, 2.0, 4


class Pair(NamedTuple):
    """What is measured, and on what."""

    target: Checkpoint
    draft: ModelDraft
    work: Workload


def timed(recipe: MultiCandidateStudy, pair: Pair, group: str, ways: list[Way]) -> list[Record]:
    """Plain decoding and all ways of a group, interleaved, at every temperature."""
    methods = [Method(PLAIN), *(method(recipe, pair, way) for way in ways)]
    programs = []
    with progress(f"compiling {group}", len(methods)) as show:
        for one in methods:
            programs.append(Program(one, pair.target.model, pair.target.params, pair.work))
            show(len(programs), one.name)
    batches = len(pair.work.batches)
    total = recipe.repetitions * len(recipe.served) * batches
    with progress(f"timing {group}", total) as show:
        done = iter(range(total))
        samples = interleave(
            programs,
            batches=batches,
            temperatures=recipe.served,
            repetitions=recipe.repetitions,
            tick=lambda said: show(next(done), said),
        )
    names = {one.name: one for one in methods}
    rows = summarise(samples, coupled=())
    return [record for row in rows for record in _records(row, group, names[row.method])]


def _records(row: Row, group: str, method: Method) -> list[Record]:
    measures = {
        PER_SECOND: row.tokens_per_second,
        SPREAD: (row.fastest - row.slowest) / 2,
        OVER: row.speedup,
        PER_ROUND: row.tokens_per_round,
    }
    if method.drafter is not None:
        measures |= {
            FIXED: row.acceptance,
            DRAFTED: row.acceptance_drafted,
            NODES: method.drafter.tree.size - 1,
        }
    place = functools.partial(
        Record, draft=row.method, seed=0, domain=group, served=row.temperature
    )
    return [place(measure=name, value=x) for name, x in measures.items() if x is not None]


def method(recipe: MultiCandidateStudy, pair: Pair, way: Way) -> Method:
    """A way for the pair that is studied."""
    draft = pair.draft
    if way.rule == "lossy":
        draft = StartedDraft(draft.checkpoint, pair.target)
    context = pair.target.model.config.context
    made = drafted(way.name, draft, way.tree, context, rule_of(way.rule), way.stop or None)
    if way.stop and not way.sliced:
        whole = (made.drafter.tree.depth,)
        made = replace(made, drafter=replace(made.drafter, slices=whole))
    return made


def rule_of(name: str) -> Rule:
    """A module of `jspec.verify`, the lossy one included."""
    return importlib.import_module(f"jspec.verify.{name}")


def drift(recipe: MultiCandidateStudy, pair: Pair) -> list[Record]:
    """How far what is written drifts from the target: of the published method by its width, and of
    exact ones beside it."""
    early = Way("coupled", recipe.deep, recipe.stops("coupled", recipe.thresholds)[0])
    ways = [recipe.mcsd, Way("coupled", recipe.baseline), early, *recipe.published()]
    found = []
    with progress("drift", len(ways)) as show:
        plain = Program(Method(PLAIN), pair.target.model, pair.target.params, pair.work)
        for number, way in enumerate(ways):
            found += _drift(recipe, pair, way, plain)
            show(number + 1, way.name)
    return found


def _drift(recipe: MultiCandidateStudy, pair: Pair, way: Way, plain: Program) -> list[Record]:
    record = functools.partial(Record, draft=way.name, seed=0, domain=DRIFT)
    program = Program(method(recipe, pair, way), pair.target.model, pair.target.params, pair.work)
    models, batches = (pair.target.model, pair.target.params), pair.work.batches
    found = []
    for served in recipe.served:
        texts = [[one.write(n, served) for one in (program, plain)] for n in range(len(batches))]
        told = [
            likelihood(*models, prompts, *both)
            for prompts, both in zip(batches, texts, strict=True)
        ]
        for name in ("written", "plain"):
            mean = sum(getattr(one, name) for one in told) / len(told)
            found.append(record(served=served, measure=f"{NATS}, {name}", value=mean))
        if not served:
            apart = [parting(theirs, ours) for ours, theirs in texts]
            for measure, field in ((EQUAL, "equal"), (SHARED, "shared")):
                mean = sum(getattr(one, field) for one in apart) / len(apart)
                found.append(record(served=served, measure=measure, value=mean))
    if not way.stop and read_tree(way.tree, FEW.context).width <= FEW.vocabulary:
        off = _bias(recipe, way)
        found.append(record(served=HOT, measure=VARIATION, value=off.variation))
        found.append(record(served=HOT, measure=CHANCE, value=off.chance))
    return found


def _bias(recipe: MultiCandidateStudy, way: Way) -> Bias:
    """Of the law of three tokens, on a random pair of few tokens."""
    model = transformer(FEW)
    target, draft = (model.init(jax.random.key(recipe.seed + n)) for n in (41, 44))
    # Far from uniform, as a trained model's law is.
    target = {**target, "head": jax.tree.map(lambda x: SHARPER * x, target["head"])}
    drafter = SmallModelDrafter(model, read_tree(way.tree, FEW.context))
    if way.rule == "lossy":
        drafter, draft = target_started(drafter, model), TargetStartedParams(draft, target)
    made = Method(way.name, drafter, draft, rule_of(way.rule))
    pieces = {"pieces": PIECES, "rows": max(recipe.draws // PIECES, 1)}
    return bias(made, model, target, PROMPT, temperature=HOT, seed=recipe.seed, **pieces)
