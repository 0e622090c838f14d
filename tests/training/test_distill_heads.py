"""`jspec distill` of heads, from a recipe to a head that drafts."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_zoo

from jspec.cli.main import main
from jspec.formats import folder as model_folders
from jspec.formats.heads import load_head
from jspec.formats.huggingface import load, save
from jspec.models.transformer import transformer
from jspec.training import run

CONFIG = """
from jspec.training.recipe import Distillation, FeatureHead, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="run", target="zoo:target",
        head=FeatureHead(intermediate_size=8, ttt_steps=2, ttt_decay=0.5),
        output={output!r}, text=Text(source={source!r}, weight=0.5, held_out=0.3),
        teacher_data=TeacherData(
            weight=0.5, count=6, prompt_length=4, max_new_tokens=20, batch_size=2
        ),
        sequence_length=32, batch_size=8, chunk_size=16, steps=6, warmup_steps=1,
        evaluate_every=3, save_every=2, keep=9,
        temperatures="0,1", tree="chain:2", prompts=2, max_new_tokens=8,
    )
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tiny_zoo.write(
        tmp_path_factory.mktemp("zoo"), num_attention_heads=4, num_key_value_heads=4
    )


@pytest.fixture(scope="module", autouse=True)
def small(models):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model_folders, "ZOO_MODELS", models)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    tmp_path = tmp_path_factory.mktemp("distill")
    source, file = tmp_path / "texts.jsonl", tmp_path / "config.py"
    tiny_zoo.write_texts(source)
    file.write_text(CONFIG.format(output=str(tmp_path / "runs"), source=str(source)))
    return file


def told(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    code = main(tuple(map(str, arguments)))
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def distil(capsys, config: Path, *changes: str) -> dict:
    return told(capsys, "distill", "--json", config, *changes)


@pytest.fixture(scope="module")
def whole(config) -> Path:
    """The folder of a run that nothing stopped."""
    assert main(("distill", str(config))) == 0
    return config.parent / "runs" / "run"


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert main(tuple(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    complaint = err.splitlines()[-1]
    assert out == "" and complaint.startswith("jspec: "), err
    return complaint


def head(folder: str | Path, models: Path):
    target = load(models / "target")
    return load_head(folder, target.model, target.params)


def weights(folder: str | Path, models: Path) -> list[np.ndarray]:
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(head(folder, models).params)]


def log(config: Path, name: str = "run") -> list[dict]:
    file = config.parent / "runs" / name / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_leaves_a_head_that_drafts_for_its_target(capsys, config, whole, models):
    made = head(whole / "model", models)
    assert made.head.config.intermediate_size == 8
    assert made.head.module.sampling and made.head.module.partial
    first, last = log(config)
    assert last["held_out_loss"] < first["held_out_loss"]
    assert last["held_out_feature_loss"] < first["held_out_feature_loss"]
    assert 0 < last["held_out_acceptance_rate_2"] < 1
    assert 1 <= last["acceptance_length@1"] <= 3
    prompt = ("--target", "zoo:target", "--prompt", "def add", "--max-new-tokens", "12", "--json")
    plain = told(capsys, "generate", *prompt)
    draft = told(capsys, "generate", *prompt, "--draft", whole / "model", "--tree", "chain:2")
    assert draft["ids"] == plain["ids"]


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    capsys, config, whole, models, monkeypatch
):
    sources = run.make_source

    def breaking(*arguments):
        source_at = sources(*arguments)

        def at(step, params):
            if step == 4:
                raise FloatingPointError("stopped here")
            return source_at(step, params)

        return at

    with monkeypatch.context() as patched:
        patched.setattr(run, "make_source", breaking)
        assert main(("distill", str(config), "name=stopped")) == 1
    done = distil(capsys, config, "name=stopped")
    for one, other in zip(
        weights(whole / "model", models), weights(done["folder"], models), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_is_exported_with_its_targets_embedding_and_taught_further(
    capsys, config, whole, models, tmp_path
):
    out = tmp_path / "out"
    record = told(capsys, "export", "--json", whole, out)
    assert (record["family"], record["target"]) == ("eagle", "zoo:target")
    assert (out / "model.safetensors").stat().st_size > record["parameters"] * 2
    for one, other in zip(weights(whole / "model", models), weights(out, models), strict=True):
        np.testing.assert_array_equal(one, other)
    wide = transformer(tiny_zoo.config(hidden_size=32))
    save(tmp_path / "wide", wide, wide.init(jax.random.key(0)))
    made = str(whole), str(tmp_path / "3"), "--target", str(tmp_path / "wide")
    assert main(("export", *made)) == 2
    said = f"target='{tmp_path / 'wide'}': hidden_size=16, and the target's is 32"
    assert said in capsys.readouterr().err and not (tmp_path / "3").exists()
    told(capsys, "export", "--json", whole, tmp_path / "2", "--step", "2")
    early = weights(tmp_path / "2", models)
    assert any(np.any(one != other) for one, other in zip(early, weights(out, models), strict=True))
    again = distil(capsys, config, "name=again", f"draft={out}", "learning_rate=0", "steps=1")
    for one, other in zip(weights(again["folder"], models), weights(out, models), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("head.kind=eagle2", "head.kind='eagle2' is none of: eagle, fspad"),
        ("head.ttt_steps=0", "head.ttt_steps=0: must be at least 1"),
        ("head.ttt_decay=0", "head.ttt_decay=0.0: must be above 0"),
        ("head.feature_noise=-1", "head.feature_noise=-1.0: must be 0 or more"),
        ("head.feature_weight=nan", "head.feature_weight=nan: must be 0 or more"),
        ("head.intermediate_size=-8", "head.intermediate_size=-8: must be 0 or more"),
        ("head.draft_vocab_size=5", "only eagle3 has them"),
        ("head.kind=eagle3", "eagle3 predicts features of its own"),
        ("on_policy.weight=1", "on_policy.weight=1.0: a head generates no text alone"),
        ("head=none", "give one of the three"),
        ("draft=zoo:wide", "draft='zoo:wide': "),
    ],
)
def test_bad_recipes_are_refused(capsys, config, change, said):
    assert said in refused(capsys, "distill", config, "name=refused", change)
    assert not (config.parent / "runs" / "refused" / "model").exists()


def test_a_head_of_another_kind_does_not_go_on_with_a_run(capsys, config, whole):
    assert "head" in refused(capsys, "distill", config, "head.kind=eagle")
