"""Commands that stop drafting early: the same text, both rates, and a network trained for it."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from commands import PROMPT, TOKENS, plain, refused, run

from jspec.cli.bench import Bench
from jspec.draft.draft import load_draft
from jspec.draft.stopping import Confidence, RunningAcceptance, read_stop
from jspec.formats.decision import ABOUT, WEIGHTS, Decision, load_decision, save_decision
from jspec.formats.huggingface import load, save
from jspec.training.stop_network import make_network

pytestmark = pytest.mark.usefixtures("small_zoo")

GREEDY = (
    "--prompt",
    PROMPT,
    "--ignore-eos",
    "--max-new-tokens",
    str(TOKENS),
    "--seed",
    "7",
    "--json",
)


def decision(width: int = 16, kind: str = "hidden") -> Decision:
    network = make_network(kind, width)
    return Decision(network, network.init(jax.random.key(5)), width, (0.0,), threshold=0.5)


@pytest.fixture
def taught(tmp_path):
    """The folder of a network that fits the tiny drafts, with a name that has a colon."""
    folder = tmp_path / "of:mine"
    save_decision(folder, decision())
    return folder


def test_what_people_write_is_read(models, taught):
    draft = {"folder": models / "distilled", "width": 16}
    assert read_stop("confidence:0.3", **draft) == (Confidence(0.3), ())
    assert read_stop("running:1", **draft) == (RunningAcceptance(1.0), ())
    for text, threshold in ((f"{taught}", 0.5), (f"{taught}:0.2", 0.2)):
        stop, params = read_stop(text, **draft)
        assert (stop.threshold, stop.network.sizes) == (threshold, decision().network.sizes)
        np.testing.assert_array_equal(params[0]["weight"], decision().params[0]["weight"])


@pytest.mark.slow
def test_generate_writes_the_plain_text_and_drafts_less(models, capsys):
    # Who is always right and never sure enough drafts one level a round, and has it kept.
    of = ("--draft", "zoo:target", "--tree", "chain:3", "--stop-drafting", "confidence:1")
    code, out, _ = run(capsys, "generate", *GREEDY, *of)
    record = json.loads(out)
    assert code == 0 and record["token_ids"] == plain(models / "target")
    assert record["drafted_levels_per_round"] == 1
    assert record["acceptance_rate_drafted"] > 0.9
    assert record["acceptance_rate"] == pytest.approx(record["acceptance_rate_drafted"] / 3)
    kept = record["acceptance_rate_drafted"] * record["drafted_levels_per_round"]
    assert kept == pytest.approx(record["accepted_per_round"])
    assert "wasted_levels_per_round" not in record


@pytest.mark.slow
def test_a_network_beside_the_draft_is_found_and_the_text_is_the_same(models, capsys, tmp_path):
    folder = shutil.copytree(models / "distilled", tmp_path / "draft")
    save_decision(folder, decision())
    of = ("--draft", str(folder), "--tree", "chain:3")
    for stop in ("network", "network:0.2"):
        code, out, _ = run(capsys, "generate", *GREEDY, *of, "--stop-drafting", stop)
        record = json.loads(out)
        assert code == 0 and record["token_ids"] == plain(models / "target")
        assert 1 <= record["drafted_levels_per_round"] <= 3
    # It was trained for the draft that was there.
    other = load(models / "wide")
    save(folder, other.model, other.params, tokenizer=models / "wide")
    assert not (folder / ABOUT).exists() and not (folder / WEIGHTS).exists()
    assert "has no decision.json" in refused(
        capsys, "generate", *GREEDY[:-1], *of, "--stop-drafting", "network"
    )


def test_networks_that_do_not_fit_are_refused_in_one_line(capsys, taught):
    save_decision(taught, decision(24))
    asked = ("generate", *GREEDY[:-1], "--stop-drafting", str(taught))
    assert "width=24, and the draft's hidden states have 16" in refused(capsys, *asked)
    (taught / ABOUT).write_text("{}")
    assert "kind is missing: write it again by jspec decide" in refused(capsys, *asked)
    for verb in ("verify", "bench"):
        short = ("--prompts", "1", "--prompt-length", "8", "--max-new-tokens", "8")
        assert "kind is missing" in refused(capsys, verb, *short, "--stop-drafting", str(taught))
    lookup = ("verify", "--draft", "lookup", "--stop-drafting", "margin:0.3")
    assert "a stop reads a model's draft logits" in refused(capsys, *lookup)


def test_bench_stops_early_along_static_trees_under_rules_that_it_can_decide_under(models):
    target = load(models / "target")
    drafts = {"wide": load_draft(models / "wide", target)}
    bench = Bench(
        trees=("chain:2", "dynamic:2x2x4"),
        lookups=(),
        stop_drafting=("margin:0.3", "running:0.6"),
        rules=("coupled", "token_level"),
    )
    assert [method.name for method in bench._methods(target, drafts)] == [
        "plain",
        "wide chain:2",
        "wide chain:2 margin:0.3",
        "wide chain:2 running:0.6",
        "wide dynamic:2x2x4",
        "wide chain:2 token_level",
        # No noise is shared there, so that the margin says nothing.
        "wide chain:2 running:0.6 token_level",
    ]
    with pytest.raises(
        ValueError, match="^stop_drafting=margin:0.3 running:0.6: drafts stop early along"
    ):
        replace(bench, trees=("dynamic:2x2x4",))._methods(target, drafts)


@pytest.mark.slow
def test_bench_reports_both_rates_and_wasted_levels(capsys):
    code, out, _ = run(
        capsys, *"bench --drafts zoo:target --trees chain:3 --lookups "
        "--stop-drafting confidence:0.02 --temperatures 0 --prompts 2 --batch-size 2 "
        "--prompt-length 24 --max-new-tokens 40 --repetitions 1 "
        "--json".split(),
    )  # fmt: skip
    plain, whole, early = json.loads(out)["results"]
    assert code == 0 and early["identical"]
    assert early["method"] == "zoo:target chain:3 confidence:0.02"
    assert whole["acceptance_rate"] == whole["acceptance_rate_drafted"]
    assert whole["wasted_levels_per_round"] == 0
    # It drafts fewer levels than there are, and one row stops where the other continues.
    assert early["acceptance_rate_drafted"] > early["acceptance_rate"]
    assert early["wasted_levels_per_round"] > 0
    assert plain["acceptance_rate_drafted"] is None and plain["wasted_levels_per_round"] is None


@pytest.mark.slow
def test_verify_holds_what_stops_early_to_the_plain_text(capsys):
    short = (
        "--prompts",
        "2",
        "--prompt-length",
        "24",
        "--max-new-tokens",
        "40",
        "--temperatures",
        "0",
    )
    asked = ("verify", *short, "--draft", "zoo:target", "--tree", "chain:3")
    code, out, err = run(capsys, *asked, "--stop-drafting", "confidence:0.02")
    assert code == 0
    assert "levels drafted per round" in err and "wasted" in err and "of what was drafted" in err
    code, out, _ = run(capsys, *asked, "--stop-drafting", "confidence:1", "--json")
    (row,) = json.loads(out)["temperatures"]
    assert code == 0 and row["passed"] and row["drafted_levels_per_round"] == 1
    assert row["acceptance_rate_drafted"] == pytest.approx(3 * row["acceptance_rate"])


# jspec decide


SHORT = ("--prompts", "4", "--prompt-length", "8", "--max-new-tokens", "16")


def decide(capsys, folder, *arguments: str, batch: int = 1) -> dict:
    short = (*SHORT, "--batch-size", str(batch), "--epochs", "2", "--json")
    asked = ("decide", *short, "--output", str(folder), *arguments)
    code, out, _ = run(capsys, *asked)
    assert code == 0 and out.count("\n") == 1
    return json.loads(out)


@pytest.mark.slow
def test_decide_writes_a_network_that_its_draft_takes(models, capsys, tmp_path):
    folder = tmp_path / "new" / "network"
    record = decide(capsys, folder, "--temperatures", "0", "1", "--threshold", "0.3")
    found = load_decision(folder, width=16)
    assert (found.network.kind, found.threshold, found.temperatures) == ("hidden", 0.3, (0, 1))
    assert record["draft_tokens"] == 4 * 16 * 2
    assert record["held_out_draft_tokens"] == 16 * 2
    assert len(record["losses"]) == 2 and record["best_epoch"] in (1, 2)
    names = ["hidden network", "distribution network", "confidence", "entropy", "margin"]
    assert {(c["name"], c["rule"], c["temperature"]) for c in record["calibration"]} == {
        (name, rule, t) for name in names for rule in ("coupled", "token_level") for t in (0, 1)
    }
    assert all(sum(b["count"] for b in c["bins"]) == 16 for c in record["calibration"])
    for picture in record["pictures"]:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "calibration.json").read_text())["losses"] == record["losses"]
    stop, params = read_stop(str(folder), folder=None, width=16)
    stop.check_params(params)


@pytest.mark.slow
def test_decide_trains_the_distribution_network_of_a_head_and_the_same_seed_gives_the_same(
    models, capsys, tmp_path, monkeypatch
):
    head = shutil.copytree(models / "fspad", tmp_path / "head")
    asked = ("--draft", str(head), "--kind", "distribution", "--temperatures", "1")
    decide(capsys, head, *asked, batch=4)
    decide(capsys, tmp_path / "again", *asked, batch=4)
    one, again = load_decision(head), load_decision(tmp_path / "again")
    assert one.network.kind == "distribution" and one.width == 16
    jax.tree.map(np.testing.assert_array_equal, one.params, again.params)
    # Beside the head it disturbs nobody.
    code, out, _ = run(
        capsys,
        "generate",
        *GREEDY,
        "--draft",
        str(head),
        "--tree",
        "chain:3",
        "--stop-drafting",
        "network",
    )
    assert code == 0 and json.loads(out)["token_ids"] == plain(models / "target")


@pytest.mark.slow
def test_decide_prints_a_table(capsys, tmp_path):
    code, out, err = run(
        capsys, "decide", *SHORT, "--batch-size", "2", "--epochs", "1", "--temperatures", "1",
        "--output", str(tmp_path),
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert (
        "calibration error" in err
        and "distribution network" in err
        and "64 draft tokens to learn" in err
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--epochs", "0"), "epochs=0: must be at least 1"),
        (("--prompts", "0"), "prompts=0: must be at least 1"),
        (
            ("--prompts", "3", "--batch-size", "2"),
            "batch_size=2: it must divide the number of prompts, 3",
        ),
        (("--prompt-length", "1"), "prompt_length=1: must be at least 2"),
        (("--threshold", "2"), "threshold=2.0: must be between 0"),
        (("--temperatures", "-1"), "temperature=-1.0"),
        (("--temperatures", "1", "1"), "temperatures=1.0 1.0 names one twice"),
        (("--max-new-tokens", "400"), "more than the context of 320"),
        (("--draft", "zoo:none"), "zoo:none is not in the zoo"),
        (("--kind", "soft"), "soft"),
        (("--output", __file__), "is a file: name a folder"),
    ],
)
def test_decide_refuses_bad_input_in_one_line(capsys, tmp_path, arguments, said):
    where = () if "--output" in arguments else ("--output", str(tmp_path / "out"))
    asked = (*SHORT, "--batch-size", "2", *arguments, *where)
    assert said in refused(capsys, "decide", *asked)
    assert not (tmp_path / "out").exists()
