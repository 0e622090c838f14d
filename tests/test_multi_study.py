"""The multi-candidate study: what it says is what it measured."""

import itertools
import json
from dataclasses import replace

import pytest

from jspec.cli.main import main
from jspec.core.tree_text import read_tree, write_tree
from jspec.studies import multi_candidate as study_of_candidates
from jspec.studies.multi_candidate import HEADLINE, headline
from jspec.studies.multi_findings import deciders, drifts, headlines, own_best
from jspec.studies.multi_gauge import CHANCE, DRIFT, EQUAL, NATS, OVER, VARIATION
from jspec.studies.multi_recipe import MultiCandidateStudy, Way
from jspec.studies.multi_report import answers
from jspec.studies.records import Record, Records

RECIPE = MultiCandidateStudy(served=(0.0, 1.0))
FASTEST = "[[0, 0], [1]]"
TINY = (
    "served=0 1", "baseline=2x1", "depths=1 2", "widths=1 2", "fork=2", "trees=2x1",
    "static=2x2", "equal=chain:2", "deep=chain:2", "wide=2x1", "deciders=confidence",
    "thresholds=0.5", "prompts=1", "prompt=8", "tokens=8", "repetitions=1", "draws=200",
)  # fmt: skip


def told(speed) -> Records:
    """Records in which a way at a temperature is as fast as `speed` says."""
    found = [
        Record(draft=way.name, seed=0, domain=group, served=served, measure=OVER,
               value=speed(way, served))
        for (group, ways), served in itertools.product(RECIPE.groups().items(), RECIPE.served)
        for way in ways
    ]  # fmt: skip
    trees = [
        Record(draft=FASTEST, seed=0, domain="fastest tree", served=t, measure=OVER, value=1.0)
        for t in RECIPE.served
    ]
    beside = [
        Record(draft=way.name, seed=0, domain=HEADLINE, served=served, measure=OVER,
               value=speed(way, served))
        for served in RECIPE.served
        for way in headline(RECIPE, Records(found), served, FASTEST)
    ]  # fmt: skip
    return Records([*found, *trees, *beside])


def speed(way: Way, served: float) -> float:
    """Block's chain of 3 is the fastest chain, confidence at 0.5 the best decider."""
    if way.rule == "lossy":
        return 0.7
    if way.stop:
        best = way == Way("coupled", RECIPE.deep, "confidence:0.5", way.sliced)
        return (1.6 if best else 1.2) * (1.0 if way.sliced else 0.9) - served / 10
    if way.tree == FASTEST:
        return 1.5
    if way.tree.startswith("chain:"):
        rule = {"block": 0.2, "token_level": 0.1}.get(way.rule, 0.0)
        return 1.2 + rule - abs(int(way.tree[6:]) - 3) / 20
    return 1.0 if way.rule == "coupled" else 0.8


def test_the_headline_is_the_fastest_and_its_parts_are_ratios_of_what_was_timed():
    records = told(speed)
    for one in headlines(RECIPE, records):
        assert one.chain == Way("block", "chain:3")
        early = Way("coupled", RECIPE.deep, "confidence:0.5")
        assert one.best == (early if one.served == 0 else Way("coupled", FASTEST))
        assert one.over_baseline.times == pytest.approx(speed(one.best, one.served) / 0.8)
        assert one.over_chain.times == pytest.approx(speed(one.best, one.served) / 1.4)
        assert one.early.one == early
        assert one.early.times == pytest.approx(speed(early, one.served) / 1.4)
        coupling, shape, depth, stopping, slicing = one.parts
        assert coupling.times == pytest.approx(1.0 / 0.8)
        assert shape.times == pytest.approx(1.5)
        whole = early._replace(sliced=False)
        deep = Way("coupled", RECIPE.deep)
        assert depth.times == pytest.approx(speed(deep, one.served))
        assert stopping.times == pytest.approx(speed(whole, one.served) / speed(deep, one.served))
        assert slicing.times == pytest.approx(speed(early, one.served) / speed(whole, one.served))


def test_a_chain_that_is_faster_than_what_is_new_shows():
    def chains(way: Way, served: float) -> float:
        return 2.0 if way == Way("token_level", "chain:2") else speed(way, served)

    for one in headlines(RECIPE, told(chains)):
        assert one.chain == Way("token_level", "chain:2")
        assert one.over_chain.times == pytest.approx(speed(one.best, one.served) / 2.0)
        assert one.over_chain.times < 1


def test_each_decider_stands_at_its_best_threshold_wherever_it_decides():
    found = deciders(RECIPE, told(speed), 0.0)
    assert {(whole.rule, whole.tree) for whole in found} == {
        (rule, RECIPE.deep) for rule in ("coupled", "token_level", "block")
    } | {(rule, RECIPE.wide) for rule in ("coupled", "traversal")}
    ranked = found[Way("coupled", RECIPE.deep)]
    assert [one.what for one in ranked][0] == "confidence"
    assert ranked[0].one.stop == "confidence:0.5" and len(ranked) == len(RECIPE.deciders)
    assert ranked[0].times == pytest.approx(1.6 / speed(Way("coupled", RECIPE.deep), 0.0))
    # Who reads shared dice decides nothing under rejection.
    for whole, here in found.items():
        assert (whole.rule == "coupled") == any(one.what == "margin" for one in here)


def test_every_kind_stands_at_its_own_best():
    ranked = own_best(RECIPE, told(speed), 0.0)
    kinds = {way.kind: way for way, _ in ranked}
    assert set(kinds) == {way.kind for ways in RECIPE.groups().values() for way in ways}
    assert kinds["block, chain"] == Way("block", "chain:3")
    assert kinds["coupled, tree"] == Way("coupled", FASTEST)
    speeds = [value for _, value in ranked]
    assert ranked[0][0] == Way("coupled", RECIPE.deep, "confidence:0.5")
    assert speeds == sorted(speeds, reverse=True)


def test_trees_of_equal_nodes_are_of_equal_nodes():
    sizes = {read_tree(tree, 512).size for tree in RECIPE.equal}
    assert len(sizes) == 1 and len(RECIPE.equal) > 2


def test_who_reads_shared_dice_alone_leaves_the_rejection_rules_to_themselves():
    """And not the whole study to a refusal."""
    ways = [way for one in replace(RECIPE, deciders=("margin",)).groups().values() for way in one]
    assert {way.rule for way in ways if way.stop} == {"coupled"}


def test_drift_is_told_of_each_way():
    lossy = "lossy fork:2x4"
    numbers = {EQUAL: (0.0, 0.25), VARIATION: (1.0, 0.3), CHANCE: (1.0, 0.01)}
    for served in RECIPE.served:
        numbers |= {f"{NATS}, written": (served, -1.5), f"{NATS}, plain": (served, -1.0)}
    found = [
        Record(draft=lossy, seed=0, domain=DRIFT, served=served, measure=measure, value=value)
        for measure, (served, value) in numbers.items()
    ] + [
        Record(draft=lossy, seed=0, domain=DRIFT, served=0.0, measure=f"{NATS}, {who}", value=value)
        for who, value in (("written", -1.5), ("plain", -1.0))
    ]
    records = Records([*told(speed).all, *found])
    (one,) = drifts(RECIPE, records)
    assert one.way == Way("lossy", "fork:2x4")
    assert (one.equal, one.variation, one.chance) == (0.25, 0.3, 0.01)
    assert one.nats == dict.fromkeys(RECIPE.served, (-1.5, -1.0))
    said = list(answers(RECIPE, records, headlines(RECIPE, records), [one]))
    assert any("0.300, where an exact rule shows 0.010; 25% of greedy" in line for line in said)
    assert sum(line.startswith("T=") for line in said) == 8 * len(RECIPE.served)


@pytest.mark.slow
def test_the_study_times_everything_and_goes_on_where_it_stopped(
    small_zoo, tmp_path, capsys, monkeypatch
):
    words = ["study", "--json", "multi-candidate", f"output={tmp_path}", *TINY]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    folder = tmp_path / "multi_candidate"
    results = json.loads((folder / "results.json").read_text())
    groups = {record["domain"] for record in results["records"]}
    recipe = MultiCandidateStudy()
    assert groups == {*recipe.groups(), HEADLINE, "fastest tree", DRIFT}
    assert found["findings"] == results["findings"]
    for file in ("report.md", "depth.png", "width.png", "drift.png"):
        assert (folder / file).stat().st_size > 500
    monkeypatch.setattr(study_of_candidates, "timed", lambda *_: pytest.fail("timed again"))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == found["findings"]
    assert main([*words, "tokens=9"]) == 2
    assert "another study (tokens=9 where it has 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"widths": (0, 2)}, r"^widths=\(0, 2\): each is at least 1"),
        ({"depths": ()}, "^depths="),
        ({"thresholds": (1.5,)}, "^thresholds=1.5: must lie"),
        ({"served": (-1.0,)}, "^served=-1.0"),
        ({"prompts": 0}, "^prompts=0"),
        ({"fork": 1}, "^fork=1: the published"),
        ({"trees": ("2", "2")}, "^trees="),
    ],
)
def test_a_study_that_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        MultiCandidateStudy(**change)


@pytest.mark.parametrize("text", ["chain:4", "4x2x2x1", "comb:3x2x2", "3x1", "grow:4x4x12",
                                  "[[2], [0, 1], [1, 0], [0, 0, 0]]"])  # fmt: skip
def test_a_tree_is_written_as_it_is_read(text):
    assert write_tree(read_tree(text, 512)) == text
