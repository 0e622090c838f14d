"""The multi-candidate study: what it says is what it measured."""

import itertools
import json
from dataclasses import replace

import pytest

from jspec.core.tree_text import read_tree, write_tree
from jspec.studies.common.records import Measure, Record, Records
from jspec.studies.multi_candidate import measure as study_of_candidates
from jspec.studies.multi_candidate.measure import DRIFT, FASTEST, HEADLINE, headline
from jspec.studies.multi_candidate.recipe import Decoding, MultiCandidateStudy
from jspec.studies.multi_candidate.report import MultiCandidateReport

RECIPE = MultiCandidateStudy(temperatures=(0.0, 1.0))
FAST = "[[0, 0], [1]]"
TINY = (
    "multi-candidate", "temperatures=0 1", "baseline=2x1", "depths=1 2", "widths=1 2", "fork=2",
    "trees=2x1", "static=2x2", "equal=chain:2", "deep=chain:2", "wide=2x1", "stops=confidence",
    "thresholds=0.5", "prompts=1", "prompt_length=8", "max_new_tokens=8",
    "repetitions=1", "draws=200",
)  # fmt: skip


def measured(speed) -> Records:
    """Records in which a method at a temperature is as fast as `speed` says."""

    def record(method: Decoding, group: str, t: float, value: float) -> Record:
        here = {"method": method.name, "tree": method.tree, "group": group, "temperature": t}
        return Record(measure=Measure.SPEEDUP, value=value, draft="draft", **here)

    found = [
        record(method, group, t, speed(method, t))
        for (group, methods), t in itertools.product(RECIPE.groups().items(), RECIPE.temperatures)
        for method in methods
    ]
    trees = [record(Decoding("coupled", FAST), FASTEST, t, 1.0) for t in RECIPE.temperatures]
    beside = [
        record(method, HEADLINE, t, speed(method, t))
        for t in RECIPE.temperatures
        for method in headline(RECIPE, Records(found), t, FAST)
    ]
    return Records([*found, *trees, *beside])


def speed(method: Decoding, t: float) -> float:
    """Block's chain of 3 is the fastest chain, confidence at 0.5 the best stopping rule."""
    if method.rule == "lossy":
        return 0.7
    if method.stop:
        best = method == Decoding("coupled", RECIPE.deep, "confidence:0.5", method.bucketed)
        return (1.6 if best else 1.2) * (1.0 if method.bucketed else 0.9) - t / 10
    if method.tree == FAST:
        return 1.5
    if method.tree.startswith("chain:"):
        rule = {"block": 0.2, "token_level": 0.1}.get(method.rule, 0.0)
        return 1.2 + rule - abs(int(method.tree[6:]) - 3) / 20
    return 1.0 if method.rule == "coupled" else 0.8


def test_the_headline_is_the_fastest_and_its_parts_are_ratios_of_what_was_timed():
    records = measured(speed)
    for one in MultiCandidateReport(RECIPE, records).headlines:
        t, best = one["temperature"], one["best"]
        assert one["chain"] == Decoding("block", "chain:3")
        early = Decoding("coupled", RECIPE.deep, "confidence:0.5")
        assert best == (early if t == 0 else Decoding("coupled", FAST))
        assert one["over_baseline"].times == pytest.approx(speed(best, t) / 0.8)
        assert one["over_chain"].times == pytest.approx(speed(best, t) / 1.4)
        assert one["early"].one == early
        assert one["early"].times == pytest.approx(speed(early, t) / 1.4)
        coupling, shape, depth, stops, buckets = one["parts"]
        assert coupling.times == pytest.approx(1.0 / 0.8)
        assert shape.times == pytest.approx(1.5)
        whole = early._replace(bucketed=False)
        deep = Decoding("coupled", RECIPE.deep)
        assert depth.times == pytest.approx(speed(deep, t))
        assert stops.times == pytest.approx(speed(whole, t) / speed(deep, t))
        assert buckets.times == pytest.approx(speed(early, t) / speed(whole, t))


def test_a_chain_that_is_faster_than_what_is_new_shows():
    def chains(method: Decoding, t: float) -> float:
        return 2.0 if method == Decoding("token_level", "chain:2") else speed(method, t)

    for one in MultiCandidateReport(RECIPE, measured(chains)).headlines:
        assert one["chain"] == Decoding("token_level", "chain:2")
        expected = speed(one["best"], one["temperature"]) / 2.0
        assert one["over_chain"].times == pytest.approx(expected) and expected < 1


def test_each_stopping_rule_stands_at_its_best_threshold_wherever_it_decides():
    found = MultiCandidateReport(RECIPE, measured(speed)).stopping(0.0)
    assert {(whole.rule, whole.tree) for whole in found} == {
        (rule, RECIPE.deep) for rule in ("coupled", "token_level", "block")
    } | {(rule, RECIPE.wide) for rule in ("coupled", "traversal")}
    ranked = found[Decoding("coupled", RECIPE.deep)]
    assert [one.what for one in ranked][0] == "confidence"
    assert ranked[0].one.stop == "confidence:0.5" and len(ranked) == len(RECIPE.stops)
    assert ranked[0].times == pytest.approx(1.6 / speed(Decoding("coupled", RECIPE.deep), 0.0))
    # What reads shared noise decides nothing under rejection.
    for whole, here in found.items():
        assert (whole.rule == "coupled") == any(one.what == "margin" for one in here)


def test_every_kind_stands_at_its_own_best():
    ranked = MultiCandidateReport(RECIPE, measured(speed)).own_best(0.0)
    kinds = {method.kind: method for method, _ in ranked}
    assert set(kinds) == {method.kind for methods in RECIPE.groups().values() for method in methods}
    assert kinds["block, chain"] == Decoding("block", "chain:3")
    assert kinds["coupled, tree"] == Decoding("coupled", FAST)
    speeds = [value for _, value in ranked]
    assert ranked[0][0] == Decoding("coupled", RECIPE.deep, "confidence:0.5")
    assert speeds == sorted(speeds, reverse=True)


def test_trees_of_equal_nodes_are_of_equal_nodes():
    sizes = {read_tree(tree, 512).size for tree in RECIPE.equal}
    assert len(sizes) == 1 and len(RECIPE.equal) > 2


def test_what_reads_shared_noise_alone_leaves_the_rejection_rules_to_themselves():
    """And not the whole study to a refusal."""
    methods = [
        method for one in replace(RECIPE, stops=("margin",)).groups().values() for method in one
    ]
    assert {method.rule for method in methods if method.stop} == {"coupled"}


def test_drift_is_reported_of_each_method():
    lossy = Decoding("lossy", "fork:2x4")
    numbers = [
        (Measure.IDENTICAL_TEXTS, 0.0, 0.25),
        (Measure.TOTAL_VARIATION, 1.0, 0.3),
        (Measure.TOTAL_VARIATION_BY_CHANCE, 1.0, 0.01),
    ]
    for t in RECIPE.temperatures:
        numbers.append((Measure.TEXT_CROSS_ENTROPY, t, 1.5))
        numbers.append((Measure.PLAIN_CROSS_ENTROPY, t, 1.0))
    here = {"draft": "draft", "method": lossy.name, "group": DRIFT}
    found = [Record(measure=m, temperature=t, value=value, **here) for m, t, value in numbers]
    records = Records([*measured(speed).all, *found])
    report = MultiCandidateReport(RECIPE, records)
    assert report.drifts == [{
        "method": lossy, "identical_texts": 0.25, "total_variation": 0.3, "by_chance": 0.01,
        "cross_entropies": dict.fromkeys(RECIPE.temperatures, (1.5, 1.0)),
    }]  # fmt: skip
    said = list(report.answers())
    assert any("0.300, where an exact rule shows 0.010; 25% of greedy" in line for line in said)
    assert sum(line.startswith("T=") for line in said) == 8 * len(RECIPE.temperatures)


@pytest.mark.slow
def test_the_study_times_everything_and_resumes_where_it_stopped(run_study, tmp_path, monkeypatch):
    code, out, err = run_study(*TINY)
    assert code == 0, err
    found = json.loads(out)
    folder = tmp_path / "multi_candidate"
    results = json.loads((folder / "results.json").read_text())
    groups = {record["group"] for record in results["records"]}
    recipe = MultiCandidateStudy()
    assert groups == {*recipe.groups(), HEADLINE, FASTEST, DRIFT}
    assert found["findings"] == results["findings"]
    for file in ("report.md", "depth.png", "width.png", "drift.png"):
        assert (folder / file).stat().st_size > 500
    monkeypatch.setattr(study_of_candidates, "timed", lambda *_: pytest.fail("timed again"))
    code, out, err = run_study(*TINY)
    assert code == 0 and json.loads(out)["findings"] == found["findings"], err
    code, _, err = run_study(*TINY, "max_new_tokens=9")
    assert code == 2 and "another study (max_new_tokens=9 where it has 8)" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"widths": (0, 2)}, r"^widths=\(0, 2\): each is at least 1"),
        ({"depths": ()}, "^depths="),
        ({"thresholds": (1.5,)}, "^thresholds=1.5: must lie"),
        ({"temperatures": (-1.0,)}, "^temperatures=-1.0"),
        ({"prompts": 0}, "^prompts=0"),
        ({"fork": 1}, "^fork=1: the published"),
        ({"trees": ("2", "2")}, "^trees="),
    ],
)
def test_a_study_that_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        MultiCandidateStudy(**change)


@pytest.mark.parametrize("text", ["chain:4", "4x2x2x1", "comb:3x2x2", "3x1", "dynamic:4x4x12",
                                  "[[2], [0, 1], [1, 0], [0, 0, 0]]"])  # fmt: skip
def test_a_tree_is_written_as_it_is_read(text):
    assert write_tree(read_tree(text, 512)) == text
