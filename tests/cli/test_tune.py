"""`jspec tune`: what it chooses is printed, and taken by --tree auto from then on."""

import json

import numpy as np
import pytest
from commands import PROMPT, refused, run

from jspec import Tree
from jspec.core.tree_text import write_tree
from jspec.tuning import automatic, usual
from jspec.tuning.automatic import TuningResult
from jspec.tuning.costs import Costs

COSTS = Costs(((2, 1.0), (9, 1.5)), ((1, 0.1),), 1.0, "told")
FOUND = Tree.comb((2, 1))
GENERATE = ("generate", "--prompt", PROMPT, "--max-new-tokens", "6", "--json")

pytestmark = pytest.mark.usefixtures("small_zoo")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def told(monkeypatch) -> list[dict]:
    """What was measured; each time FOUND is found."""
    asked = []

    def found(draft, target, work, **how):
        asked.append({"draft": draft.name, **how})
        timed = {FOUND: 1.5, Tree.chain(1): 1.2}
        return TuningResult(FOUND, Tree.chain(1), timed, np.array([[0.5, 0.2]]), COSTS)

    monkeypatch.setattr(automatic, "find_fastest", found)
    return asked


def tree_of(capsys, *words: str) -> str:
    code, out, _ = run(capsys, *GENERATE, *words)
    assert code == 0
    return json.loads(out)["options"]["tree"]


def test_what_was_tuned_is_what_auto_takes_and_nothing_is_measured_before(capsys, told):
    assert tree_of(capsys) == usual.usual_tree("model", "cpu", 0.0) and not told
    code, out, _ = run(capsys, "tune", "--temperatures", "0", "1", "--json")
    record = json.loads(out)
    assert code == 0 and [one["temperature"] for one in told] == [0, 1]
    assert [one["tree"] for one in record["results"]] == [write_tree(FOUND)] * 2
    assert record["acceptance"] == [[0.5, 0.2]] and "jax" in record["machine"]
    assert tree_of(capsys) == tree_of(capsys, "--temperature", "1") == write_tree(FOUND)
    # Another rule and another draft have trees of their own.
    assert tree_of(capsys, "--rule", "one_sample") != write_tree(FOUND)
    assert tree_of(capsys, "--draft", "zoo:wide") != write_tree(FOUND)
    assert len(told) == 2


def test_people_read_what_was_chosen_and_what_was_timed(capsys, told):
    code, out, err = run(capsys, "tune", "--draft", "zoo:fspad", "--temperatures", "0.5")
    assert (code, out) == (0, "") and told[0]["draft"] == "zoo:fspad"
    assert "T=0.5: tree comb:2x1; times plain decoding: comb:2x1 1.50, chain:1 1.20" in err
    assert "remembered for --tree auto" in err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--draft", "lookup"), "draft='lookup': prompt lookup takes its usual tree"),
        (("--rule", "by_confidence"), "rule='by_confidence'"),
        (("--rule", "cupled"), "did you mean 'coupled'?"),
        (("--temperatures", "-1"), "temperature=-1.0"),
        (("--temperatures", "1", "1"), "temperatures=1.0 1.0 names one twice"),
        (("--replicate-draft",), "replicate_draft: there is no mesh"),
        (("--draft", "zoo:none"), "zoo:none is not in the zoo"),
    ],
)
def test_tune_refuses_bad_input_in_one_line(capsys, asked, said):
    code, out, err = run(capsys, "tune", *asked)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1] and err.splitlines()[-1].startswith("jspec: ")


def test_nothing_is_said_before_what_needs_no_measurement_is_refused(capsys):
    assert "names one twice" in refused(capsys, "tune", "--temperatures", "0", "0")
