"""The temperature study: what it measures is what it says, and what it says is what it measured."""

import dataclasses
import functools
import json
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_zoo

from jspec import verify
from jspec.formats.huggingface import load
from jspec.studies.common.measure import DOMAINS, IN_DOMAIN
from jspec.studies.common.records import Measure, Record, Records, mean
from jspec.studies.temperature import measure
from jspec.studies.temperature.measure import NODE_RULES, UNTRAINED, methods
from jspec.studies.temperature.recipe import TemperatureStudy
from jspec.studies.temperature.report import TemperatureReport
from jspec.training.losses import coupled_rejection
from jspec.verify import coupled, one_sample, without_replacement

DRAWS = 20_000
STUDY = (
    "temperature", "train_temperatures=0 1 0.5,1.5", "temperatures=0 1 1.5",
    "draft_temperatures=1 1.5", "seeds=2", "timed_prompts=1", "tree=chain:2",
    "elsewhere.held_out=0.5", "training.max_new_tokens=4", "training.tree=chain:2",
)  # fmt: skip


def probs(logits: np.ndarray) -> np.ndarray:
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
    one = jax.jit(measure.accepted_at_node, static_argnames=("rule", "width"))
    return float(one(keys, p, q, temperature, rule=rule, width=width).mean())


@pytest.mark.parametrize("width", [1, 3])
def test_a_chosen_candidate_is_accepted_as_often_as_the_target_writes_it(pair, width):
    best = np.argsort(-pair[1])[:width]
    # 20,000 draws: a standard error of at most 0.0036.
    assert share(pair, one_sample, width) == pytest.approx(probs(pair[0])[best].sum(), abs=0.015)


def test_one_sampled_candidate_is_accepted_by_the_overlap_of_the_distributions(pair):
    overlap = np.minimum(*map(probs, pair)).sum()
    assert share(pair, without_replacement, 1) == pytest.approx(overlap, abs=0.015)


def test_one_coupled_candidate_is_accepted_as_the_race_of_the_distributions_says(pair):
    accepted = 1 - float(coupled_rejection(*jnp.asarray(pair)))
    assert share(pair, coupled, 1) == pytest.approx(accepted, abs=0.015)


@pytest.mark.parametrize("rule", NODE_RULES)
def test_greedy_distributions_accept_the_targets_best_where_the_draft_has_it(pair, rule):
    place = int(np.flatnonzero(np.argsort(-pair[1]) == pair[0].argmax())[0])
    for width in (place, place + 1):
        if width:
            assert share(pair, verify.get(rule), width, temperature=0.0) == (width > place)


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "own"), [(0.0, 1.0), (0.7, 0.7), (0.7, 1.3)])
def test_the_overlap_is_that_of_both_models_on_the_targets_text(models, temperature, own):
    target, draft = load(models / "target"), load(models / "wide")
    texts = np.random.default_rng(0).integers(1, tiny_zoo.VOCABULARY, (2, 7)).astype(np.int32)
    hidden = tuple(
        measure.hidden_states(one.params, texts, 4, model=one.model) for one in (target, draft)
    )
    overlap, _ = measure.node_acceptance(
        target.params,
        draft.params,
        hidden,
        jax.random.split(jax.random.key(0), 2),
        (temperature, own),
        target=target.model,
        draft=draft.model,
        rules=(coupled,),
        width=2,
    )
    rows = []
    for text in texts:
        for place in range(3, 7):  # of the tokens that were written
            found = []
            for one, hot in ((target, temperature), (draft, own)):
                before = jnp.asarray(text[None, :place])
                mask = jnp.tril(jnp.ones((place, place), bool))
                hidden = one.model.forward(
                    one.params, before, jnp.arange(place)[None], mask
                ).hidden[:, -1]
                logits = np.asarray(one.model.logits(one.params, hidden))[0]
                greedy = np.eye(len(logits))[logits.argmax()]
                found.append(probs(logits / hot) if temperature else greedy)
            rows.append(np.minimum(*found).sum())
    assert float(overlap) == pytest.approx(np.mean(rows), abs=1e-5)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [
        abs(found.value - 2) <= found.half for found in map(mean, rng.normal(2, 1, (4000, 3)))
    ]
    # 4,000 intervals: a standard error of 0.0034.
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def record(draft: str, seed: int, temperature: float, name: Measure, value: float, **more):
    place = {"draft": draft, "seed": seed, "temperature": temperature, "domain": IN_DOMAIN}
    return Record(measure=name, value=value, **{**place, **more})


def test_a_difference_is_taken_seed_by_seed():
    # The seeds differ by much more than the two drafts do.
    values = {"1": (0.2, 0.5, 0.9), "0": (0.1, 0.4, 0.8)}
    records = Records(
        record(draft, seed, 1.0, Measure.OVERLAP, value)
        for draft, row in values.items()
        for seed, value in enumerate(row)
    )
    place = {"domain": IN_DOMAIN, "temperature": 1.0}
    found = records.difference({"draft": "1"}, {"draft": "0"}, measure=Measure.OVERLAP, **place)
    assert found.value == pytest.approx(0.1) and found.half < 1e-9 and found.sign == 1


@pytest.mark.parametrize("better", [1, -1])
def test_what_is_found_is_what_the_numbers_are(better):
    kinds = ("0.0", "1", "1.50") if better == 1 else ("0", "1", "1.5")
    recipe = TemperatureStudy(
        train_temperatures=kinds, temperatures=(0.0, 1.0, 1.5), draft_temperatures=(0.5, 1.0)
    )
    rng = np.random.default_rng(0)

    def made():
        for domain in DOMAINS:
            for t in recipe.temperatures:
                for draft in (UNTRAINED, *recipe.train_temperatures):
                    for seed in range(recipe.seeds if draft != UNTRAINED else 1):
                        near = 0.0 if draft == UNTRAINED else 2 - abs(float(draft) - t)
                        value = 0.5 + better * 0.1 * near + 1e-3 * rng.normal()
                        for name, more in standard(recipe):
                            yield record(draft, seed, t, name, value, domain=domain, **more)
                        for own in recipe.draft_temperatures if domain == IN_DOMAIN else ():
                            off = value - abs(own - 0.5)
                            more = {"draft_temperature": own}
                            yield record(draft, seed, t, Measure.OVERLAP, off, **more)

    found = TemperatureReport(recipe, Records(made()))
    trained = [one for one in found.matched if one.other != UNTRAINED]
    # Each of three matched drafts against those of 1 and 0, where it is not that one itself.
    assert len(trained) == 4 * 2 * 2 and all(one.difference.sign == better for one in trained)
    for control in found.controls:
        own = [control[kind]["draft_temperature"] for kind in ("untrained", "reference")]
        assert own == [0.5, 0.5]


def standard(recipe: TemperatureStudy) -> list[tuple[Measure, dict[str, str]]]:
    """What is measured of every draft in both domains."""
    decoded = {"rule": "coupled", "tree": recipe.tree}
    return [
        (Measure.OVERLAP, {}),
        (Measure.ACCEPTANCE_LENGTH, decoded),
        *((Measure.NODE_ACCEPTANCE, {"rule": rule}) for rule in NODE_RULES),
    ]


def test_all_drafts_are_trained_alike_but_for_seed_and_temperature():
    recipe = TemperatureStudy()
    runs = [run for _, _, run in recipe.runs()]
    assert len(runs) == len(recipe.train_temperatures) * recipe.seeds
    assert len({(run.teacher_data.temperature, run.seed) for run in runs}) == len(runs)
    alike = [
        dataclasses.replace(
            run,
            name="one",
            seed=0,
            teacher_data=dataclasses.replace(run.teacher_data, temperature="1"),
        )
        for run in runs
    ]
    assert all(one == other for one, other in pairwise(alike))


@pytest.fixture
def study(train_study):
    """Runs a small one; its exit code, and what it said."""
    return functools.partial(train_study, *STUDY)


@pytest.mark.slow
def test_the_study_fills_every_cell_once_and_resumes_where_it_stopped(study, tmp_path):
    code, out, err = study("name=s")
    assert code == 0, err
    folder = tmp_path / "s"
    assert json.loads(out)["folder"] == str(folder)
    written = json.loads((folder / "results.json").read_text())
    records = Records(Record(**one) for one in written["records"])
    assert len(records.all) == len(set(dataclasses.replace(r, value=0) for r in records.all))
    check_cells(records)
    # Every seed has prompts and answers of its own.
    told = [
        (folder / "1" / str(n) / "teacher_data" / "part-00000.jsonl").read_text() for n in (0, 1)
    ]
    prompts = [sorted(json.loads(line)["prompt"] for line in text.splitlines()) for text in told]
    assert prompts[0] != prompts[1]
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

    code, out, err = study("name=s", "training.steps=3")
    assert code == 2 and out == ""
    assert "another study (training.steps=3 where it has 2)" in err.splitlines()[-1]


def check_cells(records: Records) -> None:
    """Every draft, domain and temperature is there, as often as there are drafts."""
    recipe = TemperatureStudy(tree="chain:2")
    for t in (0.0, 1.0, 1.5):
        for draft in (UNTRAINED, "0", "1", "0.5,1.5"):
            here = {"draft": draft, "temperature": t}
            for domain in DOMAINS:
                for name, more in standard(recipe):
                    found = records.by_seed(name, domain=domain, **here, **more)
                    assert len(found) == (1 if draft == UNTRAINED else 2)
                    most = 3 if name == Measure.ACCEPTANCE_LENGTH else 1
                    assert all(0 <= value <= most for value in found.values())
            for name in (Measure.TOKENS_PER_SECOND, Measure.SPEEDUP):
                assert records.value(name, domain=IN_DOMAIN, **here) > 0
        for draft in (UNTRAINED, "1"):
            here = {"draft": draft, "temperature": t, "domain": IN_DOMAIN}
            for rule, tree in methods(4).values():
                place = {"rule": rule, "tree": tree, **here}
                assert 1 <= records.value(Measure.ACCEPTANCE_LENGTH, **place) <= 5
            # A draft that is sampled at the target's temperature is not sampled differently.
            for name, more in standard(recipe) if t else ():
                if name != Measure.ACCEPTANCE_LENGTH:
                    own = records.by_seed(name, draft_temperature=t, **here, **more)
                    assert own == records.by_seed(name, **here, **more)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seeds=1", "seeds=1: an interval needs at least 2"),
        ("train_temperatures=1 1", "give at least one value, and each once"),
        ("train_temperatures=0 2", "reference='1' is not in train_temperatures"),
        ("train_temperatures=1 hot", "train_temperatures='hot': write a number"),
        ("temperatures=-1", "temperatures=-1.0: must be 0 or a positive number"),
        ("temperatures=warm", "temperatures='warm' must be of type float"),
        ("draft_temperatures=0", "draft_temperatures=0.0: must be a positive number"),
        ("width=1", "width=1: a node has at least 2 candidates"),
        ("train_temperatures=1 1.0", "names one temperature twice"),
        ("name=../x", "name='../x': it names a folder below output"),
        ("width=5000", "width=5000: the target has 320 tokens"),
        ("training.loss_temperature=2", "training.loss_temperature: the study sets it"),
        ("elsewhere.source=zoo:corpus", "elsewhere.source='zoo:corpus': of the zoo"),
        ("prompts=0", "prompts=0: must be at least 1"),
        ("training.batc=3", "training.batc is not a field: there are training.name"),
        ("elsewhere.source=none.jsonl", "elsewhere.source='none.jsonl'"),
        ("tree=9x9x9x9x9", "tree="),
        ("training.sequence_length=9999", "sequence_length=9999 is longer than the context"),
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
