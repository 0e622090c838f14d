"""Heads in the layout of EAGLE: written, read back, and refused."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import assert_same, edit, refused, rewrite
from safetensors.numpy import load_file, save_file

from jspec import ModelConfig, RopeScaling, load, load_head, make_mesh, save, save_head, transformer
from jspec.models.heads import FeatureLayer, Head, alignment_alone, eagle, fspad, sampling_alone
from jspec.parallel.sharding import REPLICATED

V, D, F, H, K, C = 40, 16, 24, 4, 2, 4
CONFIG = ModelConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=F,
    num_hidden_layers=1,
    num_attention_heads=H,
    num_key_value_heads=K,
    head_dim=C,
    max_position_embeddings=64,
)
TARGET = transformer(replace(CONFIG, num_hidden_layers=2, intermediate_size=32))
HEADS = {"eagle": eagle, "fspad": fspad, "sampling": sampling_alone, "alignment": alignment_alone}
# The keys and shapes that the authors' own code loads, but for those that differ by the kind.
LAYER = {
    "layers.0.self_attn.q_proj.weight": (H * C, D),
    "layers.0.self_attn.k_proj.weight": (K * C, D),
    "layers.0.self_attn.v_proj.weight": (K * C, D),
    "layers.0.self_attn.o_proj.weight": (D, H * C),
    "layers.0.mlp.gate_proj.weight": (F, D),
    "layers.0.mlp.up_proj.weight": (F, D),
    "layers.0.post_attention_layernorm.weight": (D,),
}
PLAIN = {"fc.weight": (D, 2 * D), "fc.bias": (D,)}
GATED = {
    "fc.fc.weight": (D, 2 * D),
    "fc.fc.bias": (D,),
    "fc.mlp.gate_proj.weight": (F, D),
    "fc.mlp.up_proj.weight": (F, D),
    "fc.mlp.down_proj.weight": (D, F),
    "fc.post_attention_layernorm.weight": (D,),
}
SINGLE, DOUBLE = ({"layers.0.mlp.down_proj.weight": (rows, F)} for rows in (D, 2 * D))
PUBLISHED = {
    "eagle": {**LAYER, **PLAIN, **SINGLE},
    "fspad": {**LAYER, **GATED, **DOUBLE},
    "sampling": {**LAYER, **GATED, **SINGLE},
    "alignment": {**LAYER, **PLAIN, **DOUBLE},
}


def drawn(part, seed):
    """Parameters none of which is what it would be if it were forgotten."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(part.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(TARGET, 1)


@pytest.fixture(scope="module", params=HEADS)
def written(request, params, tmp_path_factory):
    """A head of every kind, its parameters, and the folder where it was saved."""
    head = HEADS[request.param](CONFIG)
    own, folder = drawn(head, 2), tmp_path_factory.mktemp(request.param) / "head"
    save_head(folder, head, own, embedding=params["embedding"])
    return request.param, head, own, folder


@pytest.fixture
def folder(params, tmp_path):
    """A head's folder, to be damaged."""
    save_head(tmp_path / "head", eagle(CONFIG), drawn(eagle(CONFIG), 2))
    return tmp_path / "head"


def read(folder, params, **options):
    return load_head(folder, TARGET, params, **options)


def test_a_head_of_every_kind_is_read_back_bit_for_bit(written, params):
    name, head, own, folder = written
    again = read(folder, params)
    assert (again.head, again.format, again.folder) == (head, "eagle", folder)
    assert_same(again.params, own)


def test_a_head_that_was_read_drafts_the_same(written, params):
    _, head, own, folder = written
    again = read(folder, params)
    embedded, features = jax.random.normal(jax.random.key(3), (2, 2, 5, D))
    places = np.broadcast_to(np.arange(5), (2, 5))
    inputs = embedded, features, places, np.tril(np.ones((5, 5), bool))
    ours, theirs = (h.forward(p, *inputs) for h, p in ((head, own), (again.head, again.params)))
    for one, other in ((ours.hidden, theirs.hidden), (ours.features, theirs.features)):
        logits = [TARGET.logits(params, x) for x in (one, other)]
        np.testing.assert_array_equal(*logits)


def test_keys_and_shapes_are_the_published_ones(written):
    name, _, _, folder = written
    found = {key: x.shape for key, x in load_file(folder / "model.safetensors").items()}
    assert found == {"embed_tokens.weight": (V, D), **PUBLISHED[name]}
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 1 and config["model_type"] == "llama"
    assert (config["hidden_size"], config["vocab_size"]) == (D, V)
    # Readers made for Llama take `bias` for biases of attention, so that true goes unsaid.
    assert "bias" not in config


def test_every_matrix_stands_under_its_own_name(folder):
    """Shapes do not tell those apart: what gates from what is gated, keys from values."""
    head = fspad(CONFIG)
    own = drawn(head, 2)
    save_head(folder, head, own)
    files = load_file(folder / "model.safetensors")
    layer, attention = "layers.0.mlp", "layers.0.self_attn"
    expected = {
        # Columns of the embedding first; of the doubled output, the rows of the logits first.
        "fc.fc": own["fuse"],
        **{f"fc.mlp.{n}_proj": own["sampling"][n] for n in ("gate", "up", "down")},
        "fc.post_attention_layernorm": own["sampling_norm"],
        "layers.0.post_attention_layernorm": own["feedforward_norm"],
        **{f"{layer}.{n}_proj": own["feedforward"][n] for n in ("gate", "up", "down")},
        f"{attention}.q_proj": own["attention"]["query"],
        f"{attention}.k_proj": own["attention"]["key"],
        f"{attention}.v_proj": own["attention"]["value"],
        f"{attention}.o_proj": own["attention"]["out"],
    }
    assert len(files) == len(expected) + 1  # and the one bias
    for name, ours in expected.items():
        np.testing.assert_array_equal(files[f"{name}.weight"], ours["weight"])


def test_the_embedding_may_be_left_out(folder, params):
    assert "embed_tokens.weight" not in load_file(folder / "model.safetensors")
    assert_same(read(folder, params).params, drawn(eagle(CONFIG), 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"attention_bias": True, "out_bias": True},
        {"rope_theta": 5e5, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)},
        {"tie_word_embeddings": True},
    ],
)
def test_a_head_with_the_targets_traits_is_read_back(changes, params, tmp_path):
    head = fspad(replace(CONFIG, **changes))
    own = drawn(head, 2)
    save_head(tmp_path / "head", head, own)
    again = read(tmp_path / "head", params)
    assert again.head == head
    assert_same(again.params, own)


@pytest.mark.parametrize("spelling", [{"rope_parameters": None}, {"rope_theta": None}])
def test_either_spelling_of_theta_is_enough(spelling, params, folder):
    head = eagle(replace(CONFIG, rope_theta=5e5))
    save_head(folder, head, drawn(head, 2))
    rewrite(folder / "config.json", **spelling)
    assert read(folder, params).head.config.rope_theta == 5e5


@pytest.mark.parametrize("sampling", [False, True])
def test_a_head_without_a_bias_says_so_and_is_read(sampling, params, tmp_path):
    head = Head(FeatureLayer(CONFIG, sampling, bias=False), CONFIG)
    save_head(tmp_path / "head", head, drawn(head, 2))
    assert json.loads((tmp_path / "head" / "config.json").read_text())["bias"] is False
    again = read(tmp_path / "head", params)
    assert again.head == head and "bias" not in again.params["fuse"]


def test_a_head_of_qwen2_has_biases_where_attention_begins(params, folder):
    rewrite(folder / "config.json", model_type="qwen2", attention_bias=None)
    refused(lambda: read(folder, params), "missing layers.0.self_attn.q_proj.bias [16]")
    rewrite(folder / "config.json", qkv_bias=False)
    assert not read(folder, params).head.config.attention_bias


def test_shards_are_read_as_one_file_is(folder, params):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({n: tensors[n] for n, place in places.items() if place == file}, folder / file)
    index = {"weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(read(folder, params).params, drawn(eagle(CONFIG), 2))


def test_a_head_on_a_mesh_is_the_same(written, params):
    name, head, own, folder = written
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    cut = read(folder, params, mesh=mesh)
    copied = read(folder, params, mesh=mesh, rules=REPLICATED)
    assert_same(cut.params, own)
    assert_same(copied.params, own)
    assert cut.params["fuse"]["weight"].sharding.shard_shape((D, 2 * D)) == (D // 2, 2 * D)
    assert copied.params["fuse"]["weight"].sharding.is_fully_replicated
    save_head(folder.parent / "again", cut.head, cut.params)
    assert_same(read(folder.parent / "again", params).params, own)


@pytest.mark.parametrize("target_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("file_dtype", ["float32", "bfloat16", "float16"])
def test_an_embedding_is_the_targets_in_whatever_dtype(target_dtype, file_dtype, params, tmp_path):
    head = eagle(CONFIG)
    save_head(
        tmp_path / "head", head, drawn(head, 2), embedding=params["embedding"], dtype=file_dtype
    )
    theirs = jax.tree.map(lambda x: x.astype(target_dtype), params)
    assert read(tmp_path / "head", theirs).head == head
    moved = theirs["embedding"].at[3, 5].add(0.25)
    said = "embed_tokens.weight is not the target's embedding", "made for another target"
    refused(lambda: read(tmp_path / "head", {**theirs, "embedding": moved}), *said)


def test_all_tensors_that_do_not_fit_are_listed_at_once(folder, params):
    def damage(tensors):
        del tensors["layers.0.self_attn.q_proj.weight"]
        tensors["layers.0.mlp.up_proj.weight"] = np.ones((3, D), np.float32)
        tensors["layers.0.input_layernorm.weight"] = np.ones(D, np.float32)
        tensors["lm_head.weight"] = np.ones((V, D), np.float32)
        tensors["embed_tokens.weight"] = np.ones((V - 1, D), np.float32)

    edit(folder, damage)
    refused(
        lambda: read(folder, params),
        "missing layers.0.self_attn.q_proj.weight [16, 16]",
        "layers.0.mlp.up_proj.weight should be [24, 16], is [3, 16]",
        "unexpected layers.0.input_layernorm.weight [16]",
        "unexpected lm_head.weight [40, 16]",
        "embed_tokens.weight should be [40, 16], is [39, 16]",
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 32}, ["hidden_size=32", "16", "made for"]),
        ({"vocab_size": 41}, ["vocab_size=41", "40", "made for"]),
        ({"num_hidden_layers": 2}, ["num_hidden_layers=2", "has 1"]),
        ({"bias": False}, ["bias=false", "fc.bias is there", '"bias": true']),
        ({"bias": 1}, ["bias=1", "true or false"]),
        ({"model_type": "opt"}, ["model_type='opt'", "llama"]),
        ({"mlp_bias": True}, ["mlp_bias=true"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ],
)
def test_a_field_that_does_not_fit_is_named(fields, words, folder, params):
    rewrite(folder / "config.json", **fields)
    refused(lambda: read(folder, params), "config.json", *words)


def test_a_bias_that_is_missing_is_named(folder, params):
    edit(folder, lambda tensors: tensors.pop("fc.bias"))
    refused(lambda: read(folder, params), "bias=true", "fc.bias is missing", '"bias": false')


@pytest.mark.parametrize("key", ["midlayer.hidden_norm.weight", "d2t"])
def test_a_head_of_another_layout_is_taken_for_what_it_is(key, folder, params):
    edit(folder, lambda tensors: tensors.update({key: np.ones(D, np.float32)}))
    rewrite(folder / "config.json", eagle_aux_hidden_state_layer_ids=[0, 1])
    refused(lambda: read(folder, params), "input_layernorm.weight [16]", "unexpected fc.bias")
    rewrite(folder / "config.json", speculators_model_type="eagle3")
    refused(lambda: read(folder, params), "transformer_layer_config=None")


def test_a_head_and_a_model_are_told_apart(folder, params, tmp_path):
    save(tmp_path / "model", TARGET, params)
    refused(lambda: read(tmp_path / "model", params), "holds no head", "load")
    refused(lambda: load(folder), "head of the eagle layout", "no whole model", "load_head")


def test_a_pickle_is_refused_with_the_command_that_converts_it(folder, params, tmp_path):
    torch = pytest.importorskip("torch")
    place = shutil.move(folder, tmp_path / 'the user\'s "own" head')
    tensors = load_file(place / "model.safetensors")
    transposed = {name: torch.from_numpy(x.T.copy()).t() if x.ndim == 2 else torch.from_numpy(x)
                  for name, x in tensors.items()}  # fmt: skip
    torch.save(transposed, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(place, params)
    said = str(error.value)
    assert "never opened" in said and "\n" not in said
    command = re.search(r"run: python (.*)$", said)[1]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
    assert_same(read(place, params).params, drawn(eagle(CONFIG), 2))


def test_a_head_that_the_hub_has_as_a_pickle_alone_is_told_of(folder, params, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(folder))
    said = "source='somebody/eagle'", "hf download somebody/eagle --local-dir eagle && python -c"
    refused(lambda: read("somebody/eagle", params), *said, "eagle/pytorch_model.bin")


def test_what_is_no_head_of_this_layout_is_not_written(params, tmp_path):
    head = eagle(replace(CONFIG, norm="layer"))
    refused(lambda: save_head(tmp_path / "head", head, drawn(head, 2)), "norm='layer'")
    own = drawn(eagle(CONFIG), 2)
    asked = tmp_path / "head", eagle(CONFIG), own
    refused(lambda: save_head(*asked, format="medusa"), "format='medusa'", "not known", "eagle")
    refused(lambda: save_head(*asked, embedding=params["embedding"][:5]), "embedding", "(40, 16)")
    refused(lambda: save_head(*asked[:2], {"fuse": own["fuse"]}), "params", "attention.key.weight")
    assert not (tmp_path / "head").exists()
