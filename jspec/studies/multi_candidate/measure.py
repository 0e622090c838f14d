"""What is measured of methods with many candidates: time, acceptance, and drift."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jspec import verify
from jspec.bench.agreement import divergence
from jspec.bench.distribution import Bias, bias, cross_entropy
from jspec.bench.suite import Method, Program, Workload, drafted, plain_program
from jspec.bench.timing import PLAIN
from jspec.config import ModelConfig
from jspec.core.tree_text import read_tree, write_tree
from jspec.draft.draft import Draft
from jspec.draft.early_stopping import EarlyDrafter, check_drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.formats.huggingface import Checkpoint
from jspec.models.transformer import transformer
from jspec.studies.common.measure import (
    RecordStore,
    compile_programs,
    drop_programs,
    time_in_turns,
    timings,
)
from jspec.studies.common.recipe import COUPLED, LOSSY
from jspec.studies.common.records import Measure, Record, Records, records_of
from jspec.studies.multi_candidate.lossy import (
    LOSS,
    TargetStartedParams,
    below_roots,
    target_started,
)
from jspec.studies.multi_candidate.recipe import Decoding, MultiCandidateStudy
from jspec.training.checkpoints import Note
from jspec.training.loop import progress
from jspec.tuning.automatic import find_fastest

# Groups of records beside those of the recipe.
HEADLINE, FASTEST, DRIFT = "headline", "fastest tree", "drift"
EARLY = Decoding(COUPLED, "", "any").kind
# A model of few tokens, on which a distribution can be counted.
FEW = ModelConfig(
    vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
)  # fmt: skip
SMALL = "few tokens"
PROMPT, HOT, SHARPER, PIECES = [3], 1.0, 2.0, 4


class Pair(NamedTuple):
    """A draft beside its target, and what is decoded."""

    draft: Draft
    work: Workload

    @property
    def target(self) -> Checkpoint:
        """That of the draft."""
        return self.draft.target

    @property
    def context(self) -> int:
        """The target's."""
        return self.target.model.config.max_position_embeddings


def measure(
    recipe: MultiCandidateStudy, pair: Pair, *, mesh: Mesh | None = None, note: Note
) -> Records:
    """Times every method beside plain decoding, group by group, then the best of every kind
    together, and measures how far each drifts. `mesh` is the pair's."""
    del mesh
    groups = recipe.groups()
    for method in (recipe.mcsd, *(one for group in groups.values() for one in group)):
        made = made_of(pair, method)
        assert made.drafter is not None
        check_drafter(made.rule, made.drafter)
        read_tree(method.tree, FEW.max_position_embeddings)
    store = RecordStore(recipe)
    note(LOSS)
    for name, methods in groups.items():
        note(f"{name}: {len(methods)} methods")
        store.once(name, timed, recipe, pair, name, methods)
    tried = store.records
    note("the fastest static trees")
    trees = store.once("fastest trees", _fastest, recipe, pair, note)
    note("the best of each kind, side by side")
    for one in trees:
        assert one.temperature is not None
        methods = headline(recipe, tried, one.temperature, one.tree)
        at = replace(recipe, temperatures=(one.temperature,))
        store.once(f"{HEADLINE} {one.temperature:g}", timed, at, pair, HEADLINE, methods)
    note("how far each drifts")
    store.once(DRIFT, _drifts, recipe, pair)
    return store.records


def headline(
    recipe: MultiCandidateStudy, records: Records, temperature: float, fastest: str
) -> list[Decoding]:
    """What is timed side by side at a temperature: the baseline and its tree under the coupled
    rule, the best method of every kind, the `fastest` tree, and the best coupled method that stops
    early, without verification buckets and without stopping too."""
    best: dict[str, tuple[float, Decoding]] = {}
    for group, tried in recipe.groups().items():
        for method in tried:
            place = {"group": group, "temperature": temperature, "method": method.name}
            speed = records.value(Measure.SPEEDUP, **place)
            best[method.kind] = max(best.get(method.kind, (0.0, method)), (speed, method))
    _, early = best[EARLY]
    methods = [
        recipe.mcsd,
        Decoding(COUPLED, recipe.baseline),
        *(method for _, method in best.values()),
        Decoding(COUPLED, fastest),
        early._replace(bucketed=False),
        early._replace(stop=""),
    ]
    return list(dict.fromkeys(methods))


def timed(
    recipe: MultiCandidateStudy, pair: Pair, group: str, methods: Iterable[Decoding]
) -> Iterator[Record]:
    """Plain decoding and all methods of a group, interleaved, at every temperature."""
    named = {one.name: one for one in methods}
    made = [Method(PLAIN), *(made_of(pair, one) for one in named.values())]
    programs = compile_programs(made, pair.target, pair.work, f"compiling {group}")
    for row in time_in_turns(programs, pair.work, recipe, name=f"timing {group}"):
        found, place = timings(row), {"draft": PLAIN, "method": PLAIN}
        if row.method != PLAIN:
            place = _fields(recipe, named[row.method])
            tree = read_tree(named[row.method].tree, pair.context)
            found[Measure.MAX_DRAFT_TOKENS] = tree.size - 1
        here = {"target": recipe.target, "temperature": row.temperature, "batch": 1}
        yield from records_of(found, group=group, **{**here, **place})


def made_of(pair: Pair, method: Decoding) -> Method:
    """A method for the pair that is studied."""
    draft = below_roots(pair.draft) if method.rule == LOSSY else pair.draft
    rule = verify.get(method.rule)
    made = drafted(method.name, draft, method.tree, pair.context, rule, method.stop or None)
    if isinstance(made.drafter, EarlyDrafter) and not method.bucketed:
        whole = (made.drafter.tree.depth,)
        return replace(made, drafter=replace(made.drafter, buckets=whole))
    return made


def _fields(recipe: MultiCandidateStudy, method: Decoding) -> dict[str, Any]:
    """The fields of a record of a method that say which it is."""
    named = {"rule": method.rule, "tree": method.tree, "stop": method.stop, "method": method.name}
    return {"draft": recipe.draft, "target": recipe.target, "batch": 1, **named}


def _fastest(recipe: MultiCandidateStudy, pair: Pair, note: Note) -> Iterator[Record]:
    """The trees that `tree=auto` takes at each temperature."""
    spent = None
    for temperature in recipe.temperatures:
        choice = find_fastest(
            pair.draft, pair.target, pair.work,
            rule=verify.coupled, temperature=temperature, tick=note, spent=spent,
        )  # fmt: skip
        # Greedy rounds sample no noise, so theirs are other costs.
        spent = choice.costs if temperature else None
        fields = _fields(recipe, Decoding(COUPLED, write_tree(choice.tree)))
        found = {Measure.SPEEDUP: choice.timed[choice.tree]}
        yield from records_of(found, temperature=temperature, group=FASTEST, **fields)
        drop_programs()


def _drifts(recipe: MultiCandidateStudy, pair: Pair) -> Iterator[Record]:
    """How far the text drifts from the target's: of the published method by its width, and of
    exact ones beside it."""
    stop = recipe.stops_under(COUPLED, recipe.thresholds)[0]
    early = Decoding(COUPLED, recipe.deep, stop)
    methods = [recipe.mcsd, Decoding(COUPLED, recipe.baseline), early, *recipe.published()]
    with progress(DRIFT, len(methods)) as show:
        plain = plain_program(pair.target, pair.work)
        for number, method in enumerate(methods):
            yield from _drift(recipe, pair, method, plain)
            show(number + 1, method.name)


def _drift(
    recipe: MultiCandidateStudy, pair: Pair, method: Decoding, plain: Program
) -> Iterator[Record]:
    model, params = pair.target.model, pair.target.params
    program, batches = Program(made_of(pair, method), model, params, pair.work), pair.work.batches
    fields = {**_fields(recipe, method), "group": DRIFT}
    for temperature in recipe.temperatures:
        texts = [
            [one.write(number, temperature) for one in (program, plain)]
            for number in range(len(batches))
        ]
        nats = [
            cross_entropy(model, params, one, *both)
            for one, both in zip(batches, texts, strict=True)
        ]
        found = {
            Measure.TEXT_CROSS_ENTROPY: [one.method for one in nats],
            Measure.PLAIN_CROSS_ENTROPY: [one.plain for one in nats],
        }
        if not temperature:
            apart = [divergence(theirs, ours) for ours, theirs in texts]
            found[Measure.IDENTICAL_TEXTS] = [one.equal for one in apart]
            found[Measure.SHARED_PREFIX] = [one.shared for one in apart]
        means = {measure: sum(values) / len(values) for measure, values in found.items()}
        yield from records_of(means, temperature=temperature, **fields)
    width = read_tree(method.tree, FEW.max_position_embeddings).width
    if not method.stop and width <= FEW.vocab_size:
        off = _bias(recipe, method)
        counted = {
            Measure.TOTAL_VARIATION: off.variation,
            Measure.TOTAL_VARIATION_BY_CHANCE: off.by_chance,
        }
        fields |= {"draft": SMALL, "target": SMALL}
        yield from records_of(counted, temperature=HOT, **fields)


def _bias(recipe: MultiCandidateStudy, method: Decoding) -> Bias:
    """Of the distribution of three tokens, on a random pair of few tokens."""
    model = transformer(FEW)
    target, draft = (model.init(jax.random.key(recipe.seed + n)) for n in (41, 44))
    # Far from uniform, as a trained model's distribution is.
    target = {**target, "head": jax.tree.map(lambda x: SHARPER * x, target["head"])}
    drafter = SmallModelDrafter(model, read_tree(method.tree, FEW.max_position_embeddings))
    if method.rule == LOSSY:
        drafter, draft = target_started(drafter, model), TargetStartedParams(draft, target)
    made = Method(method.name, drafter, draft, verify.get(method.rule))
    pieces = {"pieces": PIECES, "rows": max(recipe.draws // PIECES, 1)}
    return bias(made, model, target, PROMPT, temperature=HOT, seed=recipe.seed, **pieces)
