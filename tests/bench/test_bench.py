"""Benchmarks: interleaved, honest about differences, and comparable with others."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_zoo
from rich.console import Console

from jspec.bench import peers
from jspec.bench.agreement import differences
from jspec.bench.metrics import RoundCounts, acceptance_metrics
from jspec.bench.report import Report, method_table
from jspec.bench.suite import Method, Program, workload
from jspec.bench.timing import PLAIN, Run, Sample, best, interleave, summarise
from jspec.cli.main import main
from jspec.core.tree import DynamicTree, Tree
from jspec.core.tree_text import read_tree
from jspec.decode import GenerationOutput
from jspec.formats import folder as model_folders
from jspec.models.transformer import transformer

ROWS = [[5, 6, 7, 8], [9, 10, 11, 12]]


class Counter:
    """A runner that notes its turns and needs no time."""

    def __init__(self, name: str, turns: list, tokens: int, seconds: float) -> None:
        self.name, self.turns, self.tokens, self.seconds = name, turns, tokens, seconds

    def __call__(self, batch: int, temperature: float) -> Run:
        self.turns.append((self.name, batch, temperature))
        counts = RoundCounts(rounds=2, tokens=self.tokens)
        return Run(self.seconds, np.zeros((1, self.tokens), np.int32), counts)


def quiet(note: str) -> None:
    """Hears progress and says nothing."""


def test_every_runner_has_a_turn_on_everything_and_each_goes_first():
    turns: list = []
    runners = [Counter("a", turns, 4, 1.0), Counter("b", turns, 4, 1.0)]
    samples = interleave(runners, batches=2, temperatures=[0, 1], repetitions=2, tick=quiet)
    assert len(samples) == 16 and len(set(turns)) == 8
    assert [name for name, *_ in turns[:4]] == ["a", "b", "a", "b"]
    assert [name for name, *_ in turns[8:12]] == ["b", "a", "b", "a"]


def test_no_repetition_begins_after_the_time_is_up_but_the_first():
    samples = interleave(
        [Counter("a", [], 4, 1.0)], batches=1, temperatures=[0], repetitions=9, tick=quiet,
        seconds=0.0,
    )  # fmt: skip
    assert [sample.repetition for sample in samples] == [0]


def sample(method: str, repetition: int, seconds: float, text: list[int], t: float = 0.0) -> Sample:
    counts = RoundCounts(rounds=2, tokens=len(text))
    return Sample(method, t, 0, repetition, Run(seconds, np.array([text]), counts))


def test_figures_are_medians_over_repetitions_and_speedups_are_paired():
    samples = [
        *(sample(PLAIN, r, s, [1, 2, 3, 4]) for r, s in enumerate([1.0, 2.0, 8.0])),
        *(sample("tree", r, s, [1, 2, 3, 4]) for r, s in enumerate([0.5, 2.0, 1.0])),
        *(sample("other", r, s, [1, 2, 3, 5]) for r, s in enumerate([1.0, 1.0, 1.0])),
    ]
    plain, tree, other = summarise(samples, coupled=[PLAIN, "tree"])
    assert (plain.tokens_per_second, plain.slowest, plain.fastest) == (2.0, 0.5, 4.0)
    assert tree.speedup == 2.0  # of 2, 1 and 8
    assert (tree.acceptance_length, tree.identical, other.identical) == (2.0, True, False)
    assert best([plain, tree, other], 0.0, ["tree", "other"]) == tree


def test_sampled_text_of_others_is_not_compared():
    samples = [sample(PLAIN, 0, 1.0, [1], 1.0), sample("theirs", 0, 1.0, [2], 1.0)]
    assert [row.identical for row in summarise(samples, coupled=[PLAIN])] == [True, None]


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("chain:3", Tree.chain(3)),
        ("4x2x1", Tree.branching((4, 2, 1))),
        ("3", Tree.branching((3,))),
        ("fork:4x5", Tree.fork(4, 5)),
        ("comb:3x2x2", Tree.comb((3, 2, 2))),
        ("dynamic:4x3x12", DynamicTree(width=4, depth=3, nodes=12)),
    ],
)
def test_trees_are_read_from_text(text, tree):
    assert read_tree(text, context=64) == tree


def test_trees_are_read_from_a_file_of_paths(tmp_path):
    (tmp_path / "tree.json").write_text("[[0, 0], [1]]")
    assert read_tree(str(tmp_path / "tree.json"), 64) == Tree.from_paths([(0, 0), (1,)])


@pytest.mark.parametrize(
    "text",
    [
        *("chain:0", "0x2", "fork:3x0", "chain:2x2", "fork:4", "2x", "-1"),
        *(
            "dynamic:2x3",
            "dynamic:0x2x3",
            "dynamic:2x0x3",
            "dynamic:2x2x0",
            "dynamic:2x3x3",
            "dynamic:2x2x8",
        ),
        "dynamic:9x9x65",
        "dynamic:16x3x20",
    ],
)
def test_what_is_no_tree_is_refused(text):
    with pytest.raises(ValueError, match=f"tree='{text}'"):
        read_tree(text, context=64)


def test_a_tree_fits_the_context_exactly():
    assert read_tree("chain:63", context=64).size == 64
    with pytest.raises(ValueError, match="65 nodes with its root"):
        read_tree("chain:64", context=64)


def test_acceptance_counts_rounds_that_accepted_each_position():
    generation = GenerationOutput(
        tokens=jnp.zeros((1, 7)), length=jnp.array([7]), is_draft_token=jnp.zeros((1, 7), bool),
        finish_reason=jnp.array([2]), num_rounds=jnp.array([4]),
        accepted_by_rank=jnp.array([[[4], [2], [1]]]),
        num_draft_tokens=jnp.array([6]), num_draft_levels=jnp.array([6]),
        wasted_draft_levels=jnp.array([2]),
    )  # fmt: skip
    found = acceptance_metrics(generation)
    assert found["acceptance_length"] == 7 / 4
    assert found["accepted_by_position"] == [0.5, 0.25]
    assert found["accepted_per_round"] == found["acceptance_length"] - 1
    assert found["acceptance_rate"] == 3 / 8
    assert (found["acceptance_rate_drafted"], found["drafted_levels_per_round"]) == (3 / 6, 6 / 4)
    # Alone a row wastes no levels.
    assert "wasted_levels_per_round" not in found
    twice = acceptance_metrics(jax.tree.map(lambda x: jnp.concatenate([x, x]), generation))
    assert twice == {**found, "rounds": 8, "tokens": 14, "wasted_levels_per_round": 2 / 4}


@pytest.fixture(scope="module")
def plain():
    """A model, a workload, and plain decoding's own samples of it."""
    model = transformer(tiny_zoo.config())
    params = model.init(jax.random.key(0))
    work = workload(ROWS, batch=2, tokens=6, context=64, seed=0)
    program = Program(Method(PLAIN), model, params, work)
    samples = interleave([program], batches=1, temperatures=[0, 1], repetitions=1, tick=quiet)
    return model, params, work, samples


def test_a_text_that_differs_is_found_and_is_no_near_tie(plain):
    model, params, work, samples = plain
    assert differences(samples, model, params, work) == []
    tokens = samples[1].run.tokens.copy()
    tokens[1, 3:] = (tokens[1, 3:] + 1) % tiny_zoo.VOCABULARY
    forged = Sample("forged", 1, 0, 0, Run(1.0, tokens))
    (difference,) = differences([*samples, forged], model, params, work)
    assert (difference.prompt, difference.token) == (1, 3)
    assert not difference.near_tie and "NOT a near-tie" in str(difference)


def test_a_plain_token_scores_best_under_its_own_noise(plain):
    """The score by which near-ties are told is the one that decoding maximises."""
    model, params, work, samples = plain
    tokens = samples[1].run.tokens
    gaps = []
    for other in range(tiny_zoo.VOCABULARY):
        forged = tokens.copy()
        forged[0, 2] = other
        found = differences(
            [samples[1], Sample("forged", 1, 0, 0, Run(1.0, forged))], model, params, work
        )
        gaps += [difference.gap for difference in found]
        if len(gaps) == 8:
            break
    assert min(gaps) > 0


def test_prompts_must_fill_their_batches():
    with pytest.raises(ValueError, match="batch=2: it must divide the number of prompts, 3"):
        workload([[1], [2], [3]], batch=2, tokens=2, context=64, seed=0)


def test_bench_prints_one_object_with_everything(models, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)
    monkeypatch.setattr(peers, "THREADS", (1,))
    code = main(
        "bench --drafts zoo:wide --trees comb:2x2 --lookups --temperatures 0 1 --prompts 1 "
        "--prompt-length 16 --max-new-tokens 12 --repetitions 1 --json --breakdown "
        "--against-transformers".split()
    )
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert code == 0 and out.count("\n") == 1 and "compiling zoo:wide comb:2x2" in err
    ours = [PLAIN, "zoo:wide comb:2x2"]
    theirs = [peers.label(peers.PLAIN, 1), peers.label(f"{peers.ASSISTED} zoo:wide", 1)]
    assert [row["method"] for row in record["results"]] == [*ours, *theirs] * 2
    assert all(row["identical"] for row in record["results"] if row["method"] in ours)
    assert record["results"][2]["acceptance_length"] == 1  # transformers, one pass a token
    assert {ratio["temperature"] for ratio in record["against_transformers"]} == {0, 1}
    assert record["against_transformers"][0].keys() >= {"plain_over_generate"}
    assert len(record["breakdown"]) == 2
    assert all(part["round_ms"] > 0 and part["overhead"] < 1 for part in record["breakdown"])
    assert all(0 < part["draft_ms"] < part["round_ms"] for part in record["breakdown"])
    assert set(record["compile_seconds"]) == set(ours)
    assert record["setting"]["batch"] == 1


@pytest.mark.slow
def test_bench_runs_each_rule_with_the_trees_that_it_is_exact_for(models, capsys, monkeypatch):
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)
    code = main(
        "bench --drafts zoo:wide --trees chain:1 2x2 --lookups --rules token_level "
        "--temperatures 0 1 --prompts 2 --prompt-length 8 --max-new-tokens 6 --repetitions 1 "
        "--json --queue --scores".split()
    )
    record = json.loads(capsys.readouterr().out)
    rows = {(row["method"], row["temperature"]): row for row in record["results"]}
    wide = "zoo:wide chain:1 token_level"
    assert code == 0
    assert {method for method, _ in rows} == {PLAIN, wide}
    assert [rows[wide, t]["identical"] for t in (0, 1)] == [True, None]
    assert rows[PLAIN, 1]["acceptance_rate"] is None
    assert 0 <= rows[wide, 1]["acceptance_rate"] <= 1
    assert [queue["method"] for queue in record["queue"]] == [wide, wide]
    assert all(queue["prompts"] == 2 and queue["utilisation"] > 0 for queue in record["queue"])
    cold, hot = record["scores"]
    assert (cold["draft"], cold["temperature"], hot["temperature"]) == ("zoo:wide", 0, 1)
    assert hot["fitted"] >= hot["coupled"] - 1e-4 and hot["by_draft"] < 0
    words = "--rules token_level --trees 2 --lookups --prompt-length 8 --max-new-tokens 6".split()
    assert main(["bench", *words]) == 2
    assert "rule='token_level' verifies a chain" in capsys.readouterr().err


def test_the_best_number_of_threads_is_shown():
    samples = [
        sample(PLAIN, 0, 1.0, [1, 2]),
        sample("tree", 0, 0.5, [1, 2]),
        sample(peers.label(peers.PLAIN, 1), 0, 4.0, [1, 2]),
        sample(peers.label(peers.PLAIN, 2), 0, 2.0, [1, 2]),
        sample(peers.label(peers.ASSISTED + " a", 1), 0, 1.0, [1, 2]),
    ]
    report = Report(
        summarise(samples, coupled=[PLAIN, "tree"]), [], [], [], [], {PLAIN: 0, "tree": 0}, {}
    )
    (ratio,) = report.record()["against_transformers"]
    assert ratio["plain_over_generate"] == 2.0
    assert ratio["speculative_over_assisted"] == 2.0
    console = Console(width=120, record=True, quiet=True)
    console.print(method_table(report.shown(), "title", spread=True))
    assert len(report.shown()) == 4


def test_bench_refuses_bad_input_in_one_line(models, capsys, monkeypatch):
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)
    for arguments, said in {
        ("--repetitions", "0"): "repetitions=0: must be at least 1",
        ("--temperatures", "0", "-1"): "temperature=-1.0",
        (
            "--prompts",
            "3",
            "--batch-size",
            "2",
            "--prompt-length",
            "8",
            "--max-new-tokens",
            "8",
        ): "batch=2",
        ("--drafts", "zoo:tiny"): "zoo:tiny is not in the zoo",
        ("--trees", "chain:2", "chain:2"): "trees=chain:2 chain:2 names one twice",
        ("--prompts", "100000"): "prompts=100000: the documents hold",
        ("--trees", "x", "--prompt-length", "8", "--max-new-tokens", "8"): "tree='x'",
        (
            "--stop-drafting",
            "x:1",
            "--prompt-length",
            "8",
            "--max-new-tokens",
            "8",
        ): "stop_drafting='x:1': no stop, and",
        (
            "--stop-drafting",
            "margin:0",
            "margin:0",
        ): "stop_drafting=margin:0 margin:0 names one twice",
        ("--stop-drafting", "margin:0.3", "--breakdown"): "breakdown: rounds that stop early",
        (
            "--stop-drafting",
            "margin:0.3",
            "--trees",
            "dynamic:2x2x4",
            "--prompt-length",
            "8",
            "--max-new-tokens",
            "8",
        ): "stop_drafting=margin:0.3: drafts stop early along static trees",
    }.items():
        assert main(["bench", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err
