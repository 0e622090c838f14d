"""Small studies, run as commands."""

import pytest
import tiny_zoo

from jspec.cli.main import main
from jspec.formats import folder as model_folders
from jspec.training import text_data

# What every small study that trains drafts is told.
TRAINING = (
    "prompts=2", "prompt_length=4", "max_new_tokens=8", "repetitions=1",
    "training.steps=2", "training.batch_size=2", "training.sequence_length=16",
    "training.prompts=2", "training.max_new_tokens=8", "training.teacher_data.count=3",
    "training.teacher_data.batch_size=3", "training.teacher_data.prompt_length=4",
    "training.teacher_data.max_new_tokens=12",
)  # fmt: skip


@pytest.fixture
def run_study(models, monkeypatch, tmp_path, capsys):
    """Runs a study on tiny models; its exit code, and what it said."""
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)

    def run(study: str, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(("study", "--json", study, f"output={tmp_path}", *words))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def train_study(run_study, monkeypatch):
    """The same of a study that trains drafts, on a few texts and for two steps."""
    for name in ("training_documents", "held_out_documents", "out_of_domain_documents"):
        monkeypatch.setattr(text_data, name, lambda: [tiny_zoo.TEXT * 3] * 4)
    return lambda study, *words: run_study(study, *TRAINING, *words)
