"""The lossy rule on the command line: by name alone, with a line that says what it does."""

import json

import pytest

from jspec.cli.main import main
from jspec.studies.multi_candidate.lossy import LOSS
from jspec.tuning import usual

GENERATE = ("generate", "--json", "--prompt", "x = 1", "--max-new-tokens", "8", "--ignore-eos")


def run(capsys, *arguments: str) -> tuple[int, str, list[str]]:
    capsys.readouterr()
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


@pytest.mark.usefixtures("small_zoo")
def test_text_is_written_and_a_line_says_of_what_kind(capsys):
    code, out, said = run(capsys, *GENERATE, "--rule", "lossy", "--tree", "fork:2x2")
    assert code == 0 and len(json.loads(out)["token_ids"]) == 8
    assert said.count(LOSS) == 1 and not any("Warning" in line for line in said)


@pytest.mark.usefixtures("small_zoo")
@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--draft", "lookup"), "draft='lookup': rule='lossy' has small models draft"),
        (("--draft", "zoo:fspad"), "draft='zoo:fspad': rule='lossy' has small models"),
        (("--tree", "comb:2x2"), "tree of 5 nodes: rule='lossy' follows roots"),
        (("--tree", "dynamic:2x2x4"), "tree of 4 nodes: rule='lossy' follows roots"),
    ],
)
def test_what_the_rule_is_not_made_for_is_refused_in_one_line(capsys, asked, why):
    code, out, said = run(capsys, *GENERATE, "--rule", "lossy", *asked)
    assert (code, out) == (2, "") and said[-1].startswith(f"jspec: {why}")
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tree", [usual.LOSSY_TREE, "2x2x2"])
def test_the_doctor_finds_that_the_text_is_another(capsys, tree):
    size = ("--prompts", "4", "--prompt-length", "64", "--max-new-tokens", "64")
    asked = ("verify", "--rule", "lossy", "--tree", tree, "--temperatures", "0", "1", *size)
    code, out, said = run(capsys, *asked, "--json")
    cold, hot = json.loads(out)["temperatures"]
    print(cold["differences"], hot["distribution_p_value"], hot["acceptance_length"])
    assert code == 1 and not hot["passed"] and hot["distribution_p_value"] < 1e-4
    assert said.count(LOSS) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("small_zoo")
def test_it_is_timed_beside_the_others(capsys):
    size = ("--prompts", "1", "--prompt-length", "16", "--max-new-tokens", "8")
    drafts = ("--drafts", "zoo:distilled", "zoo:fspad", "--trees", "fork:2x2", "dynamic:2x2x4")
    rules = ("--repetitions", "1", "--lookups", "chain:2", "--rules", "coupled", "lossy")
    code, out, said = run(capsys, "bench", "--json", *size, *drafts, *rules)
    named = {row["method"] for row in json.loads(out)["results"]}
    assert code == 0 and said.count(LOSS) == 1
    assert {name for name in named if name.endswith(" lossy")} == {"zoo:distilled fork:2x2 lossy"}
