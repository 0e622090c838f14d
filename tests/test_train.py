"""`jspec train`: recipes and what the command line changes in them."""

import pytest

from jspec.cli.main import main
from jspec.cli.overrides import override
from jspec.config import ModelConfig
from jspec.distill.recipe import FeatureHead, Pretraining
from jspec.studies.recipe import TemperatureStudy


def refused(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jspec: ") and err.count("\n") == 1, err
    return err


RECIPE = Pretraining(name="tiny", model=ModelConfig(320, 16, 16, 1, 2, 1, 8, 64), length=64)


def test_overrides_are_typed_by_their_fields_and_made_at_once():
    changed = override(
        RECIPE,
        ["steps=5", "learning_rate=1e-4", "name=7", "length=128", "model.context=128",
         "model.tied=true"],
    )  # fmt: skip
    assert (changed.steps, changed.learning_rate, changed.name) == (5, 1e-4, "7")
    assert (changed.length, changed.model.context, changed.model.tied) == (128, 128, True)
    assert override(RECIPE, []) == RECIPE


@pytest.mark.parametrize("text", ["1 9 2", "1,9,2", "1, 9, 2"])
def test_numbers_stand_apart_by_spaces_or_commas(text):
    head = FeatureHead(kind="eagle3", features=0.0)
    assert override(head, [f"layers={text}"]).layers == (1, 9, 2)
    assert override(TemperatureStudy(), ["taught=0,1 1"]).taught == ("0,1", "1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stepz=5", "stepz is no field: there are name, output, length, "),
        ("model.depth=5", "model.depth is no field: there are model.vocabulary, model.width"),
        ("steps=five", "steps='five' must be of type int"),
        ("steps=0", "steps=0: must be at least 1"),
        ("model.tied=perhaps", "model.tied='perhaps' must be of type bool"),
        ("steps.more=1", "steps=2000 has no fields of its own"),
        ("model=big", "model='big' must be of type ModelConfig"),
        ("steps", "'steps' is no change: write field=value"),
        ("chunk=48", "chunk=48: length=64 is no multiple of it"),
        ("seed=-1", "seed=-1: must lie in 0..4294967295"),
        ("length=65", "length=65 is longer than the model's context of 64"),
    ],
)
def test_train_refuses_bad_overrides_before_it_writes(capsys, tmp_path, change, said):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from jspec.config import ModelConfig\n"
        "from jspec.distill.recipe import Pretraining\n\n\n"
        "def config() -> Pretraining:\n"
        "    model = ModelConfig(320, 16, 16, 1, 2, 1, 8, 64)\n"
        f"    output = {str(tmp_path / 'runs')!r}\n"
        "    return Pretraining(name='tiny', model=model, length=64, output=output)\n"
    )
    assert said in refused(capsys, "train", str(config), change)
    assert not (tmp_path / "runs").exists()


def test_train_refuses_a_file_that_is_no_config(capsys, tmp_path):
    assert "no such file" in refused(capsys, "train", str(tmp_path / "none.py"))
    for name, text in {"syntax": "def config(:", "leaves": "raise SystemExit(0)"}.items():
        (tmp_path / f"{name}.py").write_text(text)
        assert "does not run" in refused(capsys, "train", str(tmp_path / f"{name}.py"))
    (tmp_path / "empty.py").write_text("")
    assert "def config()" in refused(capsys, "train", str(tmp_path / "empty.py"))
