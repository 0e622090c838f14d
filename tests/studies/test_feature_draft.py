"""The feature-draft study: heads that differ in nothing else, and findings that are the numbers."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import tiny_zoo
from programs import products

from jspec.bench import breakdown
from jspec.bench.suite import drafted, workload
from jspec.bench.timing import PLAIN
from jspec.decode import budget, start_decoding
from jspec.draft.draft import load_draft
from jspec.formats.huggingface import load
from jspec.studies.common import measure as measuring
from jspec.studies.common.measure import DOMAINS, IN_DOMAIN
from jspec.studies.common.records import Measure, Record, Records
from jspec.studies.feature_draft.recipe import (
    KINDS,
    WIDE,
    FeatureDraftStudy,
    head_for,
    num_parameters,
)
from jspec.studies.feature_draft.report import FeatureDraftReport
from jspec.training.loop import Trained
from jspec.training.recipe import FeatureHead
from jspec.training.student import trained_part

TREE, DYNAMIC, CHAIN = "2x1", "dynamic:2x2x5", "chain:2"
STUDY = (
    "feature-draft", "kinds=eagle fspad", "seeds=2", f"tree={TREE}", f"dynamic_tree={DYNAMIC}",
    "drafts=zoo:wide", f"draft_trees={CHAIN}", "timed_prompts=1", "elsewhere.held_out=0.5",
    "training.head.intermediate_size=16", "training.head.num_attention_heads=2",
    "training.head.num_key_value_heads=2", "training.chunk_size=8", f"training.tree={TREE}",
)  # fmt: skip


@pytest.mark.parametrize("feedforward", [0, 1, 16, 37])
@pytest.mark.parametrize("width", [16, 24])
def test_the_widened_head_has_as_many_parameters_as_fspads(feedforward, width):
    target, like = tiny_zoo.config(hidden_size=width), FeatureHead(intermediate_size=feedforward)
    wide, whole, base = (
        num_parameters(head_for(kind, like, target), target) for kind in (WIDE, "fspad", "eagle")
    )
    # One more in the feed-forward's width is a row of the gate, one of `up` and one of `down`.
    assert abs(wide - whole) <= 3 * width / 2 < whole - base


def test_heads_are_trained_alike_but_for_their_kind():
    recipe, target = FeatureDraftStudy(), tiny_zoo.config()
    found = list(recipe.runs(target))
    assert {(kind, seed) for kind, seed, _ in found} == {(k, s) for k in KINDS for s in range(3)}
    assert len({run.name for *_, run in found}) == len(found)
    for kind, seed, run in found:
        alike = dataclasses.replace(run.head, kind="fspad", intermediate_size=192)
        assert run.head == head_for(kind, recipe.head, target)
        assert dataclasses.replace(run, name="one", head=alike) == dataclasses.replace(
            found[0][2], name="one", head=recipe.training.head, seed=recipe.training.seed + seed
        )


@pytest.mark.parametrize("tree", [CHAIN, TREE])
def test_what_is_timed_as_drafting_is_a_round_without_the_targets_pass(models, tree):
    target, small = load(models / "target"), load(models / "wide")
    method = drafted("draft", load_draft(small, target), tree, tiny_zoo.CONTEXT)
    work = workload([[1, 2, 3]], batch=1, tokens=6, context=tiny_zoo.CONTEXT, seed=0)
    names = {"drafter": method.drafter, "rule": method.rule}
    most, room = budget(6, work.batches[0], target.model)
    state = start_decoding(
        target.params, method.draft, work.batches[0], most, target=target.model, room=room, **names
    )
    told = state, work.keys[0], work.sampling(1.0)
    whole = functools.partial(breakdown.whole_rounds, target=target.model, **names)
    drafts = functools.partial(breakdown.draft_rounds, vocabulary=tiny_zoo.VOCABULARY, **names)
    late = jax.numpy.zeros(breakdown.ROUNDS, bool)
    made = sorted(products(jax.make_jaxpr(whole)(target.params, method.draft, *told)))
    drafting = sorted(products(jax.make_jaxpr(drafts)(method.draft, *told, late)))

    def checking(params, tokens):
        mask = np.eye(method.drafter.tree.size, dtype=bool)
        output = target.model.forward(params, tokens, tokens, mask, state.cache)
        return target.model.logits(params, output.hidden)

    nodes = jax.numpy.zeros((1, method.drafter.tree.size), jax.numpy.int32)
    checked = products(jax.make_jaxpr(checking)(target.params, nodes))
    assert sorted([*drafting, *checked]) == made and drafting


# What a kind of head gains over EAGLE's, in acceptance length.
OVER = {"eagle": 0.0, "sampling_alone": 0.1, "alignment_alone": 0.2, "fspad": 0.4, WIDE: 0.06}
MS = {TREE: 3.0, DYNAMIC: 4.0, "chain:3": 3.2, "chain:5": 4.5, "chain:7": 6.0}
SLIGHT = 0.01


def made(recipe: FeatureDraftStudy, sign: int, apart: float) -> Iterator[Record]:
    """Records whose differences are `OVER` and, of three seeds, a share `apart` more or less, while
    the seeds themselves differ by much more."""
    drafts = [(kind, recipe.seeds, recipe.head_trees) for kind in recipe.kinds]
    drafts += [(draft, 1, recipe.draft_trees) for draft in recipe.drafts]
    for draft, seeds, trees in drafts:
        yield Record(measure=Measure.PARAMETERS, value=7, draft=draft)
        for temperature, tree in itertools.product(recipe.temperatures, trees):
            here = functools.partial(Record, draft=draft, temperature=temperature, tree=tree)
            for domain, seed in itertools.product(DOMAINS, range(seeds)):
                gain = sign * OVER.get(draft, 0) * (1 + apart * (seed - 1))
                value = 2 + seed + gain + (tree == DYNAMIC)
                length = {"measure": Measure.ACCEPTANCE_LENGTH, "value": value}
                yield here(domain=domain, seed=seed, **length)
            for name in (Measure.ROUND_MS, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP):
                yield here(domain=IN_DOMAIN, measure=name, value=1.0)
            yield here(domain=IN_DOMAIN, measure=Measure.DRAFT_MS, value=MS[tree])


@pytest.mark.parametrize(
    ("sign", "apart", "verification"),
    [
        (1, SLIGHT, "found, +0.400"),
        (-1, SLIGHT, "refuted, -0.400"),
        (1, 10.0, "not decided, +0.400"),
    ],
)
def test_what_is_found_is_what_the_numbers_are(sign, apart, verification):
    recipe = FeatureDraftStudy(
        tree=TREE,
        dynamic_tree=DYNAMIC,
        drafts=("small",),
        draft_trees=("chain:3", "chain:5", "chain:7"),
    )
    found = FeatureDraftReport(recipe, Records(made(recipe, sign, apart)))
    assert len(found.over_base) == 4 * 2 * 2 * 2 and len(found.over_wide) == 2 * 2 * 2
    said = list(found.answers())
    claims = [line for line in said if "FSPAD above EAGLE: " in line]
    assert len(claims) == 4 and all(f"EAGLE: {verification}" in line for line in claims)
    cells = {"found": 0, "refuted": 0, "not decided": 0, verification.split(",")[0]: 8}
    assert said[0].endswith(
        f": found in {cells['found']} of 8 cells of temperature, tree and domain, refuted in "
        f"{cells['refuted']}, not decided in {cells['not decided']}."
    )
    for pair in (*found.over_base, *found.over_wide):
        gain = sign * (OVER[pair.one] - OVER[pair.other])
        assert pair.difference.value == pytest.approx(gain)
        # Student's t of 2 degrees of freedom, 4.3027, over the root of 3.
        assert pair.difference.half == pytest.approx(2.4842 * apart * abs(gain), rel=1e-4)
    shares = [line for line in said if "over EAGLE, " in line]
    assert len(shares) == 4
    for line in shares:
        # Of a gain there is none, there is no share.
        assert line.count("% of FSPAD's gain") == (3 if verification.startswith("found") else 0)
        for part in ("feature sampling alone", "partial alignment alone", "parameters"):
            assert part in line
    for equals in found.equals:
        best = "fspad" if sign > 0 else "eagle"
        assert (equals["head"]["draft"], equals["head"]["tree"]) == (best, DYNAMIC)
        assert equals["rival"]["tree"] == "chain:5"


@pytest.mark.parametrize(("part", "share"), [("sampling", 25), ("alignment", 50), ("param", 15)])
def test_a_share_is_the_parts_gain_of_the_whole_gain(part, share):
    recipe = FeatureDraftStudy(tree=TREE, dynamic_tree=DYNAMIC, drafts=())
    lines = list(FeatureDraftReport(recipe, Records(made(recipe, 1, SLIGHT))).answers())
    shares = next(line for line in lines if "over EAGLE, " in line).split(";")
    assert any(part in line and f"({share}% of" in line for line in shares), shares


@pytest.fixture
def study(train_study):
    """Runs a small one; its exit code, and what it said."""
    return functools.partial(train_study, *STUDY)


@pytest.mark.slow
def test_the_study_resumes_where_it_stopped_and_fills_every_cell_once(study, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    begun, distill = [], measuring.run_distillation

    def stopping(run, setup, *texts, **more):
        begun.append(trained_part(setup.student)[1])
        if len(begun) == 2:
            return Trained(begun[-1], 1)
        return distill(run, setup, *texts, **more)

    with monkeypatch.context() as patched:
        patched.setattr(measuring, "run_distillation", stopping)
        code, out, err = study("name=s")
    assert code == 0 and out == "" and "the same command resumes it" in err
    assert len(begun) == 2 and not (folder / "report.md").exists()

    # What was measured is not measured again: a number that was changed on disk comes back.
    file = folder / "records" / "eagle 0.json"
    changed = json.loads(file.read_text())
    changed["records"][0]["value"] = 1.23
    file.write_text(json.dumps(changed))
    told = [part.read_bytes() for part in (folder / "teacher_data").glob("part-*.jsonl")]

    firsts = []

    def noting(run, setup, *texts, **more):
        firsts.append((run.seed, trained_part(setup.student)[1]))
        return distill(run, setup, *texts, **more)

    monkeypatch.setattr(measuring, "run_distillation", noting)
    code, out, err = study("name=s")
    assert code == 0 and json.loads(out)["folder"] == str(folder), err
    assert "eagle/0 0/2" not in err and "fspad/0 0/2" in err
    # All heads learn the same answers, of which there is one set; seeds begin apart.
    assert [part.read_bytes() for part in (folder / "teacher_data").glob("part-*.jsonl")] == told
    assert [place.parent for place in folder.rglob("teacher_data")] == [folder]
    apart = [jax.tree.leaves(params)[-1] for _, params in firsts]
    assert not np.array_equal(apart[0], apart[2]) and [seed for seed, _ in firsts] == [0, 0, 1, 1]

    written = json.loads((folder / "results.json").read_text())
    records = Records(Record(**one) for one in written["records"])
    assert 1.23 in [one.value for one in records.all]
    assert len(records.all) == len(set(dataclasses.replace(r, value=0) for r in records.all))
    check_cells(records)
    report = (folder / "report.md").read_text()
    figures = sorted(file.name for file in folder.glob("*.png"))
    assert len(figures) == 4 and all(f"]({name})" in report for name in figures)
    assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in figures)
    assert all(line in report for line in written["findings"])

    code, out, err = study("name=s", "training.steps=3")
    assert code == 2 and out == ""
    assert "another study (training.steps=3 where it has 2)" in err.splitlines()[-1]


def check_cells(records: Records) -> None:
    """Every head, small model, domain, temperature and tree is there, as often as there are."""
    timed = Measure.DRAFT_MS, Measure.ROUND_MS, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP
    for t in (0.0, 1.0):
        assert records.value(Measure.TOKENS_PER_SECOND, draft=PLAIN, temperature=t) > 0
        for draft, seeds, trees in (
            ("eagle", 2, (TREE, DYNAMIC)),
            ("fspad", 2, (TREE, DYNAMIC)),
            ("zoo:wide", 1, (CHAIN,)),
        ):
            for tree in trees:
                here = {"draft": draft, "tree": tree, "temperature": t}
                for name in timed:
                    assert records.value(name, domain=IN_DOMAIN, **here) > 0
                for domain in DOMAINS:
                    here["domain"] = domain
                    rounds = records.by_seed(Measure.ACCEPTANCE_LENGTH, **here)
                    depths = [
                        records.by_seed(Measure.ACCEPTED_BY_POSITION, position=depth, **here)
                        for depth in (1, 2)
                    ]
                    assert len(rounds) == seeds
                    for seed, value in rounds.items():
                        first, second = (depth[seed] for depth in depths)
                        assert 1 >= first >= second >= 0
                        # 8 tokens, of which the last round may keep fewer than it has right.
                        assert value == 1.23 or 1 <= value <= 1 + first + second + 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seeds=1", "seeds=1: an interval needs at least 2"),
        ("kinds=eagle medusa fspad", "kinds='medusa' is none of: eagle, sampling_alone"),
        ("kinds=eagle", "fspad is what is asked about: add it"),
        ("kinds=eagle fspad eagle", "give at least one value, and each once"),
        (
            "dynamic_tree=dynamic:2x2x6",
            "dynamic_tree='dynamic:2x2x6' has 6 nodes where tree='2x1' has 5",
        ),
        ("dynamic_tree=2x1", "dynamic_tree='2x1' is static: give a dynamic one"),
        ("tree=dynamic:2x2x5", "tree='dynamic:2x2x5' is dynamic: give a static one"),
        ("prompts=9999", "prompts=9999: the held-out texts hold"),
        ("temperatures=-1", "temperatures=-1.0: must be 0 or a positive number"),
        ("drafts=zoo:wide zoo:wide", "give at least one value, and each once"),
        ("drafts=zoo:none", "zoo:none is not in the zoo"),
        ("training.head.kind=eagle", "training.head.kind: the study sets it: say it in kinds"),
        ("training.draft=zoo:wide", "training.draft='zoo:wide': heads of several kinds"),
        ("training.teacher_data.weight=-1", "teacher_data.weight=-1.0: must be 0 or more"),
    ],
)
def test_a_study_of_heads_that_cannot_be_run_is_refused_in_a_line(study, change, said):
    code, out, err = study(change)
    complaint = err.splitlines()[-1]
    assert code == 2 and out == "" and complaint.startswith("jspec: ") and said in complaint, err


def test_programs_are_dropped_where_a_process_holds_many(monkeypatch, tmp_path):
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    maps = tmp_path / "maps"
    monkeypatch.setattr(measuring, "MAPS", maps)
    for lines, left in ((measuring.MANY_MAPS, 1), (measuring.MANY_MAPS + 1, 0)):
        maps.write_text("map\n" * lines)
        measuring.drop_programs()
        assert double._cache_size() == left
