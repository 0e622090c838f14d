"""EAGLE-3's head around its layer: what it reads, its tokens, its shapes, what it refuses."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import Block, ModelConfig, Output, transformer
from jspec.models.eagle3 import check_d2t, eagle3, usual_layers
from jspec.models.heads import HeadParams
from jspec.models.transformer import with_hidden_states

V, D, WIDE = 40, 16, 24
CONFIG = ModelConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=32,
)
TARGET = transformer(
    ModelConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
    )
)
LAYERS = 2, 0
TOKENS = np.array([3, 5, 7, 30, 39])
OFFSETS = jnp.asarray(TOKENS - np.arange(len(TOKENS)), jnp.int32)
made = functools.partial(eagle3, CONFIG, layers=LAYERS)


def drawn(head, seed=7):
    """Parameters that are all of some size."""
    keys = iter(jax.random.split(jax.random.key(seed), 64))
    return jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), jax.jit(head.init)(next(keys))
    )


def normed(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + CONFIG.norm_eps) * weight


@pytest.mark.parametrize("norms", ["none", "fc_norm", "norm_before_fc"])
def test_what_it_reads_is_normed_if_it_is_and_then_fused_without_bias(norms):
    head = made(
        target_hidden_size=WIDE, own_embedding=True, **({} if norms == "none" else {norms: True})
    )
    params = drawn(head)
    low, high = jax.random.normal(jax.random.key(8), (2, 3, 5, WIDE))
    high = 4 * high + 1
    found = head.fuse(params, head.read_hidden_states(output(low, high)))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    parts = [np.asarray(x, np.float64) for x in (low, high)]
    if norms == "fc_norm":
        parts = [normed(x, p[f"layer_norm_{i}"]["weight"]) for i, x in enumerate(parts)]
    seen = np.concatenate(parts, axis=-1)
    if norms == "norm_before_fc":
        seen = normed(seen, p["input_norm"]["weight"])
    np.testing.assert_allclose(found, seen @ p["fusion"]["weight"].T, rtol=1e-4, atol=1e-4)


def output(*features):
    rows = jnp.zeros((3, 2, 5, 4))
    return Output(jnp.full((3, 5, D), jnp.nan), Block((rows,), (rows,)), features)


def test_its_logits_stand_at_the_tokens_that_it_has_and_nowhere_else():
    head = made(draft_vocab_size=len(TOKENS))
    own = drawn(head)
    hidden = jax.random.normal(jax.random.key(9), (2, 3, D))
    found = np.asarray(head.logits(HeadParams(own, None, OFFSETS), hidden, target=TARGET))
    expected = np.full((2, 3, V), -np.inf)
    expected[..., TOKENS] = np.asarray(hidden) @ np.asarray(own["head"]["weight"]).T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(HeadParams(own, None, OFFSETS).tokens, TOKENS)


def test_a_head_with_all_of_the_targets_tokens_needs_no_table():
    head = made()
    own, hidden = drawn(head), jax.random.normal(jax.random.key(9), (2, D))
    found = head.logits(HeadParams(own, None), hidden, target=TARGET)
    np.testing.assert_allclose(found, hidden @ own["head"]["weight"].T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="^a head of 5 tokens for a target of 40: give its d2t"):
        few = made(draft_vocab_size=5)
        few.logits(HeadParams(drawn(few), None), hidden, target=TARGET)


def test_it_has_the_targets_embedding_or_its_own():
    theirs = TARGET.init(jax.random.key(10))
    for own in (False, True):
        head = made(own_embedding=own)
        params = HeadParams(drawn(head), theirs)
        found = head.embed(params, np.array([[4, 1]]), target=TARGET)
        table = params.head["embedding"] if own else theirs["embedding"]
        np.testing.assert_array_equal(found, table[np.array([[4, 1]])])
        assert ("embedding" in params.head) == own


def test_all_that_is_trained_has_a_gradient():
    """Of a draft token and the next one, and nothing trained is a whole number."""
    head = made(draft_vocab_size=len(TOKENS), own_embedding=True, fc_norm=True)
    causal, places = np.tril(np.ones((5, 5), bool)), np.arange(5)[None]
    seen = head.read_hidden_states(output(*jax.random.normal(jax.random.key(8), (2, 3, 5, D))))

    def loss(own):
        params, tokens = HeadParams(own, None, OFFSETS), np.arange(15).reshape(3, 5)
        embedded, features = head.embed(params, tokens, target=TARGET), head.fuse(own, seen)
        for _ in range(2):
            first = head.forward(own, embedded, features, places, causal)
            features = first.features
        probs = jax.nn.softmax(head.logits(params, first.hidden, target=TARGET))
        return jnp.square(probs).sum()

    gradient = jax.jit(jax.grad(loss))(drawn(head))
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(gradient))


def test_it_is_of_the_published_shapes():
    """`EAGLE3-LLaMA3.1-Instruct-8B`: keys of the file, ours, and what they hold."""
    h, f, draft = 4096, 14336, 32000
    config = ModelConfig(
        vocab_size=128256,
        hidden_size=h,
        intermediate_size=f,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=2048,
    )
    head = eagle3(config, layers=usual_layers(32), draft_vocab_size=draft)
    published = {
        "fc": ("fusion", (h, 3 * h)),
        "midlayer.input_layernorm": ("embedding_norm", (h,)),
        "midlayer.hidden_norm": ("feature_norm", (h,)),
        "midlayer.self_attn.q_proj": ("attention.query", (h, 2 * h)),
        "midlayer.self_attn.k_proj": ("attention.key", (1024, 2 * h)),
        "midlayer.self_attn.v_proj": ("attention.value", (1024, 2 * h)),
        "midlayer.self_attn.o_proj": ("attention.out", (h, h)),
        "midlayer.post_attention_layernorm": ("feedforward_norm", (h,)),
        "midlayer.mlp.gate_proj": ("feedforward.gate", (f, h)),
        "midlayer.mlp.up_proj": ("feedforward.up", (f, h)),
        "midlayer.mlp.down_proj": ("feedforward.down", (h, f)),
        "norm": ("norm", (h,)),
        "lm_head": ("head", (draft, h)),
    }
    shapes = jax.eval_shape(head.init, jax.random.key(0))
    found = {
        ".".join(part.key for part in path): x.shape
        for path, x in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    assert found == {f"{ours}.weight": shape for ours, shape in published.values()}
    assert head.layers == (2, 16, 29)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"fc_norm": True, "norm_before_fc": True}, "^fc_norm and norm_before_fc exclude"),
        (
            {"target_hidden_size": WIDE},
            "^target_hidden_size=24: without own_embedding .* the head's is 16",
        ),
        ({"draft_vocab_size": V + 1}, "^draft_vocab_size=41: must be in 1..40"),
        ({"layers": ()}, r"^layers=\(\): a head reads at least one"),
    ],
)
def test_what_does_not_go_together_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        made(**how)


def test_a_head_whose_matrix_is_the_embedding_is_refused():
    with pytest.raises(
        ValueError, match=r"^config\.tie_word_embeddings=True: .* give tie_word_embeddings=False"
    ):
        eagle3(replace(CONFIG, tie_word_embeddings=True), layers=(1,))


def test_a_target_that_does_not_show_what_it_reads_is_refused():
    head, params = made(), TARGET.init(jax.random.key(10))
    one = np.zeros((1, 1), np.int32)

    def read(target):
        return head.read_hidden_states(target.forward(params, one, one, np.ones((1, 1), bool)))

    assert read(with_hidden_states(TARGET, head.layers)).shape == (1, 1, 2 * D)
    words = (
        r"^the target returns hidden states of sizes \[\], .* \[16, 16\]: "
        r"give with_hidden_states\(.*\(2, 0\)\)"
    )
    with pytest.raises(ValueError, match=words):
        read(TARGET)


def test_a_target_of_few_layers_has_no_usual_ones():
    assert usual_layers(7) == (2, 3, 4)
    with pytest.raises(ValueError, match="^a target of 6 layers has no usual three"):
        usual_layers(6)


@pytest.mark.parametrize(
    ("d2t", "words"),
    [
        (TOKENS, r"^d2t makes token 43 of draft token 4: .* 0\.\.39; it seems to hold the tokens"),
        ([0, 1, 40], r"^d2t makes token 42 of draft token 2: the target's tokens are 0\.\.39$"),
        ([-1, 0], r"^d2t makes token -1 of draft token 0: .* 0\.\.39$"),
        ([0, 0, 5, 4], "^d2t makes token 7 of 2 draft tokens: each must have one of its own"),
        ([0.0, 1.0], r"^d2t is float64 \[2\]: it must be whole numbers"),
        ([[0, 1]], r"^d2t is int64 \[1, 2\]: it must be whole numbers"),
    ],
)
def test_offsets_that_are_none_are_refused(d2t, words):
    with pytest.raises(ValueError, match=words):
        check_d2t(np.asarray(d2t), V)


def test_offsets_that_are_some_are_not_refused():
    check_d2t(OFFSETS, V)
    check_d2t(np.zeros(V, np.int64), V)
