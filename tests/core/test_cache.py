"""The cache: one function writes it, and what it holds is what plain decoding would hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import candidates, rows_of

from jspec import LookupDrafter, SmallModelDrafter, Tree, verify
from jspec.core.cache import Block, Cache, commit, empty_block, empty_cache
from jspec.decode import budget, speculate, start_decoding

pytestmark = pytest.mark.law

TOKENS = 24
# Every temperature, with each of the cuts twice.
ROWS = np.array([0, 4, 8, 9, 13, 17])


def test_commit_appends_the_kept_rows_and_touches_no_others(target):
    rng = np.random.default_rng(81)
    cache = empty_cache(target.config, 3, 12, jnp.float32)
    block = empty_block(target.config, 3, 7, jnp.float32)
    cache, block = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), (cache, block)
    )
    length, count = np.array([0, 3, 8]), np.array([4, 0, 2])
    path = np.array([[0, 2, 4, 6], [0, 1, 1, 1], [0, 3, 3, 3]])
    after = commit(cache.replace(length=jnp.asarray(length)), block, path, jnp.asarray(count))
    np.testing.assert_array_equal(after.length, length + count)
    for side in ("k", "v"):
        for before, rows, now in zip(
            getattr(cache, side), getattr(block, side), getattr(after, side), strict=True
        ):
            for b in range(3):
                kept = rows[b][:, path[b, : count[b]]]
                expected = np.concatenate([before[b, :, : length[b]], kept], axis=1)
                np.testing.assert_allclose(now[b, :, : length[b] + count[b]], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def narrow(target, params):
    """Some of its rounds keep a whole path, which leaves the draft a token behind."""
    cousin = candidates(target, params)["k-ary"].params
    return SmallModelDrafter(target, Tree.branching((2, 1))), cousin


@pytest.fixture(scope="module")
def states(target, params, narrow, batch):
    """The state before the first round and after each, until all rows are done."""
    return list(rounds(target, params, narrow, batch))


def rounds(target, params, draft, batch, disturb=lambda state: state):
    """States one after another, each disturbed before the next round reads it."""
    prompts, keys, how = rows_of(batch, ROWS)
    most, room = budget(TOKENS, prompts, target)
    models = {"target": target, "drafter": draft[0], "rule": verify.coupled}
    state = start_decoding(params, draft[1], prompts, most, **models, room=room)
    while True:
        yield state
        if np.all(state.finish_reason):
            return
        state = one_round(params, draft[1], disturb(state), keys, how, **models)


one_round = jax.jit(speculate, static_argnames=("target", "drafter", "rule"))


@functools.partial(jax.jit, static_argnames=("model",))
def plain_cache(params, tokens, *, model) -> Cache:
    """The cache after all of `tokens` `[B, M]`, run one by one."""
    first = jnp.zeros((len(tokens), 1), jnp.int32)

    def step(cache, token):
        alone = jnp.ones((1, 1), bool)
        output = model.forward(params, token[:, None], cache.length[:, None], alone, cache)
        return commit(cache, output.block, first, jnp.ones(len(tokens), jnp.int32)), None

    empty = empty_cache(model.config, *tokens.shape, jnp.float32)
    return jax.lax.scan(step, empty, tokens.T)[0]


def assert_same_rows(cache: Cache, plain: Cache) -> None:
    for ours, theirs in zip((*cache.k, *cache.v), (*plain.k, *plain.v), strict=True):
        for b, length in enumerate(cache.length):
            np.testing.assert_allclose(
                ours[b, :, :length], theirs[b, :, :length], rtol=1e-5, atol=1e-5
            )


def test_after_every_round_the_targets_cache_is_plain_decodings(target, params, states):
    plain = plain_cache(params, states[-1].tokens, model=target)
    for state in states:
        # All but the root is committed, in every row, whatever the round kept.
        np.testing.assert_array_equal(state.cache.length, state.length - 1)
        assert_same_rows(state.cache, plain)


def test_after_every_round_the_drafts_cache_is_its_own_plain_decodings(target, narrow, states):
    plain = plain_cache(narrow[1], states[-1].tokens, model=target)
    pending = np.array([state.drafter.pending for state in states])
    for state in states:
        np.testing.assert_array_equal(
            state.drafter.cache.length, state.cache.length - state.drafter.pending
        )
        assert_same_rows(state.drafter.cache, plain)
    # Rounds with no row pending, and rounds with some, so that both ways to catch up have been run.
    assert (~pending.any(axis=1)).any()
    assert (pending.any(axis=1) & ~pending.all(axis=1)).any()


def poison(value: float, state):
    """Everything that no one may read: rows past the length, blocks, tokens not written yet."""

    def behind(cache: Cache) -> Cache:
        def spoil(rows):
            past = jnp.arange(rows.shape[2])[None] >= cache.length[:, None]
            return jnp.where(past[:, None, :, None], value, rows)

        return cache.replace(k=tuple(map(spoil, cache.k)), v=tuple(map(spoil, cache.v)))

    def whole(block: Block) -> Block:
        return jax.tree.map(lambda rows: jnp.full_like(rows, value), block)

    unwritten = jnp.arange(state.tokens.shape[1])[None] >= state.length[:, None]
    drafter = state.drafter
    if drafter:
        drafter = drafter.replace(cache=behind(drafter.cache), block=whole(drafter.block))
    return state.replace(
        tokens=jnp.where(unwritten, 60, state.tokens), cache=behind(state.cache), drafter=drafter
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_garbage_past_the_length_changes_nothing(value, target, params, narrow, batch, states):
    *_, last = rounds(target, params, narrow, batch, functools.partial(poison, value))
    assert_same_text(last, states[-1])


def assert_same_text(state, expected) -> None:
    np.testing.assert_array_equal(state.length, expected.length)
    for b, length in enumerate(expected.length):
        np.testing.assert_array_equal(state.tokens[b, :length], expected.tokens[b, :length])
        np.testing.assert_array_equal(
            state.is_draft_token[b, :length], expected.is_draft_token[b, :length]
        )
    # Not the text alone: a draft that reads garbage drafts worse.
    np.testing.assert_array_equal(state.num_rounds, expected.num_rounds)
    np.testing.assert_array_equal(state.accepted_by_rank, expected.accepted_by_rank)
    np.testing.assert_array_equal(state.num_draft_tokens, expected.num_draft_tokens)


def test_look_up_reads_nothing_past_the_length(target, params, batch):
    draft = LookupDrafter(Tree.fork(2, 2)), ()
    *_, clean = rounds(target, params, draft, batch)
    *_, last = rounds(target, params, draft, batch, functools.partial(poison, np.nan))
    assert_same_text(last, clean)
