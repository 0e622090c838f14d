"""The draft-shape study: what it says is what was measured, beside what was foretold."""

import itertools
import json

import numpy as np
import pytest
import tiny_zoo

from jspec import zoo
from jspec.cli.main import main
from jspec.core.tree import Tree
from jspec.plan.acceptance import counted
from jspec.plan.gain import predict
from jspec.plan.measured import taken_apart
from jspec.studies import draft_shape as study_of_shapes
from jspec.studies.records import Record, Records
from jspec.studies.shape_findings import contest, foretelling, places, relations, standings
from jspec.studies.shape_gauge import (
    FORETOLD,
    FORETOLD_OVER,
    KEPT,
    LATENCY,
    LOSS,
    OVER,
    PER_ROUND,
    PER_SECOND,
    SIZE,
    at,
    in_batch,
)
from jspec.studies.shape_recipe import DraftShapeStudy, folder_of
from jspec.zoo import lessons

RECIPE = DraftShapeStudy(served=(0.0,), batches=(1,), depths=(2, 4))
CONFIG = tiny_zoo.config(layers=2, context=512)
# Over plain decoding at either depth, the latency and the loss of each draft.
DRAFTS = {
    "1x224": ((1.2, 1.5), 0.1, 3.2),
    "1x224a112": ((1.6, 1.1), 0.05, 3.0),
    "2x192": ((1.25, 1.0), 0.2, 2.9),
    "8x128": ((0.5, 0.4), 0.6, 3.1),
}
PLAIN = 100.0
WORDS = "layers={},width=16,heads=2,kv_heads=1,channels={},feedforward={}"
TINY = (
    f"one={WORDS.format(1, 8, 16)}", f"deeper={WORDS.format(2, 8, 16)}", "wider=", "larger=",
    f"designed={WORDS.format(1, 16, 8)}", "depths=2", "probes=1 3", "batches=1 2", "prompts=2",
    "prompt=4", "tokens=8", "repetitions=1", "served=0", "teaching.steps=2", "teaching.warmup=1",
    "teaching.batch=2", "teaching.length=16", "teaching.chunk=8", "teaching.prompts=2",
    "teaching.tokens=8", "teaching.tree=chain:2", "teaching.answers.count=3",
    "teaching.answers.batch=3", "teaching.answers.prompt=4", "teaching.answers.tokens=12",
)  # fmt: skip


def told(off: float = 0.0, meant: tuple[int, ...] = RECIPE.depths) -> Records:
    """Records of `DRAFTS`, each foretold to be so much faster than it was, and what was of a depth
    foretold of the one in its place in `meant`."""
    found = []

    def say(draft: str, measure: str, value: float) -> None:
        found.append(
            Record(
                draft=draft, seed=0, domain="zoo:target", served=0.0, measure=measure, value=value
            )
        )

    for draft, (speeds, latency, loss) in DRAFTS.items():
        for measure, value in (
            (SIZE, 7.0), (LOSS, loss), (KEPT, 0.5),
            (in_batch(LATENCY, 1), latency), (in_batch("plain", 1), PLAIN),
        ):  # fmt: skip
            say(draft, measure, value)
        for depth, other, over in zip(RECIPE.depths, meant, speeds, strict=True):
            for measure, of, value in (
                (OVER, depth, over),
                (PER_SECOND, depth, over * PLAIN),
                (FORETOLD, other, over * PLAIN * (1 + off)),
                (FORETOLD_OVER, other, over * (1 + off)),
            ):
                say(draft, at(measure, of, 1), value)
    return Records(found)


def test_every_draft_stands_at_its_own_best_depth():
    (place,) = places(RECIPE, told())
    found = standings(RECIPE, told(), place)
    assert [one.draft for one in found] == ["1x224a112", "1x224", "2x192", "8x128"]
    assert [one.depth for one in found] == [2, 4, 2, 2]
    assert [one.per_second for one in found] == pytest.approx([160, 150, 125, 50])


def test_what_goes_with_speed_is_told_from_what_does_not():
    (place,) = places(RECIPE, told())
    found = {one.what: one for one in relations(standings(RECIPE, told(), place))}
    assert found["latency"].spearman == found["latency"].kendall == pytest.approx(-1)
    # By losses the drafts are in no order of speed; all are kept as often and as large.
    assert found["language-model loss"].kendall == pytest.approx(0)
    assert found["acceptance"].spearman == found["parameters"].kendall == 0


def test_the_designed_draft_is_held_against_the_best_of_more_layers():
    (place,) = places(RECIPE, told())
    one = contest(RECIPE, standings(RECIPE, told(), place))
    assert (one.designed.draft, one.ordinary.draft) == ("1x224a112", "2x192")
    assert one.gain == pytest.approx(1.6 / 1.25 - 1)


@pytest.mark.parametrize("off", [0.0, 0.3, -0.2])
def test_how_far_off_it_was_is_what_is_told(off):
    found = foretelling(RECIPE, told(off))
    assert found.median == pytest.approx(abs(off)) and len(found.errors) == 2 * len(DRAFTS)
    for taus in (found.order, found.chains):
        assert list(taus.values()) == pytest.approx([1.0])


def test_the_order_of_chains_is_not_that_of_drafts_at_their_best():
    """Depths that are taken for one another leave each draft's best as it was."""
    found = foretelling(RECIPE, told(meant=RECIPE.depths[::-1]))
    assert list(found.order.values()) == pytest.approx([1.0])
    were = [x for (speeds, *_) in DRAFTS.values() for x in speeds]
    said = [x for (speeds, *_) in DRAFTS.values() for x in speeds[::-1]]
    pairs = list(itertools.combinations(zip(said, were, strict=True), 2))
    agree = sum((one[0] > two[0]) == (one[1] > two[1]) for one, two in pairs)
    expected = 2 * agree / len(pairs) - 1
    assert list(found.chains.values()) == pytest.approx([expected]) and expected < 0.8


def test_a_machine_of_known_costs_is_foretold():
    """Rounds along chains that were not timed, on a machine whose clock is off by 3%, of drafts
    whose guesses were kept in 300 rounds: the law that the study holds a real machine against."""
    rng, errors, order = np.random.default_rng(5), [], []
    probes, depths = [Tree.chain(depth) for depth in (1, 3, 7)], (2, 4, 6)
    for rate, level in itertools.product((0.4, 0.6, 0.8), (0.02, 0.1, 0.3)):
        guesses = np.array([level * (probe.depth + 0.5) for probe in probes])
        whole = np.array([1.0 + 0.08 * probe.size for probe in probes]) + guesses
        noise = rng.normal(1, 0.03, (2, len(probes)))
        spent = taken_apart(probes, whole * noise[0], guesses * noise[1], plain=1.0)
        kept = [300]
        for _ in range(7):
            kept.append(rng.binomial(kept[-1], rate))
        seen = counted(np.array(kept)[None, :, None], "counted")
        foretold, was = (
            {
                depth: (1 - rate ** (depth + 1)) / (1 - rate) / (1.0 + 0.08 * (depth + 1) + took)
                if spent_on is None
                else predict(Tree.chain(depth), seen, spent_on).speedup
                for depth, took in ((d, level * (d + 0.5)) for d in depths)
            }
            for spent_on in (spent, None)
        )
        errors += [foretold[depth] / was[depth] - 1 for depth in depths]
        order.append((max(foretold.values()), max(was.values())))
    assert np.median(np.abs(errors)) < 0.1
    from scipy.stats import kendalltau

    assert kendalltau(*zip(*order, strict=True)).statistic > 0.8


def test_pupils_of_equal_parameters_are_taught_alike():
    from jspec.plan.sizes import parameters_of

    config = tiny_zoo.config(vocabulary=4096, context=512, tied=True)
    recipe = DraftShapeStudy(targets=("zoo:target", "other"))
    first, second = (recipe.pupils(name, config) for name in recipe.targets)
    assert len({one.name for one in first}) == len(first) == 11
    # Equal to a hundredth: one layer, more of them, and those whose attention differs.
    equal = [parameters_of(one.config) for one in (*first[:4], *first[-2:])]
    assert max(equal) < 1.02 * min(equal)
    assert second == first[:4]
    lesson = [recipe.taught_as("zoo:target", one) for one in first]
    assert len({(run.seed, run.steps, run.batch, run.length) for run in lesson}) == 1
    experiments = (len(first) + len(second)) * len(recipe.served) * len(recipe.batches)
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
def test_the_study_teaches_measures_and_goes_on(models, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(zoo, "MODELS", models)
    for name in ("training_documents", "held_out_documents", "out_of_domain_documents"):
        monkeypatch.setattr(lessons, name, lambda: [tiny_zoo.TEXT * 3] * 4)
    words = ["study", "--json", "draft-shape", f"output={tmp_path}", *TINY]
    assert main(words) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    folder = tmp_path / "draft_shape"
    results = json.loads((folder / "results.json").read_text())
    assert results["findings"] == said["findings"]
    numbers = {(one["draft"], one["measure"]) for one in results["records"]}
    for draft, batch in itertools.product(("1x16", "2x16", "1x16a32"), (1, 2)):
        for measure in (OVER, PER_SECOND, PER_ROUND, FORETOLD, FORETOLD_OVER):
            assert (draft, at(measure, 2, batch)) in numbers
        assert (draft, in_batch(LATENCY, batch)) in numbers
    for file in ("report.md", "shapes_0.png"):
        assert (folder / file).stat().st_size > 500
    gauge = study_of_shapes.Gauge
    monkeypatch.setattr(gauge, "records", lambda *_: pytest.fail("measured again"))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == said["findings"]


def test_targets_have_folders_of_their_own():
    names = ["zoo:target", "runs/zoo_slim/model", "/a/b"]
    assert [folder_of(name) for name in names] == ["zoo_target", "runs_zoo_slim_model", "a_b"]
