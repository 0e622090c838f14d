"""Writing models in Hugging Face's layout, and reading them back."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ours import CONFIG, make_tokenizer
from references import KINDS, assert_same, draw, expected, make_reference, refused, rewrite

from jspec.config import ModelConfig, RopeScaling
from jspec.formats.families import FAMILIES
from jspec.formats.huggingface import load, save
from jspec.models.transformer import transformer

pytestmark = pytest.mark.law


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_we_write(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    reference = make_reference(kind)
    reference.save_pretrained(tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    model, params, family = checkpoint.model, checkpoint.params, checkpoint.family
    save(tmp_path / "ours", model, params, stop_token_ids=(2,), family=family)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    )
    assert type(again) is type(reference)
    tokens = draw((2, 40))
    np.testing.assert_array_equal(expected(again, tokens), expected(reference, tokens))
    assert again.generation_config.eos_token_id == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_is_saved_and_read_back_bit_for_bit(kind, tmp_path):
    make_reference(kind).save_pretrained(tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    save(tmp_path / "ours", checkpoint.model, checkpoint.params, family=checkpoint.family)
    again = load(tmp_path / "ours")
    assert (again.model, again.family) == (checkpoint.model, checkpoint.family)
    assert_same(again.params, checkpoint.params)


def test_a_model_that_several_families_hold_is_saved_as_the_one_asked_for(original, tmp_path):
    model = transformer(plain())
    params = model.init(jax.random.key(0))
    for family in ("llama", "mistral"):
        save(tmp_path / family, model, params, family=family)
        assert (load(tmp_path / family).model, load(tmp_path / family).family) == (model, family)
    save(tmp_path / "first", model, params)
    assert load(tmp_path / "first").family == "llama"


def test_a_model_that_no_family_holds_is_not_saved(tmp_path):
    strange = transformer(plain(attn_logit_softcapping=3.0))
    params = strange.init(jax.random.key(0))
    refused(lambda: save(tmp_path / "m", strange, params), "attn_logit_softcapping=3.0", "llama")
    refused(lambda: save(tmp_path / "m", strange, params, family="bert"), "'bert'", *FAMILIES)
    windowed = transformer(plain(sliding_window=4, sliding_layers=(1,)))
    refused(
        lambda: save(tmp_path / "m", windowed, params, family="mistral"),
        "sliding_layers=(1,)",
        "mistral",
    )


def test_shards_are_read_as_one_file_is(tmp_path):
    reference = make_reference("llama2_grouped")
    reference.save_pretrained(tmp_path / "one")
    reference.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_same(load(tmp_path / "one").params, load(tmp_path / "many").params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_read_back_bit_for_bit(dtype, original, tmp_path):
    model, params, _ = original
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    save(tmp_path / "model", model, params, stop_token_ids=(0, 3))
    checkpoint = load(tmp_path / "model", dtype=dtype)
    assert checkpoint.model == model
    assert checkpoint.stop_token_ids == (0, 3)
    assert_same(checkpoint.params, params)


@pytest.mark.parametrize("scaling", [None, RopeScaling(4.0), RopeScaling(8.0, 1.0, 4.0, 16)])
def test_either_spelling_of_the_rotary_fields_is_enough(scaling, original, tmp_path):
    config = ModelConfig(**{**vars(CONFIG), "rope_theta": 5e5, "rope_scaling": scaling})
    save(tmp_path / "model", transformer(config), original[1])
    rewrite(tmp_path / "model" / "config.json", rope_parameters=None)
    assert load(tmp_path / "model").model.config == config
    save(tmp_path / "model", transformer(config), original[1])
    rewrite(tmp_path / "model" / "config.json", rope_theta=None, rope_scaling=None)
    assert load(tmp_path / "model").model.config == config


def test_weights_may_be_read_by_whoever_may_read_the_configuration(original, tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "ours", *original[:2])
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "ours").iterdir()}
    assert modes == {0o640}


def test_weights_are_cast_when_saved_and_when_loaded(original, tmp_path):
    model, params, _ = original
    save(tmp_path / "model", model, params, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert_same(load(tmp_path / "model", dtype=jnp.bfloat16).params, rounded)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    assert_same(load(tmp_path / "model").params, wide)


def test_the_end_of_text_is_generation_configs_then_configs(folder):
    assert load(folder).stop_token_ids == (0, 3)
    rewrite(folder / "generation_config.json", eos_token_id=5)
    assert load(folder).stop_token_ids == (5,)
    (folder / "generation_config.json").unlink()
    assert load(folder).stop_token_ids == (0, 3)
    rewrite(folder / "config.json", eos_token_id=None)
    assert load(folder).stop_token_ids == ()


def test_what_is_said_of_generating_survives(original, tmp_path):
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "bos_token_id": 7}
    place = tmp_path / "theirs"
    save(place, *original[:2], stop_token_ids=(0, 3))
    rewrite(place / "generation_config.json", **said)
    rewrite(place / "config.json", pad_token_id=5)
    for again in (tmp_path / "ours", tmp_path / "twice"):
        found = load(place)
        assert found.generation_config == {**said, "pad_token_id": 5}
        save(
            again,
            found.model,
            found.params,
            stop_token_ids=found.stop_token_ids,
            generation_config=found.generation_config,
        )
        written = json.loads((again / "generation_config.json").read_text())
        assert written == {**said, "pad_token_id": 5, "eos_token_id": [0, 3]}
        config = json.loads((again / "config.json").read_text())
        assert [config[f"{name}_token_id"] for name in ("bos", "pad")] == [7, 5]
        place = again


def test_transformers_generates_as_the_folder_said(tmp_path):
    transformers = pytest.importorskip("transformers")
    reference = make_reference("llama1")
    how = {"do_sample": True, "temperature": 0.6, "top_k": 7, "bos_token_id": 1, "pad_token_id": 3}
    reference.generation_config = transformers.GenerationConfig(**how, eos_token_id=[2, 5])
    reference.save_pretrained(tmp_path / "theirs")
    found = load(tmp_path / "theirs")
    save(
        tmp_path / "ours",
        found.model,
        found.params,
        stop_token_ids=found.stop_token_ids,
        generation_config=found.generation_config,
    )
    read = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert {name: getattr(read, name) for name in how} == how
    assert read.eos_token_id == [2, 5]


def test_a_tokenizer_survives_every_way_of_saving_it(original, tmp_path):
    model, params, folder = original
    text = "hello  world, <|endoftext|>é"
    ids = make_tokenizer().encode(text).ids
    tokenizer = load(folder).tokenizer
    save(tmp_path / "object", model, params, tokenizer=tokenizer)
    save(tmp_path / "copy", model, params, tokenizer=tmp_path / "object")
    for place in (folder, tmp_path / "object", tmp_path / "copy"):
        again = load(place).tokenizer
        assert again.encode(text) == ids
        assert again.decode(ids) == text
        assert again.eos_token_id == 0


def test_tokenizer_settings_are_spelled_so_that_transformers_4_reads_them(original, tmp_path):
    model, params, folder = original
    tokenizer = load(folder).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    save(tmp_path / "model", model, params, tokenizer=tokenizer)
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|x|>"]
    assert "<|x|>" in load(tmp_path / "model").tokenizer.all_special_tokens


def test_a_folder_without_a_tokenizer_has_none(original, tmp_path):
    model, params, _ = original
    save(tmp_path / "model", model, params)
    assert load(tmp_path / "model").tokenizer is None


def test_saving_over_a_model_replaces_it_and_keeps_what_else_is_there(original, folder):
    model, params, _ = original
    (folder / "README.md").write_text("mine")
    save(folder, model, jax.tree.map(jnp.zeros_like, params))
    assert not np.any(load(folder).params["embedding"])
    assert (folder / "README.md").read_text() == "mine"
    assert not (folder / "tokenizer.json").exists()
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


def test_a_save_that_fails_changes_nothing(original, folder, tmp_path):
    model, params, _ = original
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    refused(lambda: save(folder, model, params, tokenizer=3), "tokenizer=int", "transformers")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_not_overwritten(original, tmp_path):
    model, params, _ = original
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years")
    refused(lambda: save(tmp_path / "notes", model, params), "folder=", "no model", "empty")
    (tmp_path / "file").write_text("")
    refused(lambda: save(tmp_path / "file", model, params), "folder=", "is a file")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", model, params)
    assert load(tmp_path / "empty").model == model


def plain(**changes):
    """A small Llama, changed."""
    sizes = vars(CONFIG) | {"attention_bias": False, "out_bias": False, "rope_scaling": None}
    return ModelConfig(**{**sizes, **changes})
