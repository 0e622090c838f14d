"""The tree that a command takes where none is named."""

import json

import jax
import numpy as np
import pytest

from jspec import Tree, verify
from jspec.bench import settings
from jspec.cli import trees
from jspec.cli.main import main
from jspec.cli.pair import find_draft, read_target
from jspec.core.tree_text import write_tree
from jspec.draft.stop_networks import LawNetwork
from jspec.formats.decision import ABOUT, WEIGHTS, Decision, save_decision
from jspec.plan import automatic
from jspec.plan.automatic import Choice, choose
from jspec.plan.costs import Costs
from jspec.plan.remembered import fingerprint, remembered

COSTS = Costs(((2, 1.0), (9, 1.5)), ((1, 0.1),), 1.0, "told")
FOUND = Tree.from_paths([(0, 0), (1,)])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def told(monkeypatch) -> list[dict]:
    """What was asked for; each time FOUND is found."""
    asked = []

    def choose(draft, target, work, **how):
        asked.append(how)
        return Choice(FOUND, Tree.chain(1), {FOUND: 1.5}, np.array([[0.5, 0.2]]), COSTS)

    monkeypatch.setattr(automatic, "choose", choose)
    return asked


def generate(capsys, *words: str) -> dict:
    code = main(["generate", "--prompt", "def add", "--tokens", "6", "--no-stop", "--json", *words])
    assert code == 0
    return json.loads(capsys.readouterr().out)


def test_a_tree_is_found_once_for_a_pair_and_a_temperature(small_zoo, told, capsys):
    texts = [generate(capsys, "--tree", "auto") for _ in range(2)]
    assert len(told) == 1
    texts.append(generate(capsys, "--tree", "chain:2"))
    assert len({tuple(text["ids"]) for text in texts}) == 1
    assert len(texts[0]["accepted_by_depth"]) == FOUND.depth
    assert [text["options"]["tree"] for text in texts] == [write_tree(FOUND)] * 2 + ["chain:2"]
    generate(capsys, "--tree", "auto", "--temperature", "0.2")
    assert len(told) == 1  # the nearest that is measured is 0
    for words in (("--temperature", "0.9"), ("--draft", "zoo:wide"), ("--rule", "one_sample")):
        generate(capsys, "--tree", "auto", *words)
    assert len(told) == 4
    assert [how["temperature"] for how in told] == [0, 1, 0, 0]


def test_what_does_not_hold_a_tree_is_named(tmp_path):
    of = {"machine": "this", "temperature": 0.5}
    why = {"timed": []}
    assert remembered(of, lambda: (FOUND, why)) == FOUND
    assert remembered(of, lambda: pytest.fail("found twice")) == FOUND
    (file,) = (tmp_path / "cache").rglob("*.json")
    wrong = ([-1, 3], [-1], [-1, 0.0, 1.5], [-1, 0, 0, True], 7)
    kept = (json.dumps({"of": of, "parents": parents}) for parents in wrong)
    for damage in ("{", "[]", '{"of": {}}', *kept):
        file.write_text(damage)
        if damage == '{"of": {}}':
            # Another's: found again.
            assert remembered(of, lambda: (FOUND, why)) == FOUND
            continue
        with pytest.raises(ValueError, match="delete it|is not JSON|holds a list"):
            remembered(of, lambda: (FOUND, why))


def test_a_cache_that_cannot_be_written_costs_a_search_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert remembered({}, lambda: (FOUND, {})) == FOUND


def test_what_decides_when_to_stop_makes_no_other_pair(models):
    folder = models / "wide"
    before = fingerprint(folder)
    stop = LawNetwork()
    save_decision(folder, Decision(stop, stop.init(jax.random.key(0)), 16, (0.0,)))
    assert fingerprint(folder) == before
    (folder / WEIGHTS).unlink()
    (folder / ABOUT).unlink()
    assert fingerprint(models / "target") != before


def test_a_launch_of_several_processes_names_its_tree(small_zoo, capsys):
    assert main(["generate", "--prompt", "x", "--tree", "auto", "--distributed"]) == 2
    assert "tree='auto': each process" in capsys.readouterr().err


def test_a_rule_that_takes_no_static_tree_says_so(small_zoo, capsys):
    words = ["generate", "--prompt", "x", "--tree", "auto", "--rule", "by_confidence"]
    assert main(words) == 2
    assert "give grow:4x4x12" in capsys.readouterr().err


def test_who_stops_early_has_a_chain_to_stop_along(small_zoo, told, capsys):
    text = generate(capsys, "--stop", "confidence:0.1")
    assert text["options"]["tree"] == settings.DEEP and not told


@pytest.mark.parametrize(("lead", "taken"), [(1.02, Tree.chain(2)), (1.04, FOUND), (0.9, None)])
def test_a_tree_is_taken_where_it_leads_by_more_than_chance(lead, taken, small_zoo, monkeypatch):
    """So that what is taken is no slower than a chain that was timed beside it."""
    target = read_target("zoo:target", "float32")
    draft = find_draft("zoo:wide", target, "float32")
    monkeypatch.setattr(automatic, "acceptance", lambda *_, **how: np.array([[0.5, 0.2]] * 2))
    monkeypatch.setattr(automatic, "fastest_tree", lambda *_, **how: (FOUND, 1.0))
    speeds = {Tree.chain(1): 1.3, Tree.chain(2): 1.5, FOUND: 1.5 * lead}
    monkeypatch.setattr(automatic, "_timed", lambda trees, *_, **how: {t: speeds[t] for t in trees})
    how = {"rule": verify.coupled, "temperature": 1.0, "tick": str, "spent": COSTS}
    found = choose(draft, target, None, **how)
    assert found.tree == (taken or Tree.chain(2)) and found.chain == Tree.chain(2)
    assert speeds[found.tree] >= max(speeds.values()) / 1.03


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["coupled", "token_level"])
def test_what_is_chosen_is_the_fastest_of_what_was_timed(rule, small_zoo):
    target = read_target("zoo:target", "float32")
    draft = find_draft("zoo:wide", target, "float32")
    rule = getattr(verify, rule)
    work = trees.held_out_work(target, prompts=2, prompt_length=16, batch=1, tokens=16, seed=0)
    said = []
    found = choose(draft, target, work, rule=rule, temperature=1.0, tick=said.append)
    assert found.timed[found.tree] * automatic.LEAD >= max(found.timed.values())
    chains = {tree: speed for tree, speed in found.timed.items() if tree.width == 1}
    assert found.timed[found.chain] == max(chains.values())
    assert len(said) <= automatic.most_steps(work)
    assert json.dumps(found.record(), allow_nan=False)
    if rule is verify.token_level:
        assert chains == found.timed
