"""The feature-draft study: heads that differ in nothing else, and findings that are the numbers."""

import dataclasses
import functools
import json
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import tiny_zoo
from test_breakdown import products

from jspec import zoo
from jspec.bench import rounds
from jspec.bench.drafts import ModelDraft
from jspec.bench.suite import PLAIN, drafted, workload
from jspec.cli.main import main
from jspec.decode import begin
from jspec.distill.loop import Run
from jspec.distill.recipe import FeatureHead
from jspec.formats.huggingface import load
from jspec.studies import feature_draft as study_of_heads
from jspec.studies import programs
from jspec.studies.ablation import head_for, parameters
from jspec.studies.feature_draft import runs
from jspec.studies.feature_findings import feature_findings
from jspec.studies.feature_gauge import (
    DRAFT_MS,
    PER_ROUND,
    PER_SECOND,
    ROUND_MS,
    SIZE,
    SPEEDUP,
    kept,
    on,
)
from jspec.studies.feature_report import answers
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import KINDS, WIDE, FeatureDraftStudy
from jspec.studies.records import Record, Records
from jspec.zoo import lessons

TREE, GROWTH, CHAIN = "2x1", "grow:2x2x5", "chain:2"
STUDY = (
    "kinds=eagle fspad",
    "seeds=2",
    f"tree={TREE}",
    f"growth={GROWTH}",
    "drafts=zoo:wide",
    f"draft_trees={CHAIN}",
    "prompts=2",
    "prompt=4",
    "tokens=8",
    "timed=1",
    "repetitions=1",
    "elsewhere.held_out=0.5",
    "teaching.head.feedforward=16",
    "teaching.head.heads=2",
    "teaching.head.kv_heads=2",
    "teaching.steps=2",
    "teaching.batch=2",
    "teaching.length=16",
    "teaching.chunk=8",
    "teaching.prompts=2",
    "teaching.tokens=8",
    f"teaching.tree={TREE}",
    "teaching.answers.count=3",
    "teaching.answers.batch=3",
    "teaching.answers.prompt=4",
    "teaching.answers.tokens=12",
)


@pytest.mark.parametrize("feedforward", [0, 1, 16, 37])
@pytest.mark.parametrize("width", [16, 24])
def test_the_widened_head_has_as_many_parameters_as_fspads(feedforward, width):
    target, like = tiny_zoo.config(width=width), FeatureHead(feedforward=feedforward)
    wide, whole, base = (
        parameters(head_for(kind, like, target), target) for kind in (WIDE, "fspad", "eagle")
    )
    # One more in the feed-forward's width is a row of the gate, one of `up` and one of `down`.
    assert abs(wide - whole) <= 3 * width / 2 < whole - base


def test_heads_are_taught_alike_but_for_their_kind():
    recipe, target = FeatureDraftStudy(), tiny_zoo.config()
    found = list(runs(recipe, target))
    assert {(kind, seed) for kind, seed, _ in found} == {(k, s) for k in KINDS for s in range(3)}
    assert len({run.name for *_, run in found}) == len(found)
    for kind, seed, run in found:
        alike = dataclasses.replace(run.head, kind="fspad", feedforward=192)
        assert run.head == head_for(kind, recipe.teaching.head, target)
        assert dataclasses.replace(run, name="one", head=alike) == dataclasses.replace(
            found[0][2], name="one", head=recipe.teaching.head, seed=recipe.teaching.seed + seed
        )


@pytest.mark.parametrize("tree", [CHAIN, TREE])
def test_what_is_timed_as_drafting_is_a_round_without_the_targets_pass(models, tree):
    target, small = load(models / "target"), load(models / "wide")
    method = drafted("draft", ModelDraft(small), tree, tiny_zoo.CONTEXT)
    work = workload([[1, 2, 3]], batch=1, tokens=6, context=tiny_zoo.CONTEXT, seed=0)
    names = {"drafter": method.drafter, "rule": method.rule}
    state = begin(
        target.params, method.draft, work.batches[0], target=target.model, tokens=6, **names
    )
    told = state, work.keys[0], work.sampling(1.0)
    whole = functools.partial(rounds.whole_rounds, target=target.model, **names)
    guesses = functools.partial(rounds.guesses, vocabulary=tiny_zoo.VOCABULARY, **names)
    late = jax.numpy.zeros(rounds.ROUNDS, bool)
    made = sorted(products(jax.make_jaxpr(whole)(target.params, method.draft, *told)))
    drafting = sorted(products(jax.make_jaxpr(guesses)(method.draft, *told, late)))

    def checking(params, tokens):
        mask = np.eye(method.drafter.tree.size, dtype=bool)
        output = target.model.forward(params, tokens, tokens, mask, state.cache)
        return target.model.logits(params, output.hidden)

    nodes = jax.numpy.zeros((1, method.drafter.tree.size), jax.numpy.int32)
    checked = products(jax.make_jaxpr(checking)(target.params, nodes))
    assert sorted([*drafting, *checked]) == made and drafting


# What a kind of head keeps over EAGLE's, in tokens a round.
OVER = {"eagle": 0.0, "sampling_alone": 0.1, "alignment_alone": 0.2, "fspad": 0.4, WIDE: 0.06}
MS = {TREE: 3.0, GROWTH: 4.0, "chain:3": 3.2, "chain:5": 4.5, "chain:7": 6.0}
SLIGHT = 0.01


def made(recipe: FeatureDraftStudy, sign: int, apart: float) -> Iterator[Record]:
    """Records whose differences are `OVER` and, of three seeds, a share `apart` more or less, while
    the seeds themselves differ by much more."""
    drafts = [(kind, recipe.seeds, (recipe.tree, recipe.growth)) for kind in recipe.kinds]
    drafts += [(draft, 1, recipe.draft_trees) for draft in recipe.drafts]
    for served in recipe.served:
        for draft, seeds, trees in drafts:
            for tree in trees:
                for domain in (HOME, AWAY):
                    for seed in range(seeds):
                        gain = sign * OVER.get(draft, 0) * (1 + apart * (seed - 1))
                        value = 2 + seed + gain + (tree == GROWTH)
                        yield one(draft, seed, domain, served, on(PER_ROUND, tree), value)
                for measure in (ROUND_MS, PER_SECOND, SPEEDUP):
                    yield one(draft, 0, HOME, served, on(measure, tree), 1.0)
                yield one(draft, 0, HOME, served, on(DRAFT_MS, tree), MS[tree])
            yield one(draft, 0, HOME, served, SIZE, 7)


def one(draft: str, seed: int, domain: str, served: float, measure: str, value: float) -> Record:
    return Record(
        draft=draft, seed=seed, domain=domain, served=served, measure=measure, value=value
    )


@pytest.mark.parametrize(
    ("sign", "apart", "verdict"),
    [
        (1, SLIGHT, "found, +0.400"),
        (-1, SLIGHT, "refuted, -0.400"),
        (1, 10.0, "not decided, +0.400"),
    ],
)
def test_what_is_found_is_what_the_numbers_are(sign, apart, verdict):
    recipe = FeatureDraftStudy(
        tree=TREE, growth=GROWTH, drafts=("small",), draft_trees=("chain:3", "chain:5", "chain:7")
    )
    found = feature_findings(recipe, Records(made(recipe, sign, apart)))
    assert len(found.over_base) == 4 * 2 * 2 * 2 and len(found.over_wide) == 2 * 2 * 2
    said = list(answers(recipe, found))
    claims = [line for line in said if "FSPAD above EAGLE: " in line]
    assert len(claims) == 4 and all(f"EAGLE: {verdict}" in line for line in claims)
    cells = {"found": 0, "refuted": 0, "not decided": 0, verdict.split(",")[0]: 8}
    assert said[0].endswith(
        f": found in {cells['found']} of 8 cells of temperature, tree and domain, refuted in "
        f"{cells['refuted']}, not decided in {cells['not decided']}."
    )
    for duel in (*found.over_base, *found.over_wide):
        gain = sign * (OVER[duel.one] - OVER[duel.other])
        assert duel.difference.value == pytest.approx(gain)
        # Student's t of 2 degrees of freedom, 4.3027, over the root of 3.
        assert duel.difference.half == pytest.approx(2.4842 * apart * abs(gain), rel=1e-4)
    shares = [line for line in said if "over EAGLE, " in line]
    assert len(shares) == 4
    for line in shares:
        # Of a gain there is none, there is no share.
        assert line.count("% of FSPAD's gain") == (3 if verdict.startswith("found") else 0)
        for part in ("feature sampling alone", "partial alignment alone", "parameters"):
            assert part in line
    for equals in found.equals:
        best = "fspad" if sign > 0 else "eagle"
        assert (equals.head.draft, equals.head.tree) == (best, GROWTH)
        assert equals.rival.tree == "chain:5"


@pytest.mark.parametrize(("part", "share"), [("sampling", 25), ("alignment", 50), ("param", 15)])
def test_a_share_is_the_parts_gain_of_the_whole_gain(part, share):
    recipe = FeatureDraftStudy(tree=TREE, growth=GROWTH, drafts=())
    found = feature_findings(recipe, Records(made(recipe, 1, SLIGHT)))
    lines = list(answers(recipe, found))
    shares = next(line for line in lines if "over EAGLE, " in line).split(";")
    assert any(part in line and f"({share}% of" in line for line in shares), shares


@pytest.fixture
def study(models, monkeypatch, tmp_path, capsys):
    """Runs a small one; its exit code, and what it said."""
    monkeypatch.setattr(zoo, "MODELS", models)
    for name in ("training_documents", "held_out_documents", "out_of_domain_documents"):
        monkeypatch.setattr(lessons, name, lambda: [tiny_zoo.TEXT * 3] * 4)

    def run(*changes: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(("study", "--json", "feature-draft", f"output={tmp_path}", *STUDY, *changes))
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_the_study_goes_on_where_it_stopped_and_fills_every_cell_once(study, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    begun, distill = [], study_of_heads.distill

    def stopping(run, course, *texts, **more):
        begun.append(course.student.params)
        if len(begun) == 2:
            return Run(course.student.params, 1)
        return distill(run, course, *texts, **more)

    with monkeypatch.context() as patched:
        patched.setattr(study_of_heads, "distill", stopping)
        code, out, err = study("name=s")
    assert code == 0 and out == "" and "the same command goes on with it" in err
    assert len(begun) == 2 and not (folder / "report.md").exists()

    # What was measured is not measured again: a number that was changed on disk comes back.
    file = folder / "records" / "eagle 0.json"
    changed = json.loads(file.read_text())
    changed["records"][0]["value"] = 1.23
    file.write_text(json.dumps(changed))
    told = [part.read_bytes() for part in (folder / "answers").glob("part-*.jsonl")]

    firsts = []

    def noting(run, course, *texts, **more):
        firsts.append((run.seed, course.student.params))
        return distill(run, course, *texts, **more)

    monkeypatch.setattr(study_of_heads, "distill", noting)
    code, out, err = study("name=s")
    assert code == 0 and json.loads(out)["folder"] == str(folder), err
    assert "eagle/0 0/2" not in err and "fspad/0 0/2" in err
    # All heads learn the same answers, of which there is one set; seeds begin apart.
    assert [part.read_bytes() for part in (folder / "answers").glob("part-*.jsonl")] == told
    assert [place.parent for place in folder.rglob("answers")] == [folder]
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

    code, out, err = study("name=s", "teaching.steps=3")
    assert code == 2 and out == ""
    assert "another study (teaching.steps=3 where it has 2)" in err.splitlines()[-1]


def check_cells(records: Records) -> None:
    """Every head, small model, domain, temperature and tree is there, as often as there are."""
    for served in (0.0, 1.0):
        assert records.mean(PLAIN, HOME, served, PER_SECOND).value > 0
        for draft, seeds, trees in (
            ("eagle", 2, (TREE, GROWTH)),
            ("fspad", 2, (TREE, GROWTH)),
            ("zoo:wide", 1, (CHAIN,)),
        ):
            for tree in trees:
                for measure in (DRAFT_MS, ROUND_MS, PER_SECOND, SPEEDUP):
                    assert records.mean(draft, HOME, served, on(measure, tree)).value > 0
                for domain in (HOME, AWAY):
                    rounds = records.by_seed(draft, domain, served, on(PER_ROUND, tree))
                    depths = [
                        records.by_seed(draft, domain, served, on(kept(depth), tree))
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
        ("growth=grow:2x2x6", "growth='grow:2x2x6' has 6 nodes where tree='2x1' has 5"),
        ("growth=2x1", "growth='2x1' does not grow"),
        ("tree=grow:2x2x5", "tree='grow:2x2x5' grows: give a static one"),
        ("prompts=9999", "prompts=9999: the held-out texts hold"),
        ("served=-1", "served=-1.0: must be 0 or a positive number"),
        ("drafts=zoo:wide zoo:wide", "give at least one value, and each once"),
        ("drafts=zoo:none", "zoo:none is not in the zoo"),
        ("teaching.head.kind=eagle", "teaching.head.kind: the study sets it: say it in kinds"),
        ("teaching.draft=zoo:wide", "teaching.draft='zoo:wide': heads of several kinds"),
        ("teaching.answers.weight=-1", "answers.weight=-1.0: must be 0 or more"),
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
    monkeypatch.setattr(programs, "MAPS", maps)
    for lines, left in ((programs.MANY, 1), (programs.MANY + 1, 0)):
        maps.write_text("map\n" * lines)
        programs.drop_programs()
        assert double._cache_size() == left
