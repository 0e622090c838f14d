"""A head as a drafter: what it guesses from, round after round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import rows_of

from jspec import Growth, Tree, sampling
from jspec.decode import begin, speculate
from jspec.draft.feature_head import FeatureDrafter, HeadParams
from jspec.draft.protocol import Text
from jspec.models.heads import eagle, fspad
from jspec.models.prefill import prefill_with_features
from jspec.sampling import noise
from jspec.verify import coupled

TREE, GROWN = Tree.branching((3, 2)), Growth(3, 3, 8)
ROUNDS, TOKENS = 6, 24


@pytest.fixture(scope="module", params=[(eagle, TREE), (fspad, TREE), (fspad, GROWN)], ids=str)
def draft(request, target, params):
    make, tree = request.param
    head = make(dataclasses.replace(target.config, layers=1))
    own = jax.jit(head.init)(jax.random.key(3))
    return FeatureDrafter(head, target, tree), HeadParams(own, params)


@pytest.fixture(scope="module")
def written(draft, target, params, batch):
    """What four rows have become after some rounds, at several temperatures; which dice follow."""
    drafter, weights = draft
    few = rows_of(batch, np.array([0, 3, 9, 14]))
    how = sampling(4, temperature=[0.0, 0.5, 1.0, 2.0])
    names = {"target": target, "drafter": drafter, "rule": coupled}
    state = begin(params, weights, few.prompts, **names, tokens=TOKENS)
    advance = jax.jit(lambda state: speculate(params, weights, state, few.keys, how, **names))
    for _ in range(ROUNDS):
        state = advance(state)
    assert len(set((state.length - few.prompts.length).tolist())) > 1  # rows went on unevenly
    places = state.length[:, None] + np.arange(drafter.tree.path_length)[None]
    return state, how, noise(few.keys, places, target.config.vocabulary, how)


def guess(draft, memory, written):
    """`[B, N]` tokens that are guessed next and their parents; the draft's logits are not asked
    for."""
    (drafter, weights), (state, how, dice) = draft, written
    text = Text(state.tokens, state.length, state.history)
    propose = jax.jit(
        lambda memory: drafter.propose(weights, memory, text, dice, how, rule=coupled)
    )
    guessed = propose(memory)[0]
    return np.asarray(guessed.tokens), np.asarray(guessed.parent)


def test_after_rounds_it_guesses_as_if_it_began_with_the_whole_text(draft, target, params, written):
    drafter, weights = draft
    state, _, _ = written
    columns = state.tokens.shape[1]
    _, features = prefill_with_features(
        params, state.tokens, state.length - 1, model=target, capacity=columns, chunk=columns
    )
    afresh = drafter.start(
        weights, state.tokens, state.length, features, capacity=2 * columns, chunk=columns
    )
    np.testing.assert_array_equal(
        guess(draft, state.drafter, written), guess(draft, afresh, written)
    )


def test_it_reads_the_targets_features_and_below_the_root_its_own(draft, target, params, written):
    """Every guess against passes of the head over the whole text and the path to the node."""
    (drafter, weights), (state, how, dice) = draft, written
    found, parents = guess(draft, state.drafter, written)
    columns = state.tokens.shape[1]
    places, causal = jnp.arange(columns)[None], jnp.tril(jnp.ones((columns, columns), bool))
    learn = jax.jit(lambda text: target.forward(params, text, places, causal).hidden)

    @jax.jit
    def read(tokens, features, last):
        embedded = target.embed(params, tokens)
        seen = drafter.head.forward(weights.head, embedded, features, places, causal)
        return target.logits(params, seen.hidden[0, last]), seen.features[0, last]

    for row in range(len(found)):
        text, length = np.asarray(state.tokens)[row : row + 1], int(state.length[row])
        hidden = np.asarray(learn(text))
        tree = Tree(tuple(parents[row].tolist()))
        for node in np.flatnonzero(tree.inner):
            path = np.flatnonzero(tree.mask[node])[1:]
            tokens, features, last = np.roll(text, -1, axis=1), hidden.copy(), length - 2
            for below in found[row, path]:
                features[0, last + 1] = read(tokens, features, last)[1]
                tokens[0, last + 1], last = below, last + 1
            logits = np.asarray(read(tokens, features, last)[0])
            score = logits / (float(how.temperature[row]) or 1) + np.asarray(dice)[row, len(path)]
            children = np.flatnonzero(parents[row] == node)
            best = np.argsort(-score)[: len(children)]
            np.testing.assert_array_equal(found[row, children], best)


def test_a_root_that_is_the_first_token_can_be_guessed_from(draft, target, params):
    drafter, weights = draft
    tokens = jnp.zeros((1, 64), jnp.int32).at[0, 0].set(5)
    features = jnp.full((1, 64, target.config.width), jnp.nan)
    memory = drafter.start(weights, tokens, jnp.array([1]), features, capacity=80, chunk=64)
    assert np.isfinite(memory.features).all() and not np.any(memory.cache.length)
