"""Attention to cache and block in one softmax, against a plain one over the rows joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import Tree
from jspec.core.attention import attend, window_mask

pytestmark = pytest.mark.law

B, K, C, S = 3, 2, 4, 7
LENGTH = np.array([0, 3, 7])


def rows(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def plain(
    query, key, value, mask, past_key=None, past_value=None, length=None, first=None, bend=None
) -> np.ndarray:
    """One query at a time, in float64, over what it sees and nothing else."""
    mixed = np.zeros(query.shape)
    for b, h, t in np.ndindex(query.shape[:3]):
        k = h // (query.shape[1] // key.shape[1])
        keys, values = key[b, k][mask[b, t]], value[b, k][mask[b, t]]
        if past_key is not None:
            seen = slice(0 if first is None else max(first[b, t], 0), length[b])
            keys = np.concatenate([past_key[b, k, seen], keys])
            values = np.concatenate([past_value[b, k, seen], values])
        scores = keys.astype(np.float64) @ query[b, h, t]
        scores = scores / np.sqrt(query.shape[-1]) if bend is None else bend(scores)
        weights = np.exp(scores - scores.max())
        mixed[b, h, t] = weights / weights.sum() @ values
    return mixed


@pytest.mark.parametrize("heads", [2, 6], ids=["a head each", "grouped"])
@pytest.mark.parametrize("cached", [False, True], ids=["block alone", "cache and block"])
def test_attention_is_one_softmax_over_cache_and_block(heads, cached):
    rng = np.random.default_rng(51)
    tree = Tree.branching((2, 2))
    query = rows(rng, B, heads, tree.size, C)
    key, value = rows(rng, B, K, tree.size, C), rows(rng, B, K, tree.size, C)
    past = (rows(rng, B, K, S, C), rows(rng, B, K, S, C), LENGTH) if cached else ()
    mask = np.broadcast_to(tree.mask, (B, *tree.mask.shape))
    expected = plain(query, key, value, mask, *past)
    np.testing.assert_allclose(attend(query, key, value, tree.mask, *past), expected, atol=1e-5)


def test_each_sequence_may_have_a_mask_of_its_own():
    rng = np.random.default_rng(52)
    query, key, value = rows(rng, B, 4, 3, C), rows(rng, B, K, 5, C), rows(rng, B, K, 5, C)
    mask = rng.random((B, 3, 5)) < 0.4
    mask[:, np.arange(3), np.arange(3)] = True
    past = rows(rng, B, K, S, C), rows(rng, B, K, S, C), LENGTH
    np.testing.assert_allclose(
        attend(query, key, value, mask, *past), plain(query, key, value, mask, *past), atol=1e-5
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_rows_past_the_length_change_nothing_whatever_they_hold(poison):
    rng = np.random.default_rng(53)
    query, key, value = rows(rng, B, 4, 2, C), rows(rng, B, K, 2, C), rows(rng, B, K, 2, C)
    past_key, past_value = rows(rng, B, K, S, C), rows(rng, B, K, S, C)
    mask = np.tril(np.ones((2, 2), bool))
    clean = attend(query, key, value, mask, past_key, past_value, LENGTH)
    for b, length in enumerate(LENGTH):
        past_key[b, :, length:] = poison
        past_value[b, :, length:] = poison
    poisoned = attend(query, key, value, mask, past_key, past_value, LENGTH)
    np.testing.assert_array_equal(clean, poisoned)


def test_large_scores_do_not_overflow():
    rng = np.random.default_rng(54)
    query, key, value = rows(rng, 1, 2, 1, C), rows(rng, 1, 2, 1, C), rows(rng, 1, 2, 1, C)
    past = rows(rng, 1, 2, S, C) * 100, rows(rng, 1, 2, S, C), np.array([5])
    mask = np.ones((1, 1, 1), bool)
    mixed = attend(query * 100, key, value, mask[0], *past)
    np.testing.assert_allclose(mixed, plain(query * 100, key, value, mask, *past), atol=1e-5)


def test_bfloat16_rows_are_mixed_in_float32():
    rng = np.random.default_rng(55)
    half = [
        jnp.asarray(rows(rng, *shape), jnp.bfloat16)
        for shape in [(B, 4, 1, C), (B, K, 1, C), (B, K, 1, C), (B, K, S, C), (B, K, S, C)]
    ]
    mask = np.ones((B, 1, 1), bool)
    mixed = attend(*half[:3], mask, *half[3:], LENGTH)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(mixed, np.float32), plain(*wide[:3], mask, *wide[3:], LENGTH), atol=0.03
    )


@pytest.mark.parametrize("heads", [2, 6], ids=["a head each", "grouped"])
def test_each_query_may_have_a_first_committed_row(heads):
    rng = np.random.default_rng(56)
    query, key, value = rows(rng, B, heads, 3, C), rows(rng, B, K, 3, C), rows(rng, B, K, 3, C)
    past = rows(rng, B, K, S, C), rows(rng, B, K, S, C), LENGTH
    mask = np.broadcast_to(np.tri(3, dtype=bool), (B, 3, 3))
    # Before the cache, inside it, at its end and behind it.
    first = np.array([[-2, 0, 1], [-1, 2, 3], [1, 5, 9]])
    np.testing.assert_allclose(
        attend(query, key, value, mask, *past, first=first),
        plain(query, key, value, mask, *past, first=first),
        atol=1e-5,
    )


def test_scores_have_the_scale_and_the_cap_that_are_asked_for():
    rng = np.random.default_rng(57)
    query, key, value = rows(rng, B, 4, 2, C), rows(rng, B, K, 2, C), rows(rng, B, K, 2, C)
    past = rows(rng, B, K, S, C), rows(rng, B, K, S, C), LENGTH
    mask = np.broadcast_to(np.tri(2, dtype=bool), (B, 2, 2))

    def bend(products):
        return 1.5 * np.tanh(0.7 * products / 1.5)

    np.testing.assert_allclose(
        attend(query, key, value, mask, *past, scale=0.7, cap=1.5),
        plain(query, key, value, mask, *past, bend=bend),
        atol=1e-5,
    )


@pytest.mark.parametrize("window", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "tree", [Tree.chain(6), Tree.branching((2, 2, 1, 2)), Tree.comb((3, 3, 2, 3)), Tree.fork(3, 3)]
)
def test_a_window_is_one_of_positions_whatever_the_order_of_the_rows(tree, window):
    starts = np.array([[0], [4], [9]])
    positions = starts + tree.depths
    near, first = window_mask(window, tree.mask, positions)
    distance = tree.depths[:, None] - tree.depths[None]
    np.testing.assert_array_equal(near, tree.mask & (distance < window))
    for b, q in np.ndindex(positions.shape):
        cached = np.arange(starts[b, 0])
        visible = cached > positions[b, q] - window
        np.testing.assert_array_equal(cached >= first[b, q], visible)


def test_a_row_that_is_hidden_does_not_count_in_a_window():
    mask = np.array([[[True, True, False], [True, True, True]], [[False, True, False]] * 2])
    near, _ = window_mask(2, mask, np.zeros((2, 2), int))
    np.testing.assert_array_equal(near[0], [[True, True, False], [False, True, True]])
    np.testing.assert_array_equal(near[1], mask[1])
