"""Heads that read features: the arithmetic that the papers' code has, and nothing beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import ModelConfig
from jspec.core.cache import commit, empty_block, empty_cache
from jspec.models.eagle3 import eagle3
from jspec.models.heads import alignment_alone, eagle, fspad, sampling_alone

pytestmark = pytest.mark.law

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=32,
)
EAGLE3 = {
    "eagle-3": {},
    "normed residual": {"norm_before_residual": True},
    "normed output": {"norm_output": True},
}
HEADS = {
    "eagle": eagle,
    "fspad": fspad,
    "sampling": sampling_alone,
    "alignment": alignment_alone,
    **{name: functools.partial(eagle3, layers=(0, 1, 2), **how) for name, how in EAGLE3.items()},
}
ROWS, LENGTH = 2, 7
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))
PLACES = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))


@pytest.fixture(scope="module", params=HEADS)
def made(request):
    """A head by its name, with parameters that are all of some size, and inputs."""
    head = HEADS[request.param](CONFIG)
    keys = iter(jax.random.split(jax.random.key(5), 64))
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), head.init(next(keys))
    )
    embedded, features = jax.random.normal(next(keys), (2, ROWS, LENGTH, CONFIG.hidden_size))
    return request.param, head, params, embedded, features


def silu(x):
    return x / (1 + np.exp(-x))


def normed(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + CONFIG.norm_eps) * weight


def turned(x):
    """Rotary positions of `[T, heads, C]`."""
    half = CONFIG.head_dim // 2
    rate = CONFIG.rope_theta ** (-np.arange(half) / half)
    angle = np.arange(LENGTH)[:, None, None] * rate
    left, right = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def attended(x, p):
    """Causal attention of `[T, D]`, a head at a time."""
    query, key, value = (
        (x @ p[name]["weight"].T).reshape(LENGTH, -1, CONFIG.head_dim)
        for name in ("query", "key", "value")
    )
    query, key = turned(query), turned(key)
    mixed = []
    for number in range(CONFIG.num_attention_heads):
        shared = number // (CONFIG.num_attention_heads // CONFIG.num_key_value_heads)
        scores = query[:, number] @ key[:, shared].T / np.sqrt(CONFIG.head_dim)
        weights = np.exp(np.where(CAUSAL, scores, -np.inf))
        mixed.append(weights / weights.sum(axis=-1, keepdims=True) @ value[:, shared])
    return np.concatenate(mixed, axis=-1) @ p["out"]["weight"].T


def gated(p, gate, up):
    inner = silu(gate @ p["gate"]["weight"].T) * (up @ p["up"]["weight"].T)
    return inner @ p["down"]["weight"].T


def written_out(name, p, e, f):
    """The published forward pass of one text, embedding first."""
    if name in EAGLE3:
        return eagle3_written_out(name, p, e, f)
    x = np.concatenate([e, f], axis=-1) @ p["fuse"]["weight"].T + p["fuse"]["bias"]
    if name in ("fspad", "sampling"):
        x = x + gated(p["sampling"], e, normed(x, p["sampling_norm"]["weight"]))
    x = x + attended(x, p["attention"])
    inner = normed(x, p["feedforward_norm"]["weight"])
    y = gated(p["feedforward"], inner, inner)
    if name in ("fspad", "alignment"):
        y = np.concatenate([x, x], axis=-1) + y
        return y[:, : CONFIG.hidden_size], y[:, CONFIG.hidden_size :]
    return x + y, x + y


def eagle3_written_out(name, p, e, f):
    normed_feature = normed(f, p["feature_norm"]["weight"])
    both = np.concatenate([normed(e, p["embedding_norm"]["weight"]), normed_feature], axis=-1)
    x = normed_feature if name == "normed residual" else f
    x = x + attended(both, p["attention"])
    inner = normed(x, p["feedforward_norm"]["weight"])
    x = x + gated(p["feedforward"], inner, inner)
    hidden = normed(x, p["norm"]["weight"])
    return hidden, hidden if name == "normed output" else x


def test_a_head_is_what_the_paper_writes(made):
    name, head, params, embedded, features = made
    found = head.forward(params, embedded, features, PLACES, CAUSAL)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for row in range(ROWS):
        hidden, following = written_out(
            name, exact, *(np.asarray(x[row], np.float64) for x in (embedded, features))
        )
        np.testing.assert_allclose(found.hidden[row], hidden, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.features[row], following, rtol=1e-4, atol=1e-4)


def test_rows_may_come_from_a_cache_and_a_block(made):
    _, head, params, embedded, features = made
    whole = head.forward(params, embedded, features, PLACES, CAUSAL)

    def piece(start, stop, cache=None, block=None, at=0):
        inside = slice(start, stop)
        mask = CAUSAL[inside, start - at : stop]
        inputs = embedded[:, inside], features[:, inside], PLACES[:, inside]
        return head.forward(params, *inputs, mask, cache, block, at)

    first = piece(0, 3)
    cache = empty_cache(CONFIG, ROWS, 8, jnp.float32)
    path = np.broadcast_to(np.arange(3), (ROWS, 3))
    cache = commit(cache, first.block, path, np.full(ROWS, 3))
    second = piece(3, 5, cache, empty_block(CONFIG, ROWS, 4, jnp.float32))
    third = piece(5, 7, cache, second.block, 2)
    for name in ("hidden", "features"):
        pieces = [getattr(part, name) for part in (first, second, third)]
        np.testing.assert_allclose(
            np.concatenate(pieces, axis=1), getattr(whole, name), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["fspad", "alignment"])
def test_each_half_of_the_output_moves_its_own_rows(name):
    head = HEADS[name](CONFIG)
    params = head.init(jax.random.key(0))
    embedded, features = jax.random.normal(jax.random.key(1), (2, ROWS, LENGTH, CONFIG.hidden_size))

    def total(params, half):
        return (getattr(head.forward(params, embedded, features, PLACES, CAUSAL), half) ** 2).sum()

    halves = {"hidden": slice(0, CONFIG.hidden_size), "features": slice(CONFIG.hidden_size, None)}
    for half, rows in halves.items():
        moved = np.asarray(jax.grad(total)(params, half)["feedforward"]["down"]["weight"])
        assert np.abs(moved[rows]).min() > 0
        np.testing.assert_array_equal(np.delete(moved, np.arange(len(moved))[rows], axis=0), 0)


@pytest.mark.parametrize(
    ("hidden_size", "intermediate_size", "heads", "key_value_heads", "ours", "theirs"),
    [
        (4096, 11008, 32, 32, 236, 416),
        (6656, 17920, 52, 52, 624, 1101),
        (8192, 28672, 64, 8, 990, 1929),
    ],
)
def test_heads_have_the_published_sizes(
    hidden_size, intermediate_size, heads, key_value_heads, ours, theirs
):
    """In millions, of the heads for 7B, 33B and 70B."""
    config = ModelConfig(
        vocab_size=32000,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=128,
        max_position_embeddings=2048,
    )
    for make, millions in ((eagle, ours), (fspad, theirs)):
        shapes = jax.eval_shape(make(config).init, jax.random.key(0))
        assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6) == millions


def test_a_heads_axes_have_names(made):
    _, head, params, *_ = made
    names = head.axes()
    jax.tree.map(lambda x, axes: None if len(axes) == x.ndim else pytest.fail(), params, names)
