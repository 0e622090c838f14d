"""The temperature study: what it measures is what it says, and what it says is what it measured."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_zoo

from jspec import zoo
from jspec.cli.main import main
from jspec.distill.losses import coupled_rejection
from jspec.formats.huggingface import load
from jspec.studies import node
from jspec.studies.findings import findings
from jspec.studies.gauge import NODE_RULES, OVERLAP, PER_ROUND, at_node, decoded, methods
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import TemperatureStudy
from jspec.studies.records import Record, Records, mean
from jspec.studies.temperature import PER_SECOND, SPEEDUP, UNTAUGHT
from jspec.verify import coupled, one_sample, without_replacement
from jspec.zoo import lessons

DRAWS = 20_000
STUDY = (
    "taught=0 1 0.5,1.5",
    "served=0 1 1.5",
    "drawn=1 1.5",
    "seeds=2",
    "prompts=2",
    "prompt=4",
    "tokens=8",
    "timed=1",
    "repetitions=1",
    "tree=chain:2",
    "elsewhere.held_out=0.5",
    "teaching.steps=2",
    "teaching.batch=2",
    "teaching.length=16",
    "teaching.prompts=2",
    "teaching.tokens=4",
    "teaching.tree=chain:2",
    "teaching.answers.count=3",
    "teaching.answers.batch=3",
    "teaching.answers.prompt=4",
    "teaching.answers.tokens=12",
)


def laws(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64))
    return weights / weights.sum()


@pytest.fixture(scope="module")
def pair() -> np.ndarray:
    """Logits `[V]` of a target and a draft."""
    return 1.5 * np.random.default_rng(3).normal(size=(2, 9)).astype(np.float32)


def share(pair: np.ndarray, rule: object, width: int, temperature: float = 1.0) -> float:
    """How often a rule keeps one of `width` candidates."""
    p, q = (jnp.broadcast_to(x, (DRAWS, x.size)) for x in pair)
    keys = jax.random.split(jax.random.key(width), DRAWS)
    one = jax.jit(node.one_node, static_argnames=("rule", "width"))
    return float(one(keys, p, q, temperature, rule=rule, width=width).mean())


@pytest.mark.parametrize("width", [1, 3])
def test_a_chosen_candidate_is_kept_as_often_as_the_target_writes_it(pair, width):
    best = np.argsort(-pair[1])[:width]
    # 20,000 draws: a standard error of at most 0.0036.
    assert share(pair, one_sample, width) == pytest.approx(laws(pair[0])[best].sum(), abs=0.015)


def test_one_drawn_candidate_is_kept_by_the_overlap_of_the_laws(pair):
    overlap = np.minimum(*map(laws, pair)).sum()
    assert share(pair, without_replacement, 1) == pytest.approx(overlap, abs=0.015)


def test_one_coupled_candidate_is_kept_as_the_race_of_the_laws_says(pair):
    kept = 1 - float(coupled_rejection(*jnp.asarray(pair)))
    assert share(pair, coupled, 1) == pytest.approx(kept, abs=0.015)


@pytest.mark.parametrize("rule", NODE_RULES)
def test_greedy_laws_keep_the_targets_best_where_the_draft_has_it(pair, rule):
    place = int(np.flatnonzero(np.argsort(-pair[1]) == pair[0].argmax())[0])
    for width in (place, place + 1):
        if width:
            assert share(pair, NODE_RULES[rule], width, temperature=0.0) == (width > place)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tiny_zoo.write(tmp_path_factory.mktemp("zoo"))


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "drawn"), [(0.0, 1.0), (0.7, 0.7), (0.7, 1.3)])
def test_the_overlap_is_that_of_both_models_on_the_targets_text(models, temperature, drawn):
    target, draft = load(models / "target"), load(models / "wide")
    texts = np.random.default_rng(0).integers(1, tiny_zoo.VOCABULARY, (2, 7)).astype(np.int32)
    told = node.script(target.params, texts, model=target.model, prompt=3, temperature=temperature)
    overlap, _ = node.kept(
        target.params,
        draft.params,
        told,
        jax.random.split(jax.random.key(0), 2),
        drawn,
        target=target.model,
        draft=draft.model,
        rules=(coupled,),
        width=2,
    )
    rows = []
    for text in texts:
        for place in range(3, 7):  # of the tokens that were written
            found = []
            for one, hot in ((target, temperature), (draft, drawn)):
                before = jnp.asarray(text[None, :place])
                mask = jnp.tril(jnp.ones((place, place), bool))
                hidden = one.model.forward(
                    one.params, before, jnp.arange(place)[None], mask
                ).hidden[:, -1]
                logits = np.asarray(one.model.logits(one.params, hidden))[0]
                greedy = np.eye(len(logits))[logits.argmax()]
                found.append(laws(logits / hot) if temperature else greedy)
            rows.append(np.minimum(*found).sum())
    assert float(overlap) == pytest.approx(np.mean(rows), abs=1e-5)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [
        abs(found.value - 2) <= found.half for found in map(mean, rng.normal(2, 1, (4000, 3)))
    ]
    # 4,000 intervals: a standard error of 0.0034.
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def record(draft: str, seed: int, served: float, measure: str, value: float, **more) -> Record:
    return Record(
        draft=draft, seed=seed, domain=more.pop("domain", HOME), served=served, measure=measure,
        value=value, **more,
    )  # fmt: skip


def test_a_difference_is_taken_seed_by_seed():
    # The seeds differ by much more than the two drafts do.
    values = {"1": (0.2, 0.5, 0.9), "0": (0.1, 0.4, 0.8)}
    records = Records(
        record(draft, seed, 1.0, OVERLAP, value)
        for draft, row in values.items()
        for seed, value in enumerate(row)
    )
    found = records.difference(("1", HOME, 1.0, OVERLAP), ("0", HOME, 1.0, OVERLAP))
    assert found.value == pytest.approx(0.1) and found.half < 1e-9 and found.sign == 1


@pytest.mark.parametrize("better", [1, -1])
def test_what_is_found_is_what_the_numbers_are(better):
    kinds = ("0.0", "1", "1.50") if better == 1 else ("0", "1", "1.5")
    recipe = TemperatureStudy(taught=kinds, served=(0.0, 1.0, 1.5), drawn=(0.5, 1.0))
    rng = np.random.default_rng(0)

    def made():
        for domain in (HOME, AWAY):
            for served in recipe.served:
                for draft in (UNTAUGHT, *recipe.taught):
                    for seed in range(recipe.seeds if draft != UNTAUGHT else 1):
                        near = 0.0 if draft == UNTAUGHT else 2 - abs(float(draft) - served)
                        value = 0.5 + better * 0.1 * near + 1e-3 * rng.normal()
                        for measure in (OVERLAP, PER_ROUND, *map(at_node, NODE_RULES)):
                            yield record(draft, seed, served, measure, value, domain=domain)
                        for drawn in recipe.drawn:
                            off = value - abs(drawn - 0.5)
                            yield record(draft, seed, served, OVERLAP, off, drawn=drawn)

    found = findings(recipe, Records(made()))
    taught = [duel for duel in found.duels if duel.other != UNTAUGHT]
    # Each of three matched drafts against those of 1 and 0, where it is not that one itself.
    assert len(taught) == 4 * 2 * 2 and all(duel.difference.sign == better for duel in taught)
    assert {(c.untaught_drawn, c.reference_drawn) for c in found.controls} == {(0.5, 0.5)}


def test_all_drafts_are_taught_alike_but_for_seed_and_temperature():
    recipe = TemperatureStudy()
    runs = [run for _, _, run in recipe.runs()]
    assert len(runs) == len(recipe.taught) * recipe.seeds
    assert len({(run.answers.temperature, run.seed) for run in runs}) == len(runs)
    alike = [
        dataclasses.replace(
            run, name="one", seed=0, answers=dataclasses.replace(run.answers, temperature="1")
        )
        for run in runs
    ]
    assert all(one == other for one, other in pairwise(alike))


@pytest.fixture
def study(models, monkeypatch, tmp_path, capsys):
    """Runs a small one; its exit code, and what it said."""
    monkeypatch.setattr(zoo, "MODELS", models)
    for name in ("training_documents", "held_out_documents", "out_of_domain_documents"):
        monkeypatch.setattr(lessons, name, lambda: [tiny_zoo.TEXT * 3] * 4)

    def run(*changes: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(("study", "--json", "temperature", f"output={tmp_path}", *STUDY, *changes))
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_the_study_fills_every_cell_once_and_goes_on_where_it_stopped(study, tmp_path):
    code, out, err = study("name=s")
    assert code == 0, err
    folder = tmp_path / "s"
    assert json.loads(out)["folder"] == str(folder)
    written = json.loads((folder / "results.json").read_text())
    records = Records(Record(**one) for one in written["records"])
    assert len(records.all) == len(set(dataclasses.replace(r, value=0) for r in records.all))
    for served in (0.0, 1.0, 1.5):
        for draft in (UNTAUGHT, "0", "1", "0.5,1.5"):
            for domain in (HOME, AWAY):
                for measure in (OVERLAP, PER_ROUND, *map(at_node, NODE_RULES)):
                    found = records.by_seed(draft, domain, served, measure)
                    assert len(found) == (1 if draft == UNTAUGHT else 2)
                    most = 3 if measure == PER_ROUND else 1
                    assert all(0 <= value <= most for value in found.values())
            for measure in (PER_SECOND, SPEEDUP):
                assert records.mean(draft, HOME, served, measure).value > 0
        for draft in (UNTAUGHT, "1"):
            for name in methods(4):
                assert 1 <= records.mean(draft, HOME, served, decoded(name)).value <= 5
    # Every seed has prompts and answers of its own.
    told = [(folder / "1" / str(n) / "answers" / "part-00000.jsonl").read_text() for n in (0, 1)]
    prompts = [sorted(json.loads(line)["prompt"] for line in text.splitlines()) for text in told]
    assert prompts[0] != prompts[1]
    # A draft that is sampled at what it is served at is not sampled otherwise.
    for measure in (OVERLAP, *map(at_node, NODE_RULES)):
        for draft in (UNTAUGHT, "1"):
            for hot in (1.0, 1.5):
                as_served = records.by_seed(draft, HOME, hot, measure)
                assert records.by_seed(draft, HOME, hot, measure, hot) == as_served
    report = (folder / "report.md").read_text()
    figures = sorted(file.name for file in folder.glob("*.png"))
    assert len(figures) == 5 and all(f"]({name})" in report for name in figures)
    assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in figures)

    # What was measured is not measured again: a number that was changed on disk comes back.
    file = folder / "records" / "1 1.json"
    kept = json.loads(file.read_text())
    kept["records"][0]["value"] = 0.123
    file.write_text(json.dumps(kept))
    code, _, err = study("name=s")
    assert code == 0 and "compiling" not in err.split("timing")[0], err
    again = json.loads((folder / "results.json").read_text())["records"]
    assert 0.123 in [one["value"] for one in again]

    file.write_text('{"records": [{"draft": "1"}]}')
    code, _, err = study("name=s")
    assert code == 2 and "does not hold a study's records" in err.splitlines()[-1]

    code, out, err = study("name=s", "teaching.steps=3")
    assert code == 2 and out == ""
    assert "another study (teaching.steps=3 where it has 2)" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seeds=1", "seeds=1: an interval needs at least 2"),
        ("taught=1 1", "give at least one value, and each once"),
        ("taught=0 2", "reference='1' is not in taught"),
        ("taught=1 hot", "taught='hot': write a number"),
        ("served=-1", "served=-1.0: must be 0 or a positive number"),
        ("served=warm", "served='warm' must be of type float"),
        ("drawn=0", "drawn=0.0: must be a positive number"),
        ("width=1", "width=1: a node has at least 2 candidates"),
        ("taught=1 1.0", "names one temperature twice"),
        ("name=../x", "name='../x': it names a folder below output"),
        ("width=5000", "width=5000: the target has 320 tokens"),
        ("teaching.loss_temperature=2", "teaching.loss_temperature: the study sets it"),
        ("elsewhere.source=zoo:corpus", "elsewhere.source='zoo:corpus': of the zoo"),
        ("prompts=0", "prompts=0: must be at least 1"),
        ("teaching.batc=3", "teaching.batc is no field: there are teaching.name"),
        ("elsewhere.source=none.jsonl", "elsewhere.source='none.jsonl'"),
        ("tree=9x9x9x9x9", "tree="),
        ("teaching.length=9999", "length=9999 is longer than the context"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_in_a_line(study, change, said):
    code, out, err = study(change)
    complaint = err.splitlines()[-1]
    assert code == 2 and out == "" and complaint.startswith("jspec: ") and said in complaint, err


def test_a_config_of_another_kind_is_refused(study, tmp_path):
    file = tmp_path / "config.py"
    file.write_text("def config():\n    return 3\n")
    code, _, err = study(str(file))
    assert code == 2 and "has no `def config() -> TemperatureStudy`" in err.splitlines()[-1]
