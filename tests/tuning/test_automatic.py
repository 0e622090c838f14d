"""The tree that is taken where none is named: the usual one, or the one that was tuned."""

import json

import jax
import numpy as np
import pytest

from jspec import Tree, load, load_draft, verify
from jspec.bench.suite import held_out_work
from jspec.cli.main import main
from jspec.core.tree_text import read_tree, write_tree
from jspec.formats.decision import ABOUT, WEIGHTS, Decision, save_decision
from jspec.models.stop_networks import DistributionNetwork
from jspec.tuning import automatic, usual
from jspec.tuning.automatic import (
    TuningResult,
    find_fastest,
    find_tree,
    fingerprint,
    load_tree,
    remembered_tree,
    save_tree,
    tune,
)
from jspec.tuning.costs import Costs

COSTS = Costs(((2, 1.0), (9, 1.5)), ((1, 0.1),), 1.0, "measured")
FOUND = Tree.from_paths([(0, 0), (1,)])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def measured(monkeypatch) -> list[dict]:
    """What was measured; each time FOUND is found."""
    asked = []

    def found(draft, target, work, **how):
        asked.append(how)
        return TuningResult(FOUND, Tree.chain(1), {FOUND: 1.5}, np.array([[0.5, 0.2]]), COSTS)

    monkeypatch.setattr(automatic, "find_fastest", found)
    return asked


@pytest.fixture
def pair(small_zoo):
    target = load("zoo:target")
    return target, load_draft("zoo:wide", target)


def generate(capsys, *words: str) -> dict:
    words = ("--prompt", "def add", "--max-new-tokens", "6", "--ignore-eos", "--json", *words)
    code = main(["generate", *words])
    assert code == 0
    return json.loads(capsys.readouterr().out)


def test_the_first_text_waits_for_no_measurement(small_zoo, measured, capsys):
    texts = [generate(capsys, "--tree", "auto"), generate(capsys, "--tree", "chain:2")]
    assert not measured and len({tuple(text["token_ids"]) for text in texts}) == 1
    assert texts[0]["options"]["tree"] == usual.usual_tree("model", "cpu", 0.0)


def test_a_tree_that_was_tuned_is_taken_for_its_pair_its_rule_and_its_temperature(pair, measured):
    assert remembered_tree(*pair) is None
    assert tune(*pair, temperature=0.2).tree == FOUND
    assert measured == [{"rule": verify.coupled, "temperature": 0.0, "tick": measured[0]["tick"]}]
    assert remembered_tree(*pair) == remembered_tree(*pair, temperature=0.1) == FOUND
    assert find_tree("auto", *pair) == FOUND and find_tree("chain:2", *pair) == Tree.chain(2)
    others = ({"temperature": 0.9}, {"rule": verify.one_sample})
    for how in others:
        assert remembered_tree(*pair, **how) is None
        assert find_tree("auto", *pair, **how) == Tree.chain(3) or how == others[0]
    target, _ = pair
    assert remembered_tree(target, load_draft("zoo:target", target)) is None
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("rule", "tree"),
    [
        ("coupled", "chain:3"),
        ("token_level", "chain:3"),
        ("by_confidence", usual.DYNAMIC_TREE),
        ("without_replacement", "chain:3"),
    ],
)
def test_the_usual_tree_is_one_that_the_rule_takes(rule, tree, pair):
    assert write_tree(find_tree("auto", *pair, rule=getattr(verify, rule))) == tree
    hot = find_tree("auto", *pair, rule=verify.token_level, temperature=1.0)
    assert hot == Tree.chain(3)


def test_prompt_lookup_has_a_usual_tree_too(pair):
    assert find_tree("auto", pair[0], load_draft("lookup", pair[0])) == Tree.chain(7)
    with pytest.raises(ValueError, match="draft_kind='magic': give one of model, head, lookup"):
        usual.usual_tree("magic", "cpu", 0.0)


@pytest.mark.parametrize("kind", ["model", "head", "lookup"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "another"])
def test_usual_trees_are_trees(kind, platform):
    for temperature in (0.0, 0.3, 1.0, 2.0):
        tree = read_tree(usual.usual_tree(kind, platform, temperature), 64)
        assert 2 <= tree.size <= automatic.NODES


def test_what_does_not_hold_a_tree_is_named(tmp_path):
    of = {"machine": "this", "temperature": 0.5}
    save_tree(of, FOUND, {"timed": []})
    assert load_tree(of) == FOUND
    (file,) = (tmp_path / "cache").rglob("*.json")
    wrong = ([-1, 3], [-1], [-1, 0.0, 1.5], [-1, 0, 0, True], 7)
    damages = (json.dumps({"of": of, "parents": parents}) for parents in wrong)
    for damage in ("{", "[]", '{"of": {}}', *damages):
        file.write_text(damage)
        if damage == '{"of": {}}':
            # Another's.
            assert load_tree(of) is None
            continue
        with pytest.raises(ValueError, match="delete it|is not JSON|holds a list"):
            load_tree(of)


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    save_tree({}, FOUND, {})
    assert load_tree({}) is None


def test_what_decides_when_to_stop_makes_no_other_pair(models):
    folder = models / "wide"
    before = fingerprint(folder)
    stop = DistributionNetwork()
    save_decision(folder, Decision(stop, stop.init(jax.random.key(0)), 16, (0.0,)))
    assert fingerprint(folder) == before
    (folder / WEIGHTS).unlink()
    (folder / ABOUT).unlink()
    assert fingerprint(models / "target") != before


def test_the_processes_of_a_launch_take_the_same_tree(pair, measured, monkeypatch):
    """Each machine remembers for itself, so what is remembered is for one process alone."""
    tune(*pair)
    assert find_tree("auto", *pair) == FOUND
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert find_tree("auto", *pair) == Tree.chain(3)


def test_a_rule_that_takes_no_static_tree_is_tuned_for_none(pair):
    with pytest.raises(ValueError, match="give tree=dynamic:4x4x12"):
        tune(*pair, rule=verify.by_confidence)


def test_who_stops_early_has_a_chain_to_stop_along(small_zoo, measured, capsys):
    text = generate(capsys, "--stop-drafting", "confidence:0.1")
    assert text["options"]["tree"] == usual.EARLY_STOPPING_TREE and not measured


@pytest.mark.parametrize(("lead", "taken"), [(1.02, Tree.chain(2)), (1.04, FOUND), (0.9, None)])
def test_a_tree_is_taken_where_it_leads_by_more_than_chance(lead, taken, small_zoo, monkeypatch):
    """So that what is taken is no slower than a chain that was timed beside it."""
    target = load("zoo:target")
    draft = load_draft("zoo:wide", target)
    monkeypatch.setattr(automatic, "count_accepted", lambda *_, **how: np.zeros((1, 3, 2)))
    shares = np.array([[0.5, 0.2]] * 2)
    monkeypatch.setattr(automatic, "shares_of", lambda counts: shares)
    monkeypatch.setattr(automatic, "fastest_tree", lambda *_, **how: (FOUND, 1.0))
    speeds = {Tree.chain(1): 1.3, Tree.chain(2): 1.5, FOUND: 1.5 * lead}
    monkeypatch.setattr(automatic, "_timed", lambda trees, *_, **how: {t: speeds[t] for t in trees})
    how = {"rule": verify.coupled, "temperature": 1.0, "tick": str, "spent": COSTS}
    found = find_fastest(draft, target, None, **how)
    assert found.tree == (taken or Tree.chain(2)) and found.chain == Tree.chain(2)
    assert speeds[found.tree] >= max(speeds.values()) / 1.03


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["coupled", "token_level"])
def test_what_is_chosen_is_the_fastest_of_what_was_timed(rule, small_zoo):
    target = load("zoo:target")
    draft = load_draft("zoo:wide", target)
    rule = getattr(verify, rule)
    work = held_out_work(target, prompts=2, prompt_length=16, batch=1, tokens=16, seed=0)
    said = []
    found = find_fastest(draft, target, work, rule=rule, temperature=1.0, tick=said.append)
    assert found.timed[found.tree] * automatic.LEAD >= max(found.timed.values())
    chains = {tree: speed for tree, speed in found.timed.items() if tree.width == 1}
    assert found.timed[found.chain] == max(chains.values())
    assert len(said) <= automatic.count_steps(work)
    assert json.dumps(found.record(), allow_nan=False)
    if rule is verify.token_level:
        assert chains == found.timed
