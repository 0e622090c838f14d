"""A head as a drafter: what it drafts from, round after round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import few_tokens, headed, one_layer, rows_of

from jspec import DynamicTree, SamplingParams, Tree
from jspec.core.sampling import sample_noise
from jspec.decode import speculate, start_decoding
from jspec.draft.protocol import DraftContext
from jspec.models.eagle3 import eagle3
from jspec.models.heads import eagle, fspad
from jspec.models.prefill import prefill_with_hidden_states
from jspec.verify import coupled, one_sample, token_level, with_replacement, without_replacement

TREE, GROWN = Tree.branching((2, 2, 1)), DynamicTree(3, 3, 8)
ROUNDS, TOKENS = 6, 24


def narrow(target):
    """EAGLE-3's, half as wide as the target, with an embedding and norms of its own."""
    config = dataclasses.replace(one_layer(target), hidden_size=target.config.hidden_size // 2)
    own = {"own_embedding": True, "target_hidden_size": target.config.hidden_size}
    return eagle3(config, layers=(1, 0), **own, fc_norm=True, norm_output=True)


HEADS = {
    "eagle": lambda target: eagle(one_layer(target)),
    "fspad": lambda target: fspad(one_layer(target)),
    "eagle-3": few_tokens,
    "narrow": narrow,
}


OTHERS = [
    pytest.param((head, TREE), marks=pytest.mark.slow) for head in ("eagle", "eagle-3", "narrow")
]


@pytest.fixture(scope="module", params=[("fspad", TREE), ("eagle-3", GROWN), *OTHERS], ids=str)
def draft(request, target, params):
    head, tree = request.param
    return headed(HEADS[head](target), target, params, tree)


@pytest.fixture(scope="module")
def written(draft, params, batch):
    """Four rows after some rounds, at several temperatures, and the noise that follows."""
    drafter, weights = draft
    target = drafter.target
    few = rows_of(batch, np.array([0, 3, 9, 14]))
    how = SamplingParams.create(4, temperature=[0.0, 0.5, 1.0, 2.0])
    names = {"target": target, "drafter": drafter, "rule": coupled}
    most = np.full(4, TOKENS, np.int32)
    state = start_decoding(params, weights, few.prompts, most, **names, room=TOKENS)
    advance = jax.jit(lambda state: speculate(params, weights, state, few.keys, how, **names))
    for _ in range(ROUNDS):
        state = advance(state)
    assert len(set((state.length - few.prompts.length).tolist())) > 1  # rows went on unevenly
    places = state.length[:, None] + np.arange(drafter.tree.path_length)[None]
    return state, how, sample_noise(few.keys, places, target.config.vocab_size, how)


def draft_next(draft, own, written):
    """`[B, N]` tokens that are drafted next and their parents; the draft's logits are not asked
    for."""
    (drafter, weights), (state, how, noise) = draft, written
    context = DraftContext(state.tokens, state.length, state.counts, state.finish_reason == 0)
    propose = jax.jit(lambda own: drafter.propose(weights, own, context, noise, how, rule=coupled))
    candidates = propose(own)[0]
    return np.asarray(candidates.tokens), np.asarray(candidates.parent)


def test_after_rounds_it_drafts_as_if_it_began_with_the_whole_text(draft, params, written):
    drafter, weights = draft
    state, _, _ = written
    sizes = {"capacity": 2 * state.tokens.shape[1], "chunk": state.tokens.shape[1] // 4}
    _, features = prefill_with_hidden_states(
        params,
        state.tokens,
        state.length - 1,
        model=drafter.target,
        read=drafter.read_hidden_states,
        **sizes,
    )
    fresh = drafter.start(weights, state.tokens, state.length, features, **sizes)
    np.testing.assert_array_equal(
        draft_next(draft, state.drafter, written), draft_next(draft, fresh, written)
    )


def test_it_reads_the_targets_features_and_below_the_root_its_own(draft, params, written):
    """Every draft token against passes of the head over the whole text and the path to the node."""
    (drafter, weights), (state, how, noise) = draft, written
    head, target = drafter.head, drafter.target
    found, parents = draft_next(draft, state.drafter, written)
    columns = state.tokens.shape[1]
    places, causal = jnp.arange(columns)[None], jnp.tril(jnp.ones((columns, columns), bool))

    @jax.jit
    def learn(text):
        output = target.forward(params, text, places, causal)
        return head.fuse(weights.head, head.read_hidden_states(output))

    @jax.jit
    def read(tokens, features, last):
        embedded = head.embed(weights, tokens, target=target)
        seen = head.forward(weights.head, embedded, features, places, causal)
        return head.logits(weights, seen.hidden[0, last], target=target), seen.features[0, last]

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
            score = logits / (float(how.temperature[row]) or 1) + np.asarray(noise)[row, len(path)]
            children = np.flatnonzero(parents[row] == node)
            best = np.argsort(-score)[: len(children)]
            np.testing.assert_array_equal(found[row, children], best)


def test_it_drafts_from_a_root_that_is_the_first_token(draft, target, params):
    drafter, weights = draft
    tokens = jnp.zeros((1, 64), jnp.int32).at[0, 0].set(5)
    features = jnp.full(
        (1, 64, max(1, len(drafter.head.layers)) * target.config.hidden_size), jnp.nan
    )
    own = drafter.start(weights, tokens, jnp.array([1]), features, capacity=80, chunk=64)
    assert np.isfinite(own.hidden_states).all() and not np.any(own.cache.length)


@pytest.mark.parametrize(
    "rule",
    [
        coupled,
        *(
            pytest.param(rule, marks=pytest.mark.slow)
            for rule in (one_sample, token_level, with_replacement, without_replacement)
        ),
    ],
    ids=lambda rule: rule.name,
)
def test_a_head_with_fewer_tokens_drafts_none_but_its_own(rule, target, params, batch):
    """At every temperature, with cuts and penalties; some of them more often than others."""
    tree = Tree.chain(3) if rule is token_level else TREE
    drafter, weights = headed(few_tokens(target), target, params, tree)
    names = {"target": drafter.target, "drafter": drafter, "rule": rule}
    most = np.full(len(batch.keys), TOKENS, np.int32)
    state = start_decoding(params, weights, batch.prompts, most, **names, room=TOKENS)
    sizes = {"tree": tree, "vocab_size": target.config.vocab_size}
    noise = rule.sample_noise(batch.keys, state.length, batch.sampling, **sizes)
    context = DraftContext(state.tokens, state.length, state.counts, state.finish_reason == 0)

    @jax.jit
    def propose(noise):
        candidates = drafter.propose(
            weights, state.drafter, context, noise, batch.sampling, rule=rule
        )
        return candidates[0]

    candidates = propose(noise)
    found = np.unique(candidates.tokens[:, 1:][np.asarray(candidates.valid)[:, 1:]])
    assert len(found) > 10
    assert set(found) <= set(np.asarray(weights.tokens))
    if rule.needs_draft_logits:
        other = np.setdiff1d(np.arange(target.config.vocab_size), weights.tokens)
        assert np.all(np.asarray(candidates.draft_logits)[..., other] == -np.inf)


def test_a_head_without_its_targets_parameters_is_refused(target, params, batch):
    drafter, weights = headed(HEADS["fspad"](target), target, params, TREE)
    with pytest.raises(ValueError, match="params=dict: .* as params_for"):
        start_decoding(
            params, weights.head, batch.prompts, np.full(len(batch.keys), TOKENS, np.int32),
            target=drafter.target, drafter=drafter, rule=coupled, room=TOKENS,
        )  # fmt: skip
