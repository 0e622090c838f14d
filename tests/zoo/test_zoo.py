"""The corpus, its prompts, and the way from a recipe to a model folder."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jspec import zoo
from jspec.config import ModelConfig
from jspec.formats import folder as folders
from jspec.formats.heads import load_head
from jspec.formats.huggingface import load
from jspec.training import pretraining
from jspec.training.config_files import read_recipe
from jspec.training.recipe import Distillation, Pretraining
from jspec.training.student import make_head
from jspec.zoo.corpus import held_out, held_out_documents, training_documents
from jspec.zoo.prompts import held_out_prompts, out_of_domain_prompts
from jspec.zoo.tokenizer import END_OF_TEXT, train_tokenizer

pytestmark = pytest.mark.law

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = ModelConfig(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
)
DOCUMENTS = ["def add(left, right):\n    return left + right\n" * 40] * 4


class Letters:
    """A tokenizer of one token a character, called as those of transformers are."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def text_of(rows: list[list[int]]) -> list[str]:
    return ["".join(map(chr, row)) for row in rows]


@pytest.fixture(scope="module")
def code() -> list[str]:
    return text_of(held_out_prompts(Letters(), 60, 100))


def test_prompts_are_the_same_in_every_run(code):
    assert code == text_of(held_out_prompts(Letters(), 60, 100))
    assert code[:5] == text_of(held_out_prompts(Letters(), 5, 100))


def test_prompts_have_the_asked_length_and_do_not_repeat(code):
    assert {len(text) for text in code} == {100}
    assert len(set(code)) == len(code)


def test_prompts_come_from_held_out_modules_alone(code):
    held, seen = held_out_documents(), training_documents()
    assert all(any(text in document for document in held) for text in code)
    assert not any(document in seen for document in held if len(document) >= 100)


def test_out_of_domain_prompts_are_prose():
    prose = text_of(out_of_domain_prompts(Letters(), 3, 200))
    assert not any("def " in text and "self." in text for text in prose)


def test_too_many_prompts_are_refused():
    with pytest.raises(ValueError, match="windows of 15000 tokens"):
        held_out_prompts(Letters(), 10_000, 15_000)


def test_held_out_modules_depend_on_their_path_alone():
    paths = [f"package/module_{number}.py" for number in range(2000)]
    share = np.mean([held_out(path) for path in paths])
    assert 0.03 < share < 0.07


def test_zoo_names_are_found_and_others_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ZOO_MODELS", tmp_path)
    monkeypatch.setattr(folders, "_download", lambda name: tmp_path / name)
    assert folders.find("somebody/model") == tmp_path / "somebody/model"
    with pytest.raises(ValueError, match="zoo:huge is not in the zoo"):
        folders.find("zoo:huge")
    with pytest.raises(FileNotFoundError, match="zoo:wide has no weights"):
        folders.find("zoo:wide")
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "config.json").write_text("{}")
    assert folders.find("zoo:wide") == tmp_path / "wide"


def test_a_recipe_becomes_a_model_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ZOO_MODELS", tmp_path / "none")
    monkeypatch.setattr(pretraining, "training_documents", lambda: DOCUMENTS)
    monkeypatch.setattr(pretraining, "held_out_documents", lambda: DOCUMENTS)
    recipe = Pretraining(
        name="tiny",
        model=TINY,
        output=str(tmp_path),
        sequence_length=16,
        batch_size=2,
        steps=2,
        warmup_steps=1,
    )
    run = pretraining.pretrain(recipe, note=print)
    folder = run.folder
    assert run.step == 2 and run.metrics["held_out_loss"] > 0
    assert folder == tmp_path / "tiny" / "model"
    checkpoint = load(folder, dtype="bfloat16")
    assert checkpoint.model.config == TINY
    assert checkpoint.stop_token_ids == (0,)
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer("def f")["input_ids"]) == "def f"
    assert all(np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves(checkpoint.params))


def test_drafts_share_the_targets_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ZOO_MODELS", tmp_path)
    (tmp_path / "target").mkdir()
    theirs = train_tokenizer(["import os\n" * 50], 280)
    theirs.save(str(tmp_path / "target" / "tokenizer.json"))
    found = pretraining.find_tokenizer(tmp_path / "run", DOCUMENTS, 320)
    assert found.get_vocab() == theirs.get_vocab()
    assert found.token_to_id(END_OF_TEXT) == 0
    with pytest.raises(ValueError, match="model.vocab_size=100 is less"):
        pretraining.find_tokenizer(tmp_path / "run", DOCUMENTS, 100)


@pytest.mark.parametrize("name", ["target", "wide", "deep"])
def test_the_drafts_and_the_target_share_a_vocabulary_and_a_context(name):
    recipe = read_recipe(CONFIGS / f"zoo_{name}.py", Pretraining)
    assert recipe.name == f"zoo_{name}"
    assert (recipe.model.vocab_size, recipe.model.max_position_embeddings) == (4096, 512)


def test_the_distilled_draft_learns_from_the_target_and_was_the_wide_one():
    recipe = read_recipe(CONFIGS / "zoo_distilled.py", Distillation)
    assert (recipe.name, recipe.target, recipe.draft) == (
        "zoo_distilled", "zoo:target", "zoo:wide"
    )  # fmt: skip


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_shipped_model_has_a_recipe_and_all_are_small(name):
    assert (CONFIGS / f"zoo_{name}.py").is_file()
    assert zoo.folder(name).is_dir()
    files = [file for file in zoo.MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 32e6


@pytest.mark.parametrize("name", ["eagle", "fspad"])
def test_the_heads_are_what_their_recipes_say_and_fit_the_target(name):
    recipe = read_recipe(CONFIGS / f"zoo_{name}.py", Distillation)
    assert (recipe.name, recipe.target) == (f"zoo_{name}", "zoo:target")
    target = load("zoo:target", dtype="bfloat16")
    head = load_head(f"zoo:{name}", target.model, target.params, dtype="bfloat16")
    assert head.head == make_head(recipe.head, target.model.config)
