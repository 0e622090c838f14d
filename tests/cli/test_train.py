"""`jspec train`: recipes and what the command line changes in them."""

import pytest

from jspec.cli.main import main
from jspec.config import ModelConfig
from jspec.studies.temperature.recipe import TemperatureStudy
from jspec.training.config_files import override
from jspec.training.recipe import FeatureHead, Pretraining


def refused(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jspec: ") and err.count("\n") == 1, err
    return err


RECIPE = Pretraining(
    name="tiny", model=ModelConfig(320, 16, 16, 1, 2, 1, 8, 64), sequence_length=64
)


def test_overrides_are_typed_by_their_fields_and_made_at_once():
    changed = override(
        RECIPE,
        ["steps=5", "learning_rate=1e-4", "name=7", "sequence_length=128",
         "model.max_position_embeddings=128",
         "model.tie_word_embeddings=true"],
    )  # fmt: skip
    assert (changed.steps, changed.learning_rate, changed.name) == (5, 1e-4, "7")
    assert (changed.sequence_length, changed.model.max_position_embeddings) == (128, 128)
    assert changed.model.tie_word_embeddings
    assert override(RECIPE, []) == RECIPE


@pytest.mark.parametrize("text", ["1 9 2", "1,9,2", "1, 9, 2"])
def test_numbers_stand_apart_by_spaces_or_commas(text):
    head = FeatureHead(kind="eagle3", feature_weight=0.0)
    assert override(head, [f"layers={text}"]).layers == (1, 9, 2)
    assert override(TemperatureStudy(), ["train_temperatures=0,1 1"]).train_temperatures == (
        "0,1",
        "1",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stepz=5", "stepz is not a field (did you mean steps?): there are name, output, "),
        ("model.head_dims=5", "model.head_dims is not a field (did you mean model.head_dim?)"),
        ("steps=five", "steps='five' must be of type int"),
        ("steps=0", "steps=0: must be at least 1"),
        ("model.gated=perhaps", "model.gated='perhaps' must be of type bool"),
        ("steps.more=1", "steps=2000 has no fields of its own"),
        ("model=big", "model='big' must be of type ModelConfig"),
        ("steps", "'steps' is not a change: write field=value"),
        ("chunk_size=48", "chunk_size=48: sequence_length=64 is not a multiple of it"),
        ("seed=-1", "seed=-1: must be in 0..4294967295"),
        ("sequence_length=65", "sequence_length=65 is longer than the model's context of 64"),
    ],
)
def test_train_refuses_bad_overrides_before_it_writes(capsys, tmp_path, change, said):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from jspec.config import ModelConfig\n"
        "from jspec.training.recipe import Pretraining\n\n\n"
        "def config() -> Pretraining:\n"
        "    model = ModelConfig(320, 16, 16, 1, 2, 1, 8, 64)\n"
        f"    output = {str(tmp_path / 'runs')!r}\n"
        "    return Pretraining(name='tiny', model=model, sequence_length=64, output=output)\n"
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
