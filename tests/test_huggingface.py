"""Reading and writing models in Hugging Face's layout, held against transformers itself."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from jspec.cache import commit, empty_cache
from jspec.config import ModelConfig, RopeScaling
from jspec.formats.huggingface import load, save
from jspec.models.transformer import transformer

TOLERANCE = 1e-4
ORIGINAL = 16  # tokens that the stretched models were trained on, were they trained
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
KINDS = {
    "llama1": {},
    "llama2_grouped": {"num_key_value_heads": 2, "rope_theta": 1e6},
    "llama31_stretched": {"num_key_value_heads": 1, "rope_scaling": LLAMA3, "rope_theta": 5e5},
    "linear_stretched": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "wide_heads": {"head_dim": 12},
}
CONFIG = ModelConfig(
    vocabulary=17,
    width=8,
    feedforward=12,
    layers=2,
    heads=4,
    kv_heads=2,
    channels=2,
    context=32,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
    attention_bias=True,
)
PARENTS = (-1, 0, 0, 1, 1, 2, 5)
ROWS, PREFIX, NEW, CAPACITY = 3, 33, len(PARENTS), 48


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """A random model of transformers, and what we read from the folder that it saved."""
    reference = make_reference(KINDS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    return reference, load(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small model of ours with its parameters, and the folder where it was saved."""
    model = transformer(CONFIG)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    folder = tmp_path_factory.mktemp("ours") / "model"
    save(folder, model, params, tokenizer=make_tokenizer(), end_of_text=(0, 3))
    return model, params, folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the saved folder, to be damaged."""
    return shutil.copytree(original[2], tmp_path / "model")


def test_a_whole_sequence_has_the_logits_of_transformers(pair):
    reference, checkpoint = pair
    tokens = draw((ROWS, PREFIX + NEW))
    ours, _ = run(checkpoint, tokens, np.arange(PREFIX + NEW), causal(PREFIX + NEW))
    assert_close(ours, expected(reference, tokens))


def test_a_sequence_in_two_pieces_has_the_logits_of_transformers(pair):
    reference, checkpoint = pair
    tokens = draw((ROWS, PREFIX + NEW))
    first, cache = prefill(checkpoint, tokens[:, :PREFIX])
    second, _ = run(
        checkpoint, tokens[:, PREFIX:], PREFIX + np.arange(NEW), causal(NEW), cache=cache
    )
    assert_close(np.concatenate([first, second], axis=1), expected(reference, tokens))


def test_every_path_of_a_tree_has_the_logits_of_its_tokens_alone(pair):
    reference, checkpoint = pair
    prefix, nodes = draw((ROWS, PREFIX)), draw((ROWS, NEW), seed=1)
    paths = [ancestors(node) for node in range(NEW)]
    mask = np.array([[other in path for other in range(NEW)] for path in paths])
    depths = np.array([len(path) - 1 for path in paths])
    _, cache = prefill(checkpoint, prefix)
    ours, _ = run(checkpoint, nodes, PREFIX + depths, mask, cache=cache)
    for node, path in enumerate(paths):
        alone = np.concatenate([prefix, nodes[:, path]], axis=1)
        assert_close(ours[:, node], expected(reference, alone)[:, -1])


def test_rows_of_unequal_length_have_the_logits_of_each_row_alone(pair):
    reference, checkpoint = pair
    lengths = np.array([PREFIX, 5, 20])
    tokens, later = draw((ROWS, PREFIX)), draw((ROWS, NEW), seed=1)
    first, cache = prefill(checkpoint, tokens, lengths)
    positions = lengths[:, None] + np.arange(NEW)
    second, _ = run(checkpoint, later, positions, causal(NEW), cache=cache)
    for row, length in enumerate(lengths):
        alone = np.concatenate([tokens[row, :length], later[row]])[None]
        ours = np.concatenate([first[row, :length], second[row]])[None]
        assert_close(ours, expected(reference, alone))


@pytest.mark.parametrize("kind", ["llama31_stretched", "linear_stretched", "tied", "wide_heads"])
def test_transformers_reads_what_we_write(kind, tmp_path):
    reference = make_reference(KINDS[kind])
    reference.save_pretrained(tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    save(tmp_path / "ours", checkpoint.model, checkpoint.params, end_of_text=(2,))
    again = type(reference).from_pretrained(tmp_path / "ours")
    tokens = draw((2, 40))
    np.testing.assert_array_equal(expected(again, tokens), expected(reference, tokens))
    assert again.generation_config.eos_token_id == 2


def test_shards_are_read_as_one_file_is(tmp_path):
    reference = make_reference(KINDS["llama2_grouped"])
    reference.save_pretrained(tmp_path / "one")
    reference.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_same(load(tmp_path / "one").params, load(tmp_path / "many").params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_read_back_bit_for_bit(dtype, original, tmp_path):
    model, params, _ = original
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    save(tmp_path / "model", model, params, end_of_text=(0, 3))
    checkpoint = load(tmp_path / "model", dtype=dtype)
    assert checkpoint.model == model
    assert checkpoint.end_of_text == (0, 3)
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


def test_weights_are_cast_when_saved_and_when_loaded(original, tmp_path):
    model, params, _ = original
    save(tmp_path / "model", model, params, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert_same(load(tmp_path / "model", dtype=jnp.bfloat16).params, rounded)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    assert_same(load(tmp_path / "model").params, wide)


def test_the_end_of_text_is_generation_configs_then_configs(folder):
    assert load(folder).end_of_text == (0, 3)
    rewrite(folder / "generation_config.json", eos_token_id=5)
    assert load(folder).end_of_text == (5,)
    (folder / "generation_config.json").unlink()
    assert load(folder).end_of_text == (0, 3)
    rewrite(folder / "config.json", eos_token_id=None)
    assert load(folder).end_of_text == ()


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


def test_a_save_that_fails_leaves_everything_as_it_was(original, folder, tmp_path):
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


def test_parameters_of_another_model_are_not_saved(original, tmp_path):
    model, params, _ = original
    strange = {**params, "norm": {"weight": jnp.ones(9)}, "extra": jnp.ones(1)}
    refused(lambda: save(tmp_path / "m", model, strange), "params", "norm.weight", "extra")
    refused(lambda: save(tmp_path / "m", model, params, dtype="int8"), "dtype='int8'", "bfloat16")
    assert not (tmp_path / "m").exists()


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
        ({"num_key_value_heads": 3}, ["kv_heads=3", "multiple"]),
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


def test_a_head_beside_a_tied_embedding_must_equal_it(original, tmp_path):
    model = transformer(ModelConfig(**{**vars(CONFIG), "tied": True}))
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


def refused(act, *words):
    """`act` raises what the command line turns into one line, and the line has these words."""
    with pytest.raises((ValueError, OSError)) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def rewrite(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit(folder, change):
    """Applies `change` to the dict of a folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def make_reference(fields):
    """A random model of transformers, with scores far enough apart that a wrong angle shows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # on models this small threads only wait for each other
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.3 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.ndim == 2 else parameter + noise)
    return model


def expected(reference, tokens):
    """Logits `[B, T, V]` by transformers."""
    import torch

    with torch.inference_mode():
        return reference(torch.from_numpy(tokens)).logits.numpy()


def prefill(checkpoint, tokens, lengths=None):
    """Logits of prompts padded on the right, and a cache of the first `lengths` of each row."""
    rows, new = tokens.shape
    kept = np.full(rows, new) if lengths is None else lengths
    cache = empty_cache(checkpoint.model.config, rows, CAPACITY, jnp.float32)
    return run(checkpoint, tokens, np.arange(new), causal(new), cache=cache, count=kept)


def run(checkpoint, tokens, positions, mask, cache=None, count=0):
    """Logits of new tokens, and the cache with the first `count` of each row in it."""
    positions = np.broadcast_to(positions, tokens.shape)
    count = np.broadcast_to(np.int32(count), tokens.shape[:1])
    return forward(checkpoint.model, checkpoint.params, tokens, positions, mask, cache, count)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, positions, mask, cache, count):
    output = model.forward(params, tokens, positions, mask, cache)
    if cache is not None:
        path = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        cache = commit(cache, output.block, path, count)
    return model.logits(params, output.hidden), cache


def draw(shape, seed=0):
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], shape)


def causal(length):
    return np.tri(length, dtype=bool)


def ancestors(node):
    """The nodes from the root to `node`."""
    return [*(ancestors(PARENTS[node]) if node else []), node]


def make_tokenizer():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world"] * 3, trainer)
    return tokenizer


def assert_close(ours, theirs):
    """Relative to the largest logit."""
    assert np.abs(ours - theirs).max() < TOLERANCE * np.abs(theirs).max()


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
