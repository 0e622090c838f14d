"""Folders and fields that are refused, and in which words."""

import functools
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from ours import CONFIG
from references import LLAMA3, assert_same, edit, refused, rewrite

from jspec.config import ModelConfig
from jspec.formats.families import FAMILIES, read_config
from jspec.formats.huggingface import load, save
from jspec.models.transformer import transformer


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mamba"}, ["model_type='mamba'", "llama"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "silu"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"vocab_size": None}, ["vocab_size", "missing"]),
        ({"vocab_size": "many"}, ["vocab_size='many'", "int"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers=True", "int"]),
        ({"num_attention_heads": 0}, ["num_attention_heads=0", "positive"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "multiple"]),
        ({"rms_norm_eps": "1e-5"}, ["rms_norm_eps='1e-5'", "float"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings='no'", "true or false"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, ["rope_type='yarn'", "llama3"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor", "missing"]),
        ({"rope_scaling": {"type": "default", "mscale": 1.0}}, ["mscale"]),
        ({"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}, ["0.5"]),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, ["high_freq_factor=4.0"]),
        ({"rope_theta": 5e5}, ["rope_theta", "disagree"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_parameters", "disagree"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id='</s>'"]),
    ],
)
def test_a_configuration_that_we_cannot_compute_is_refused_by_name(fields, words, folder):
    (folder / "generation_config.json").unlink()
    rewrite(folder / "config.json", **fields)
    refused(lambda: load(folder), str(folder), *words)


SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SLIDING = ["sliding_attention"] * 2


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("llama", {"sliding_window": 8}, ["sliding_window=8", "None"]),
        ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5", "1.0"]),
        ("mistral", {"attention_bias": True}, ["attention_bias=True", "False"]),
        ("mistral", {"layer_types": ["full_attention", *SLIDING[1:]]}, ["layer_types="]),
        ("mistral", {"sliding_window": -1}, ["sliding_window=-1", "positive"]),
        ("qwen2", {"layer_types": SLIDING}, ["layer_types", "sliding_window is off"]),
        ("qwen2", {"use_mrope": True}, ["use_mrope=True", "False"]),
        ("qwen2", {"rope_scaling": {"type": "mrope"}}, ["rope_type='mrope'", "llama3"]),
        ("qwen2", {"dual_chunk_attention_config": {"a": 1}}, ["dual_chunk_attention_config"]),
        ("qwen2", {"use_sliding_window": 1}, ["use_sliding_window=1", "true or false"]),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": -2},
            ["max_window_layers=-2", "positive"],
        ),
        ("qwen3", {"layer_types": ["full_attention"]}, ["layer_types=", "2 times"]),
        ("qwen3", {"layer_types": ["full_attention", "chunked_attention"]}, ["chunked_attention"]),
        ("qwen3", {"hidden_act": "gelu"}, ["hidden_act='gelu'", "silu", "gelu_pytorch_tanh"]),
        ("gemma2", {"hidden_activation": "gelu"}, ["hidden_activation='gelu'"]),
        ("gemma2", {"hidden_act": "relu"}, ["hidden_act='relu'", "gelu_pytorch_tanh"]),
        ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention=True"]),
        ("gemma2", {"sliding_window": None}, ["sliding_window is off"]),
        ("gemma2", {"query_pre_attn_scalar": 0}, ["query_pre_attn_scalar=0", "positive"]),
        ("gemma2", {"attn_logit_softcapping": -1.0}, ["attn_logit_softcapping=-1.0", "positive"]),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0", "None"]),
        ("gemma3_text", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, ["rope_parameters=", "in it"]),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            ["sliding_attention", "linear", "default"],
        ),
        ("gemma3", {}, ["model_type='gemma3'", "gemma3_text"]),
        ("opt", {"word_embed_proj_dim": 16}, ["word_embed_proj_dim=16", "32"]),
        ("opt", {"layer_norm_elementwise_affine": False}, ["layer_norm_elementwise_affine=False"]),
        ("opt", {"activation_function": "gelu"}, ["activation_function='gelu'", "relu"]),
        ("bloom", {}, ["model_type='bloom'", *FAMILIES]),
        (["llama"], {}, ["model_type=['llama']", *FAMILIES]),
        ("llama", {"hidden_act": ["silu"]}, ["hidden_act=['silu']"]),
        ("llama", {"rope_scaling": "linear"}, ["rope_scaling='linear' must be an object"]),
        ("llama", {"vocab_size": 10**12}, ["vocab_size=1000000000000 is more than"]),
        ("llama", {"rope_theta": 10**400}, ["rope_theta=1000", "is more than"]),
        ("gemma2", {"layer_types": [["x"], {}]}, ["layer_types=[['x'], {}]", "2 times"]),
        ("gemma3_text", {"rope_parameters": 5}, ["rope_parameters=5", "in it"]),
        ("gemma3_text", {"rope_parameters": ["full_attention"]}, ["rope_parameters=", "in it"]),
    ],
)
def test_what_a_family_does_not_compute_is_refused_by_name(family, fields, words):
    refused(lambda: read_config({"model_type": family, **SIZES, **fields}), *words)


def test_parameters_of_another_model_are_not_saved(original, tmp_path):
    model, params, _ = original
    strange = {**params, "norm": {"weight": jnp.ones(9)}, "extra": jnp.ones(1)}
    refused(lambda: save(tmp_path / "m", model, strange), "params", "norm.weight", "extra")
    refused(lambda: save(tmp_path / "m", model, params, dtype="int8"), "dtype='int8'", "bfloat16")
    assert not (tmp_path / "m").exists()


def test_all_tensors_that_do_not_fit_are_listed_at_once(folder):
    def damage(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.q_proj.bias"]
        tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((3, 8), np.float32)
        tensors["model.layers.0.mlp.down_proj.weight"] = np.ones((8, 12), np.int8)
        tensors["model.layers.2.mlp.up_proj.weight"] = np.ones((12, 8), np.float32)

    edit(folder, damage)
    refused(
        lambda: load(folder),
        "missing model.norm.weight [8]",
        "missing model.layers.1.self_attn.q_proj.bias [8]",
        "model.layers.0.mlp.up_proj.weight should be [12, 8], is [3, 8]",
        "model.layers.0.mlp.down_proj.weight is I8",
        "unexpected model.layers.2.mlp.up_proj.weight [12, 8]",
    )


def test_of_many_tensors_that_do_not_fit_the_first_are_named_and_the_rest_counted(folder):
    """Another model's configuration fits none of them, and a line for each is no line."""

    def narrow(tensors):
        for name in tensors:
            tensors[name] = tensors[name][..., :1]

    edit(folder, narrow)
    message = refused(lambda: load(folder), "lm_head.weight should be", " more: one of the two")
    assert len(message) < 1000


def test_a_head_beside_a_tied_embedding_must_equal_it(original, tmp_path):
    model = transformer(ModelConfig(**{**vars(CONFIG), "tie_word_embeddings": True}))
    params = {name: value for name, value in original[1].items() if name != "head"}
    save(tmp_path / "model", model, params)

    def add_head(tensors, scale):
        tensors["lm_head.weight"] = scale * tensors["model.embed_tokens.weight"]

    edit(tmp_path / "model", functools.partial(add_head, scale=1))
    assert_same(load(tmp_path / "model").params, params)
    edit(tmp_path / "model", functools.partial(add_head, scale=2))
    refused(lambda: load(tmp_path / "model"), "lm_head.weight", "tied")


def test_rotary_tables_of_old_files_are_passed_over(original, folder):
    def add_table(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)

    edit(folder, add_table)
    assert_same(load(folder).params, original[1])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_never_opened(name, folder):
    (folder / "model.safetensors").rename(folder / name)
    refused(lambda: load(folder), name, "safetensors", "save_pretrained")


@pytest.mark.parametrize("length", [0, 20, -1])
def test_a_truncated_file_is_named(length, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    refused(lambda: load(folder), str(file), "truncated")


def test_shards_that_do_not_add_up_are_refused(folder):
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    single.rename(folder / "a.safetensors")
    refused(lambda: load(folder), "no model.safetensors", "a.safetensors", "rename")
    index.write_text("{}")
    refused(lambda: load(folder), index.name, "weight_map")
    rewrite(index, weight_map={"x": "a.safetensors", "y": "b.safetensors"})
    refused(lambda: load(folder), index.name, "b.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    refused(lambda: load(folder), "b.safetensors", "in a.safetensors too")
    rewrite(index, weight_map={"x": "../model/a.safetensors"})
    refused(lambda: load(folder), index.name, "'../model/a.safetensors'")


def test_a_folder_that_is_no_model_is_told_what_it_lacks(original, folder, tmp_path):
    refused(lambda: load(tmp_path / "nowhere"), "source=", "nowhere", "no such folder")
    refused(lambda: load(str(tmp_path / "nowhere")), "source=", "nowhere", "no such folder")
    refused(lambda: load(folder / "config.json"), "source=", "is a file")
    refused(lambda: load(folder, dtype="int8"), "dtype='int8'", "bfloat16")
    (folder / "model.safetensors").unlink()
    refused(lambda: load(folder), "no model.safetensors", "model.safetensors.index.json")
    (folder / "config.json").write_text("{")
    refused(lambda: load(folder), "config.json", "not JSON")
    (folder / "config.json").write_text("[]")
    refused(lambda: load(folder), "config.json", "list")
    (folder / "config.json").unlink()
    refused(lambda: load(folder), "source=", "no config.json", "safetensors")


def test_a_broken_tokenizer_is_told_of_when_it_is_asked_for(folder):
    (folder / "tokenizer.json").write_text("{}")
    checkpoint = load(folder)
    refused(lambda: checkpoint.tokenizer, str(folder), "tokenizer.json")


def test_without_the_hub_a_name_is_refused_and_a_folder_is_offered(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused(lambda: load("nobody/nothing"), "source='nobody/nothing'", "local folder")
