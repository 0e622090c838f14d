"""EAGLE-3's heads in both layouts: written, read back, turned into each other, and refused."""

import functools
import itertools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import assert_same, edit, refused, rewrite
from safetensors.numpy import load_file

from jspec import ModelConfig, RopeScaling, load_head, make_mesh, save_head, transformer
from jspec.formats.head_layout import Serving
from jspec.formats.heads import native_format
from jspec.models.eagle3 import eagle3
from jspec.models.heads import HeadParams, eagle
from jspec.models.transformer import with_hidden_states
from jspec.parallel.sharding import REPLICATED

V, D, F, H, K, C, WIDE = 40, 16, 24, 4, 2, 4, 24
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
TARGET = transformer(replace(CONFIG, num_hidden_layers=8, intermediate_size=8))
LAYERS = 2, 4, 5
TOKENS = np.array([0, 3, 5, 7, 30, 39])
D2T = jnp.asarray(TOKENS - np.arange(len(TOKENS)), jnp.int32)
SERVED = Serving("somebody/target", ("LlamaForCausalLM",), 5)
FORMATS = ("eagle3", "speculators")
FLAGS = ("norm_before_residual", "norm_output", "fc_norm", "norm_before_fc")
# All that go together.
COMBINATIONS = [
    dict(zip(FLAGS, values, strict=True))
    for values in itertools.product((False, True), repeat=4)
    if not (values[2] and values[3])
]
made = functools.partial(eagle3, CONFIG, layers=LAYERS)
few = functools.partial(made, draft_vocab_size=len(TOKENS))


def drawn(part, seed):
    """Parameters none of which is what it would be if it were forgotten."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(part.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


PARAMS = drawn(TARGET, 1)


def write(folder, head, format="eagle3", **how):
    """A folder of the head, whose tokens are `TOKENS` if it has few; and its parameters."""
    own = drawn(head, 2)
    how = {"embedding": PARAMS["embedding"], "serving": SERVED, **how}
    d2t = D2T if head.draft_vocab_size < V else None
    save_head(folder, head, own, d2t=d2t, format=format, **how)
    return own


def read(folder, target=TARGET, params=PARAMS, **how):
    return load_head(folder, target, params, **how)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(params=FORMATS)
def folder(request, tmp_path):
    """A folder of either layout, of a head of few tokens, to be damaged."""
    write(tmp_path / "head", few(), request.param)
    return tmp_path / "head"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [len(TOKENS), V])
@pytest.mark.parametrize("own", [False, True])
def test_a_head_is_read_back_bit_for_bit_from_either_layout_and_from_the_other(
    format, tokens, own, tmp_path
):
    """Of every combination of flags: the head, its parameters, its tokens."""
    for flags in COMBINATIONS:
        head = made(draft_vocab_size=tokens, own_embedding=own, **flags)
        params = write(tmp_path / "one", head, format)
        one = read(tmp_path / "one")
        assert (one.head, one.format) == (head, format)
        other = next(name for name in FORMATS if name != format)
        how = {"embedding": PARAMS["embedding"], "serving": SERVED, "format": other}
        save_head(tmp_path / "two", one.head, one.params, d2t=one.d2t, **how)
        two = read(tmp_path / "two")
        assert (two.head, two.format) == (head, other)
        for found in (one, two):
            assert_same(found.params, params)
            assert_same(found.d2t, D2T if tokens < V else None)


@pytest.mark.parametrize("format", FORMATS)
def test_a_head_that_was_read_drafts_the_same(format, tmp_path):
    head = few(own_embedding=True, fc_norm=True, norm_before_residual=True)
    own = write(tmp_path / "head", head, format)
    again = read(tmp_path / "head")
    tokens, places = np.arange(10).reshape(2, 5), np.broadcast_to(np.arange(5), (2, 5))
    causal = np.tril(np.ones((5, 5), bool))
    seen = head.read_hidden_states(
        with_hidden_states(TARGET, LAYERS).forward(PARAMS, tokens, places, causal)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def logits(head, params):
        embedded = head.embed(params, tokens, target=TARGET)
        first = head.forward(params.head, embedded, head.fuse(params.head, seen), places, causal)
        return head.logits(params, first.hidden, target=TARGET)

    found = logits(again.head, again.params_for(PARAMS))
    np.testing.assert_array_equal(found, logits(head, HeadParams(own, PARAMS, D2T)))
    np.testing.assert_array_equal(np.isfinite(found).all((0, 1)), np.isin(np.arange(V), TOKENS))


def published(layer):
    """Keys and shapes of a head of few tokens, whose layer is called so."""
    return {
        "fc.weight": (D, 3 * D),
        f"{layer}.input_layernorm.weight": (D,),
        f"{layer}.hidden_norm.weight": (D,),
        f"{layer}.self_attn.q_proj.weight": (H * C, 2 * D),
        f"{layer}.self_attn.k_proj.weight": (K * C, 2 * D),
        f"{layer}.self_attn.v_proj.weight": (K * C, 2 * D),
        f"{layer}.self_attn.o_proj.weight": (D, H * C),
        f"{layer}.post_attention_layernorm.weight": (D,),
        f"{layer}.mlp.gate_proj.weight": (F, D),
        f"{layer}.mlp.up_proj.weight": (F, D),
        f"{layer}.mlp.down_proj.weight": (D, F),
        "norm.weight": (D,),
        "lm_head.weight": (len(TOKENS), D),
        "d2t": (len(TOKENS),),
        "t2d": (V,),
        "embed_tokens.weight": (V, D),
    }


def test_a_folder_of_speculators_has_the_published_keys_and_fields_and_no_others(tmp_path):
    write(tmp_path / "head", few(norm_before_residual=True), "speculators")
    tensors = load_file(tmp_path / "head" / "model.safetensors")
    assert {name: x.shape for name, x in tensors.items()} == published("layers.0")
    assert (tensors["d2t"].dtype, tensors["t2d"].dtype) == (np.int64, bool)
    config = config_of(tmp_path / "head")
    layer = config.pop("transformer_layer_config")
    assert config == {
        "architectures": ["Eagle3Speculator"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "draft_vocab_size": 6,
        "norm_before_residual": True,
        "norm_before_fc": False,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": [2, 4, 5],
        "embed_requires_grad": False,
        "fc_norm": False,
        "norm_output": False,
        "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": 5,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "default_proposal_method": "greedy",
            "verifier": {
                "name_or_path": "somebody/target",
                "architectures": ["LlamaForCausalLM"],
            },
        },
    }
    said = {
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": 1,
        "num_attention_heads": H,
        "num_key_value_heads": K,
        "head_dim": C,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    assert said.items() <= layer.items()


def test_a_folder_of_eagle3_has_the_published_keys_and_says_every_field(tmp_path):
    write(tmp_path / "head", few())
    tensors = load_file(tmp_path / "head" / "model.safetensors")
    assert {name: x.shape for name, x in tensors.items()} == published("midlayer")
    np.testing.assert_array_equal(tensors["d2t"], TOKENS - np.arange(len(TOKENS)))
    np.testing.assert_array_equal(np.flatnonzero(tensors["t2d"]), TOKENS)
    config = config_of(tmp_path / "head")
    said = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "vocab_size": V,
        "draft_vocab_size": len(TOKENS),
        "hidden_size": D,
        "target_hidden_size": D,
        "tie_word_embeddings": False,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "eagle_aux_hidden_state_layer_ids": [2, 4, 5],
        # SGLang adds 1 to those that it finds here.
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [1, 3, 4],
        },
        "rope_theta": 1e4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert said.items() <= config.items()


@pytest.mark.parametrize("format", FORMATS)
def test_norms_stand_under_their_own_names(format, tmp_path):
    for flags, names in (
        ({"fc_norm": True}, {f"fc_norm.{i}.weight": f"layer_norm_{i}" for i in range(3)}),
        ({"norm_before_fc": True}, {"input_norm.weight": "input_norm"}),
    ):
        own = write(tmp_path / "head", made(**flags), format)
        tensors = load_file(tmp_path / "head" / "model.safetensors")
        layer = "layers.0" if format == "speculators" else "midlayer"
        always = {
            f"{layer}.input_layernorm.weight": "embedding_norm",
            f"{layer}.hidden_norm.weight": "feature_norm",
            f"{layer}.post_attention_layernorm.weight": "feedforward_norm",
            "norm.weight": "norm",
        }
        for theirs, ours in {**names, **always}.items():
            np.testing.assert_array_equal(tensors[theirs], own[ours]["weight"])
        # SpecForge asks for both, and in the layout of speculators they are absent.
        both = [tensors.get(name) for name in ("d2t", "t2d")]
        if format == "speculators":
            assert both == [None, None]
        else:
            assert not both[0].any() and both[1].all()


def test_a_head_of_all_tokens_has_each_where_the_target_has_it(tmp_path):
    write(tmp_path / "head", made())
    assert read(tmp_path / "head").d2t is None
    edit(tmp_path / "head", lambda t: t["d2t"].__setitem__(slice(3, 5), [1, -1]))
    said = "draft_vocab_size=40 of vocab_size=40, and d2t makes token 4 of draft token 3"
    refused(lambda: read(tmp_path / "head"), said)


def test_tokens_in_the_place_of_offsets_are_known_by_the_marks(folder):
    tokens = np.array([1, 2, 5, 7, 9, 12])
    marks = np.isin(np.arange(V), tokens)
    edit(folder, lambda t: t.update(d2t=tokens, t2d=marks))
    refused(lambda: read(folder), "d2t holds the tokens that t2d marks", "subtract 0..5 from it")
    edit(folder, lambda t: t.update(d2t=tokens - np.arange(6)))
    np.testing.assert_array_equal(np.arange(6) + read(folder).d2t, tokens)


def test_modelopts_spelling_of_the_layer_is_read_too(tmp_path):
    own = write(tmp_path / "head", few())

    def rename(tensors):
        for name in [name for name in tensors if name.startswith("midlayer.")]:
            tensors[name.replace("midlayer.", "layers.0.")] = tensors.pop(name)
        del tensors["t2d"]

    edit(tmp_path / "head", rename)
    again = read(tmp_path / "head")
    assert_same(again.params, own)
    assert_same(again.d2t, D2T)
    edit(tmp_path / "head", lambda t: t.pop("layers.0.mlp.up_proj.weight"))
    refused(lambda: read(tmp_path / "head"), "missing layers.0.mlp.up_proj.weight [24, 16]")


def test_what_eagle3_leaves_unsaid_is_as_its_authors_have_it(tmp_path):
    """Their files say neither of the norms nor of the layers."""
    own = write(tmp_path / "head", made(), embedding=None)
    unsaid = (*FLAGS, "draft_vocab_size", "target_hidden_size", "eagle_config")
    rewrite(
        tmp_path / "head" / "config.json",
        **dict.fromkeys((*unsaid, "eagle_aux_hidden_state_layer_ids")),
    )
    again = read(tmp_path / "head")
    # 2, L//2 and L-3 of a target of 8 layers.
    assert again.head == made() and again.head.layers == (2, 4, 5)
    assert_same(again.params, own)


@pytest.mark.parametrize("either", ["eagle_config", "eagle_aux_hidden_state_layer_ids"])
def test_either_spelling_of_the_layers_is_enough(either, tmp_path):
    write(tmp_path / "head", eagle3(CONFIG, layers=(0, 3, 8)))
    rewrite(tmp_path / "head" / "config.json", **{either: None})
    assert read(tmp_path / "head").head.layers == (0, 3, 8)


def test_an_embedding_is_the_heads_own_where_it_is_not_the_targets(folder):
    assert not read(folder).head.module.own_embedding
    other = np.asarray(PARAMS["embedding"]) + np.eye(V, D, dtype=np.float32)
    edit(folder, lambda tensors: tensors.update({"embed_tokens.weight": other}))
    again = read(folder)
    assert again.head.module.own_embedding
    np.testing.assert_array_equal(again.params["embedding"], other)


@pytest.mark.parametrize("format", FORMATS)
def test_a_head_may_be_narrower_than_its_target(format, tmp_path):
    target = transformer(replace(CONFIG, hidden_size=WIDE, num_hidden_layers=8))
    theirs = drawn(target, 3)
    head = made(target_hidden_size=WIDE, own_embedding=True)
    own = write(tmp_path / "head", head, format)
    assert config_of(tmp_path / "head")["target_hidden_size"] == WIDE
    again = read(tmp_path / "head", target, theirs)
    assert again.head == head
    assert_same(again.params, own)
    refused(lambda: read(tmp_path / "head"), "target_hidden_size=24", "is 16", "made for")


@pytest.mark.parametrize("format", FORMATS)
def test_a_stretched_head_with_biases_is_read_back(format, tmp_path):
    scaling = RopeScaling(8.0, 1.0, 4.0, 16)
    layer = replace(
        CONFIG, rope_theta=5e5, rope_scaling=scaling, attention_bias=True, out_bias=True
    )
    head = eagle3(layer, layers=LAYERS)
    own = write(tmp_path / "head", head, format)
    assert read(tmp_path / "head").head == head
    assert_same(read(tmp_path / "head").params, own)


def test_a_head_on_a_mesh_is_the_same(folder):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    cut = read(folder, mesh=mesh)
    assert_same(cut.params, drawn(few(), 2))
    assert cut.params["head"]["weight"].sharding.shard_shape((6, D)) == (3, D // 2)
    np.testing.assert_array_equal(cut.d2t, D2T)
    assert cut.d2t.sharding.is_fully_replicated and cut.d2t.sharding.mesh == mesh


def test_a_mesh_that_does_not_divide_the_tokens_is_refused(folder):
    mesh = make_mesh(data=2, tensor=4)
    head = eagle3(replace(CONFIG, num_key_value_heads=4), layers=LAYERS, draft_vocab_size=6)
    write(folder, head)
    said = "mesh tensor=4 does not divide draft_vocab_size=6", "--replicate-draft"
    refused(lambda: read(folder, mesh=mesh), *said)
    assert_same(read(folder, mesh=mesh, rules=REPLICATED).params, drawn(head, 2))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"draft_vocab_size": 41}, ["draft_vocab_size=41", "vocab_size=40"]),
        ({"draft_vocab_size": 0}, ["draft_vocab_size=0", "positive"]),
        ({"draft_vocab_size": 5}, ["lm_head.weight should be [5, 16]", "d2t should be [5]"]),
        ({"draft_vocab_size": 40}, ["lm_head.weight should be [40, 16]", "d2t should be [40]"]),
        ({"target_hidden_size": 24}, ["target_hidden_size=24 and hidden_size=16", "embed_tokens"]),
        (
            {"eagle_aux_hidden_state_layer_ids": [2, 16, 29], "eagle_config": None},
            ["layer_ids=[2, 16, 29]: the target has 8 layers", "from 0 to 8"],
        ),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 8]},
             "eagle_aux_hidden_state_layer_ids": None},
            ["eagle_config.eagle_aux_hidden_state_layer_ids=[2, 8]", "from -1 to 7"],
        ),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}},
            ["eagle_config.eagle_aux_hidden_state_layer_ids=[2, 4, 5]", "they disagree", "1 less"],
        ),
        ({"eagle_config": {"use_aux_hidden_state": False}}, ["use_aux_hidden_state=False"]),
        ({"eagle_config": [1]}, ["eagle_config=[1] must be an object"]),
        (
            {"eagle_aux_hidden_state_layer_ids": [1, 3], "eagle_config": None},
            ["fc.weight should be [16, 32], is [16, 48]"],
        ),
        ({"eagle_aux_hidden_state_layer_ids": 3}, ["=3 must be a list of layers"]),
        ({"num_aux_hidden_states": 5}, ["num_aux_hidden_states=5 is not read: 3 is"]),
        ({"norm_output": "no"}, ["norm_output='no' must be true or false"]),
        ({"fc_norm": True}, ["missing fc_norm.0.weight [16]"]),
        ({"norm_before_fc": True}, ["missing input_norm.weight [48]"]),
        ({"fc_norm": True, "norm_before_fc": True}, ["exclude each other"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings=True is not read"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_named(fields, words, folder):
    rewrite(folder / "config.json", **fields)
    refused(lambda: read(folder), *words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 32}, ["hidden_size=32"]),
        ({"vocab_size": 41}, ["vocab_size=41, and the target's is 40", "made for"]),
        ({"num_hidden_layers": 2}, ["num_hidden_layers=2", "has 1"]),
        ({"model_type": "qwen2"}, ["model_type='qwen2'", "llama is"]),
        ({"sliding_window": 8}, ["sliding_window=8"]),
    ],
)
def test_a_field_of_the_layer_that_does_not_fit_is_named(fields, words, folder):
    config = config_of(folder)
    layer = config.get("transformer_layer_config")
    if layer is None:
        fields = {"target_hidden_size": None, **fields}
    else:
        fields = {"transformer_layer_config": {**layer, **fields}}
    rewrite(folder / "config.json", **fields)
    refused(lambda: read(folder), *words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm_before_residual": None}, ["vLLM would take true, and speculators false"]),
        ({"draft_vocab_size": None}, ["draft_vocab_size is missing"]),
        ({"speculators_model_type": "dflash"}, ["speculators_model_type='dflash' is not read"]),
        ({"transformer_layer_config": "llama"}, ["transformer_layer_config='llama'", "object"]),
    ],
)
def test_what_speculators_must_say_is_asked_for(fields, words, tmp_path):
    write(tmp_path / "head", made(), "speculators")
    rewrite(tmp_path / "head" / "config.json", **fields)
    refused(lambda: read(tmp_path / "head"), "config.json", *words)


def test_a_target_of_another_depth_is_refused(folder):
    target = transformer(replace(CONFIG, num_hidden_layers=2, intermediate_size=8))
    said = "eagle_aux_hidden_state_layer_ids=[2, 4, 5]: the target has 2 layers", "made for"
    refused(lambda: read(folder, target, drawn(target, 1)), *said)
    rewrite(folder / "config.json", eagle_aux_hidden_state_layer_ids=None, eagle_config=None)
    said = "eagle_aux_hidden_state_layer_ids is missing", "2 layers has no usual three"
    refused(lambda: read(folder, target, drawn(target, 1)), *said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("d2t"), ["draft_vocab_size=6 of vocab_size=40, and d2t is missing"]),
        (lambda t: t.update(d2t=TOKENS), ["d2t makes token 44 of draft token 5", "the tokens"]),
        (lambda t: t.update(d2t=np.zeros(6)), ["d2t is F64, of I64, I32"]),
        (lambda t: t.update(t2d=np.ones(V, np.uint8)), ["t2d is U8, of BOOL"]),
        (
            lambda t: t.update(t2d=np.arange(V) < 6),
            ["token 1: by d2t the head does not have it, and by t2d it has it"],
        ),
        (lambda t: t.update(x=np.ones(3)), ["unexpected x [3]"]),
        (lambda t: t.pop("norm.weight"), ["missing norm.weight [16]"]),
        (
            lambda t: t.update({"embed_tokens.weight": np.ones((V - 1, D), np.float32)}),
            ["embed_tokens.weight should be [40, 16], is [39, 16]"],
        ),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(change, words, folder):
    edit(folder, change)
    refused(lambda: read(folder), *words)


def test_heads_of_the_two_kinds_are_not_written_as_each_other(tmp_path):
    head, plain = few(), eagle(CONFIG)
    asked = {"embedding": PARAMS["embedding"], "serving": SERVED}
    said = "of EAGLE or FSPAD, and this is one of EAGLE-3", "take eagle3 or speculators"
    refused(lambda: write(tmp_path / "head", head, "eagle"), "format='eagle'", *said)
    for format in FORMATS:
        said = f"format={format!r}", "of EAGLE-3, and this is one of EAGLE or FSPAD", "take eagle"
        how = {**asked, "format": format}
        refused(lambda: save_head(tmp_path / "head", plain, drawn(plain, 2), **how), *said)  # noqa: B023
    assert (native_format(head), native_format(plain)) == ("eagle3", "eagle")
    assert not (tmp_path / "head").exists()


def test_what_a_layout_does_not_hold_is_not_written(tmp_path):
    place = tmp_path / "head"
    for changes in ({"norm": "layer"}, {"use_qk_norm": True}):
        head = eagle3(replace(CONFIG, **changes), layers=LAYERS)
        refused(lambda: write(place, head), "head", next(iter(changes)))  # noqa: B023
    own, fewer = drawn(made(), 2), drawn(few(), 2)
    refused(lambda: save_head(place, few(), fewer), "no d2t for a head of 6 of the target's 40")
    refused(lambda: save_head(place, made(), own, d2t=D2T), "a d2t of 6 tokens for a head of 40")
    wrong = jnp.asarray(TOKENS)
    refused(lambda: save_head(place, few(), fewer, d2t=wrong), "d2t makes token 44")
    asked = {"format": "speculators", "embedding": PARAMS["embedding"]}
    refused(lambda: save_head(place, made(), own, **asked), "serving=None")
    asked["serving"] = SERVED._replace(speculative_tokens=0)
    refused(lambda: save_head(place, made(), own, **asked), "speculative_tokens=0")
    asked = {"format": "speculators", "serving": SERVED}
    refused(lambda: save_head(place, made(), own, **asked), "embedding=None")
    assert not place.exists()
