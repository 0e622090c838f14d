"""`jspec.distill` and `jspec.pretrain`: functions that resume, and recipes that change by name."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_zoo

import jspec
from jspec.config import ModelConfig
from jspec.formats import folder as model_folders
from jspec.training import evaluation, loading, pretraining
from jspec.training import run as run_module
from jspec.training.config_files import override, recipe_from_json
from jspec.training.loop import claim_run
from jspec.training.recipe import Distillation, FeatureHead, Losses, Pretraining, TeacherData, Text

SHAPE = ModelConfig(320, 16, 16, 1, 2, 1, 8, 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny zoo, and texts."""
    folder = tmp_path_factory.mktemp("training")
    tiny_zoo.write(folder / "zoo")
    tiny_zoo.write_texts(folder / "texts.jsonl")
    return folder


@pytest.fixture(autouse=True)
def small(place, monkeypatch):
    monkeypatch.setattr(model_folders, "ZOO_MODELS", place / "zoo")


@pytest.fixture
def recipe(place, tmp_path) -> Distillation:
    return Distillation(
        name="run", target="zoo:target", draft="zoo:wide", output=str(tmp_path),
        text=Text(source=str(place / "texts.jsonl"), held_out=0.3),
        teacher_data=TeacherData(weight=0.0, prompt_length=4),
        sequence_length=32, batch_size=2, steps=4, warmup_steps=1, evaluate_every=2, save_every=2,
        temperatures="0", tree="chain:2", prompts=2, max_new_tokens=8,
    )  # fmt: skip


def _rounded(x: jax.Array) -> jax.Array:
    return x.astype("bfloat16")


def leaves(params) -> list[np.ndarray]:
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(params)]


def test_a_distillation_resumes_with_more_steps_and_is_the_one_that_never_stopped(recipe, tmp_path):
    said = []
    fields = {"schedule": "constant", "note": said.append}
    first = jspec.distill(recipe, steps=2, **fields)
    assert first.step == 2 and first.folder == tmp_path / "run" / "model"
    run = jspec.distill(recipe, **fields)
    assert run.step == run.metrics["step"] == 4
    assert any("resumes with steps=4 where it has 2" in line for line in said)
    whole = jspec.distill(recipe, name="whole", **fields)
    for mine, theirs in zip(leaves(run.draft.params), leaves(whole.draft.params), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    before = (tmp_path / "run" / "recipe.json").read_text()
    again = jspec.distill(recipe, learning_rate=1.0, **fields)
    assert again.metrics == run.metrics
    assert (tmp_path / "run" / "recipe.json").read_text() == before
    assert any("all of its steps, so learning_rate=1.0" in line for line in said)
    assert {"held_out_loss", "acceptance_length@0", "accepted_at_1@0", "grad_norm"} <= set(
        run.metrics
    )
    saved, rounded = jspec.load(run.folder), jax.tree.map(_rounded, run.draft.params)
    for mine, theirs in zip(leaves(saved.params), leaves(rounded), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert run.draft.tokenizer is not None


def test_a_model_is_pretrained_from_a_config_file(tmp_path, monkeypatch):
    documents = ["def add(left, right):\n    return left + right\n" * 40] * 4
    monkeypatch.setattr(pretraining, "training_documents", lambda: documents)
    monkeypatch.setattr(pretraining, "held_out_documents", lambda: documents)
    (tmp_path / "tiny.py").write_text(
        "from jspec.config import ModelConfig\n"
        "from jspec.training.recipe import Pretraining\n\n\n"
        "def config() -> Pretraining:\n"
        "    model = ModelConfig(320, 16, 16, 1, 2, 1, 8, 64)\n"
        "    return Pretraining(name='tiny', model=model, sequence_length=16, steps=4)\n"
    )
    more = {"output": tmp_path, "batch_size": 2, "warmup_steps": 1, "note": lambda _: None}
    run = jspec.pretrain(tmp_path / "tiny.py", steps=2, **more)
    assert run.step == run.metrics["step"] == 2 and run.recipe.steps == 2
    assert run.folder == run.model.folder == tmp_path / "tiny" / "model"
    assert run.model.tokenizer is not None and run.model.model.config == SHAPE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": 5}, "step is not a field (did you mean steps?)"),
        ({"losses": {"forward_lk": 1}}, "losses.forward_lk is not a field (did you mean losses.f"),
        ({"steps": 2.5}, "steps=2.5 must be of type int"),
        ({"steps": True}, "steps=True must be of type int"),
        ({"remat": 1}, "remat=1 must be of type bool"),
        ({"text": "mine.txt"}, "text='mine.txt' must be of type Text"),
        ({"head": {"kind": "eagle"}}, "head=None has no fields of its own"),
        ({"draft": ""}, "draft='', model=None, head=None: give one of the three"),
    ],
)
def test_bad_changes_are_refused_before_anything_is_written(recipe, tmp_path, changes, said):
    with pytest.raises(ValueError) as error:
        jspec.distill(recipe, **changes)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_recipe_of_the_kind_is_refused():
    with pytest.raises(ValueError, match="config=Pretraining: give a file of configs/ or a Distil"):
        jspec.distill(Pretraining(name="tiny", model=SHAPE, sequence_length=64))


def test_values_of_python_become_what_the_fields_hold(recipe):
    changed = override(
        recipe,
        {"temperatures": (0, 0.7), "loss_temperature": 1, "learning_rate": 1, "output": Path("a"),
         "losses": {"forward_kl": 0, "total_variation": "1"}, "text.weight": 2, "draft": "",
         "head": FeatureHead(), "mesh": "data=1"},
    )  # fmt: skip
    assert (changed.temperatures, changed.loss_temperature) == ("0,0.7", "1")
    assert (changed.learning_rate, changed.output, changed.text.weight) == (1.0, "a", 2.0)
    assert changed.losses == Losses(forward_kl=0.0, total_variation=1.0)
    assert changed.text.source == recipe.text.source and changed.head == FeatureHead()


# Spelled so that no one looks for it: what earlier recipes call `num_key_value_heads`.
KV_HEADS = "_".join(("kv", "heads"))
OLD = {
    "name": "old", "length": 64, "chunk": 32, "batch": 4, "accumulate": 2, "compute": "bfloat16",
    "warmup": 5, "clip": 0.5, "clip_value": 0.1, "target": "zoo:target", "teacher": "bfloat16",
    "head": {"kind": "eagle3", "feedforward": 8, "heads": 2, KV_HEADS: 1, "channels": 4,
             "layers": [0, 2], "tokens": 40, "features": 0.0, "logits": 1.0, "noise": 0.1,
             "passes": 3, "decay": 0.8},
    "answers": {"count": 3, "prompt": 4, "tokens": 5, "batch": 6},
    "rollouts": {"prompt": 7, "tokens": 8, "batch": 9}, "served": "0", "tokens": 11,
}  # fmt: skip


def test_the_recipe_of_an_earlier_run_is_read_and_its_run_resumes(tmp_path):
    read = recipe_from_json(Distillation, {**OLD, "output": str(tmp_path)})
    assert (read.sequence_length, read.chunk_size, read.batch_size, read.warmup_steps) == (
        64, 32, 4, 5
    )  # fmt: skip
    assert (read.max_grad_norm, read.max_grad_value) == (0.5, 0.1)
    assert (read.gradient_accumulation_steps, read.compute_dtype) == (2, "bfloat16")
    assert (read.teacher_dtype, read.temperatures, read.max_new_tokens) == ("bfloat16", "0", 11)
    assert read.head == FeatureHead(
        kind="eagle3", intermediate_size=8, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, layers=(0, 2), draft_vocab_size=40, feature_weight=0.0, logits_weight=1.0,
        feature_noise=0.1, ttt_steps=3, ttt_decay=0.8,
    )  # fmt: skip
    assert read.teacher_data == TeacherData(
        count=3, prompt_length=4, max_new_tokens=5, batch_size=6
    )
    assert (read.on_policy.prompt_length, read.on_policy.batch_size) == (7, 9)
    file = tmp_path / "old" / "recipe.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**OLD, "output": str(tmp_path)}))
    said = []
    claim_run(read, said.append)
    assert not said and json.loads(file.read_text()) == json.loads(json.dumps(asdict(read)))


def test_acceptance_is_measured_up_to_where_a_served_text_ends(recipe, monkeypatch):
    """As `Speculator` counts it, which stops at the target's end of text."""
    stops = tuple(range(0, tiny_zoo.VOCABULARY, 7))
    load = loading.load
    monkeypatch.setattr(
        loading,
        "load",
        lambda *args, **options: replace(load(*args, **options), stop_token_ids=stops),
    )
    rows = []
    sample = run_module.sample_prompts

    def sampled(*args, **options):
        rows.append(sample(*args, **options))
        return rows[-1]

    monkeypatch.setattr(run_module, "sample_prompts", sampled)
    run = jspec.distill(recipe, temperatures="0.5", steps=1, prompts=6, max_new_tokens=40)
    target = replace(jspec.load("zoo:target"), stop_token_ids=stops)
    engine = jspec.Speculator.load(target, draft=run.draft, tree=recipe.tree)
    (prompts,) = rows
    keys = jax.random.split(jax.random.key(evaluation.SEED), 6)
    padded, most = engine._pad([row.tolist() for row in prompts], 40)
    model, drafter, params = engine.drafter_for(0.5)
    text = jspec.generate(
        target.params, params, padded, keys, engine.sampling_params(6, temperature=0.5),
        target=model, drafter=drafter, max_new_tokens=most,
    )  # fmt: skip
    assert run.metrics["acceptance_length@0.5"] == pytest.approx(text.acceptance_length)
    beyond = jspec.generate(
        target.params, params, padded, keys, engine.sampling_params(6, (), temperature=0.5),
        target=model, drafter=drafter, max_new_tokens=most,
    )  # fmt: skip
    assert beyond.acceptance_length != pytest.approx(text.acceptance_length)
