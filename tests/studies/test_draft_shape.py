"""The draft-shape study: what it says is what was measured, beside what was predicted."""

import functools
import itertools
import json

import numpy as np
import pytest
import tiny_zoo

from jspec.core.tree import Tree
from jspec.plan.forecast import predict
from jspec.studies.common.records import Measure, Record, Records
from jspec.studies.draft_shape.measure import Measurement, chain
from jspec.studies.draft_shape.recipe import DraftShapeStudy, folder_of
from jspec.studies.draft_shape.report import DraftShapeReport, Place
from jspec.tuning.acceptance import from_counts
from jspec.tuning.costs import split_costs

RECIPE = DraftShapeStudy(temperatures=(0.0,), batches=(1,), depths=(2, 4))
CONFIG = tiny_zoo.config(num_hidden_layers=2, max_position_embeddings=512)
# Over plain decoding at either depth, the latency and the loss of each draft.
DRAFTS = {
    "1x224": ((1.2, 1.5), 0.1, 3.2),
    "1x224a112": ((1.6, 1.1), 0.05, 3.0),
    "2x192": ((1.25, 1.0), 0.2, 2.9),
    "8x128": ((0.5, 0.4), 0.6, 3.1),
}
PLAIN = 100.0
WORDS = "layers={},width=16,heads=2,num_key_value_heads=1,channels={},feedforward={}"
TINY = (
    "draft-shape", f"one={WORDS.format(1, 8, 16)}", f"deeper={WORDS.format(2, 8, 16)}", "wider=",
    "larger=", f"designed={WORDS.format(1, 16, 8)}", "depths=2", "probes=1 3", "batches=1 2",
    "temperatures=0", "training.warmup_steps=1", "training.chunk_size=8", "training.tree=chain:2",
)  # fmt: skip


def measured(off: float = 0.0, meant: tuple[int, ...] = RECIPE.depths) -> Records:
    """Records of `DRAFTS`, each predicted to be so much faster than it was, and what was of a depth
    predicted of the one in its place in `meant`."""
    found = []
    for draft, (speeds, latency, loss) in DRAFTS.items():
        here = functools.partial(Record, draft=draft, target="zoo:target")
        there = functools.partial(here, temperature=0.0, batch=1, group=draft)
        found += [
            here(measure=Measure.PARAMETERS, value=7.0),
            here(measure=Measure.CROSS_ENTROPY, value=loss),
            here(measure=Measure.ACCEPTED_BY_POSITION, value=0.5, temperature=0.0, position=1),
            there(measure=Measure.DRAFT_MS_PER_TOKEN, value=latency),
            there(measure=Measure.TOKENS_PER_SECOND, value=PLAIN, draft="plain"),
        ]
        for depth, other, over in zip(RECIPE.depths, meant, speeds, strict=True):
            for name, of, value in (
                (Measure.SPEEDUP, depth, over),
                (Measure.TOKENS_PER_SECOND, depth, over * PLAIN),
                (Measure.PREDICTED_TOKENS_PER_SECOND, other, over * PLAIN * (1 + off)),
                (Measure.PREDICTED_SPEEDUP, other, over * (1 + off)),
            ):
                found.append(there(measure=name, value=value, **chain(of)))
    return Records(found)


def found_in(records: Records) -> tuple[DraftShapeReport, Place]:
    """The report, and the one place of it."""
    report = DraftShapeReport(RECIPE, records)
    (place,) = report.rankings
    return report, place


def test_every_draft_stands_at_its_own_best_depth():
    report, place = found_in(measured())
    found = report.rankings[place]
    assert [one["draft"] for one in found] == ["1x224a112", "1x224", "2x192", "8x128"]
    assert [one["depth"] for one in found] == [2, 4, 2, 2]
    assert [one["tokens_per_second"] for one in found] == pytest.approx([160, 150, 125, 50])


def test_what_goes_with_speed_is_told_apart_from_what_does_not():
    report, _ = found_in(measured())
    found = {one["what"]: one for one in report.correlations}
    latency = found["latency"]
    assert latency["spearman"] == latency["kendall"] == pytest.approx(-1)
    # By losses the drafts are in no order of speed; all are kept as often and as large.
    assert found["language-model loss"]["kendall"] == pytest.approx(0)
    assert found["acceptance"]["spearman"] == found["parameters"]["kendall"] == 0


def test_the_designed_draft_is_held_against_the_best_of_more_layers():
    report, place = found_in(measured())
    designed, ordinary = report.contest(place)
    assert (designed["draft"], ordinary["draft"]) == ("1x224a112", "2x192")
    assert designed["speedup"] / ordinary["speedup"] == pytest.approx(1.6 / 1.25)
    assert any(": of equal parameters" in line and "+28%" in line for line in report.answers())


@pytest.mark.parametrize("off", [0.0, 0.3, -0.2])
def test_how_far_off_it_was_is_what_is_measured(off):
    found = found_in(measured(off))[0].predictions
    assert found["median_error"] == pytest.approx(abs(off))
    assert len(found["errors"]) == 2 * len(DRAFTS)
    for taus in (found["drafts"], found["chains"]):
        assert list(taus.values()) == pytest.approx([1.0])


def test_the_order_of_chains_is_not_that_of_drafts_at_their_best():
    """Depths that are taken for one another leave each draft's best unchanged."""
    found = found_in(measured(meant=RECIPE.depths[::-1]))[0].predictions
    assert list(found["drafts"].values()) == pytest.approx([1.0])
    were = [x for (speeds, *_) in DRAFTS.values() for x in speeds]
    said = [x for (speeds, *_) in DRAFTS.values() for x in speeds[::-1]]
    pairs = list(itertools.combinations(zip(said, were, strict=True), 2))
    agree = sum((one[0] > two[0]) == (one[1] > two[1]) for one, two in pairs)
    expected = 2 * agree / len(pairs) - 1
    assert list(found["chains"].values()) == pytest.approx([expected]) and expected < 0.8


def test_a_machine_of_known_costs_is_predicted():
    """Rounds along chains that were not timed, on a machine whose clock is off by 3%, of drafts
    whose draft tokens were accepted in 300 rounds: so well a real one is to be predicted too."""
    rng, errors, order = np.random.default_rng(5), [], []
    probes, depths = [Tree.chain(depth) for depth in (1, 3, 7)], (2, 4, 6)
    for rate, level in itertools.product((0.4, 0.6, 0.8), (0.02, 0.1, 0.3)):
        drafting = np.array([level * (probe.depth + 0.5) for probe in probes])
        whole = np.array([1.0 + 0.08 * probe.size for probe in probes]) + drafting
        noise = rng.normal(1, 0.03, (2, len(probes)))
        spent = split_costs(probes, whole * noise[0], drafting * noise[1], plain=1.0)
        kept = [300]
        for _ in range(7):
            kept.append(rng.binomial(kept[-1], rate))
        seen = from_counts(np.array(kept)[None, :, None], "counted")
        predicted, was = (
            {
                depth: (1 - rate ** (depth + 1)) / (1 - rate) / (1.0 + 0.08 * (depth + 1) + took)
                if spent_on is None
                else predict(Tree.chain(depth), seen, spent_on).speedup
                for depth, took in ((d, level * (d + 0.5)) for d in depths)
            }
            for spent_on in (spent, None)
        )
        errors += [predicted[depth] / was[depth] - 1 for depth in depths]
        order.append((max(predicted.values()), max(was.values())))
    assert np.median(np.abs(errors)) < 0.1
    from scipy.stats import kendalltau

    assert kendalltau(*zip(*order, strict=True))[0] > 0.8


def test_shapes_of_equal_parameters_are_trained_alike():
    from jspec.plan.sizes import parameters_of

    config = tiny_zoo.config(vocab_size=4096, max_position_embeddings=512, tie_word_embeddings=True)
    recipe = DraftShapeStudy(targets=("zoo:target", "other"))
    first, second = (recipe.shapes(name, config) for name in recipe.targets)
    assert len({one.name for one in first}) == len(first) == 11
    # Equal to a hundredth: one layer, more of them, and those whose attention differs.
    equal = [parameters_of(one.config) for one in (*first[:4], *first[-2:])]
    assert max(equal) < 1.02 * min(equal)
    assert second == first[:4]
    runs_of = [recipe.training_run("zoo:target", one) for one in first]
    assert len({(run.seed, run.steps, run.batch_size, run.sequence_length) for run in runs_of}) == 1
    experiments = (len(first) + len(second)) * len(recipe.temperatures) * len(recipe.batches)
    assert experiments * len(recipe.depths) >= 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probes": (1, 2)}, r"^probes=\(1, 2\): at least two, and none of depths"),
        ({"batches": (3,)}, "^batches=3: it must divide prompts=8"),
        ({"depths": (0,)}, r"^depths=\(0,\): each is at least 1"),
        ({"targets": ()}, "^targets="),
        ({"one": "layers=1,width=96"}, "^draft='layers=1,width=96': drafts of all targets are to"),
    ],
)
def test_a_study_that_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        DraftShapeStudy(**change)


@pytest.mark.slow
def test_the_study_trains_measures_and_resumes(train_study, monkeypatch, tmp_path):
    code, out, err = train_study(*TINY)
    assert code == 0, err
    said = json.loads(out)
    folder = tmp_path / "draft_shape"
    results = json.loads((folder / "results.json").read_text())
    assert results["findings"] == said["findings"]
    records = Records(Record(**one) for one in results["records"])
    for draft, batch in itertools.product(("1x16", "2x16", "1x16a32"), (1, 2)):
        here = {"draft": draft, "batch": batch, "temperature": 0.0}
        for name in (
            Measure.SPEEDUP,
            Measure.TOKENS_PER_SECOND,
            Measure.ACCEPTANCE_LENGTH,
            Measure.PREDICTED_TOKENS_PER_SECOND,
            Measure.PREDICTED_SPEEDUP,
        ):
            assert records.value(name, **here, **chain(2)) > 0
        assert records.value(Measure.DRAFT_MS_PER_TOKEN, **here) >= 0
    for file in ("report.md", "shapes_0.png"):
        assert (folder / file).stat().st_size > 500
    monkeypatch.setattr(Measurement, "of", lambda *_: pytest.fail("measured again"))
    code, out, err = train_study(*TINY)
    assert code == 0 and json.loads(out)["findings"] == said["findings"], err


def test_targets_have_folders_of_their_own():
    names = ["zoo:target", "runs/zoo_slim/model", "/a/b"]
    assert [folder_of(name) for name in names] == ["zoo_target", "runs_zoo_slim_model", "a_b"]
