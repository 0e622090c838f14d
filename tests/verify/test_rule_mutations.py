"""What breaks a rejection rule breaks the law that is there to catch it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import PAIRS, SMALLEST_P, counts_of, joint_law, p_value, speculative_draws
from texts import compiled_again

from jspec import Tree, decode
from jspec.core.sampling import process_logits
from jspec.verify import (
    block,
    paths,
    recursive,
    rejection,
    token_level,
    traversal,
    without_replacement,
)
from jspec.verify.recursive import WithoutReplacement

HOT = {"temperature": 1.0}
extend_weight, rejection_residual = paths.extend_weight, paths.rejection_residual
verify, sample_noise, draw = (
    WithoutReplacement.verify,
    WithoutReplacement.sample_noise,
    WithoutReplacement.draw,
)


def follows_the_law(rule=without_replacement, tree=PAIRS, **how) -> bool:
    """Of the code as it is now, compiled again."""
    how = how or HOT
    generate = compiled_again(decode.generate)
    written = speculative_draws(120, generate, rule=rule, tree=tree, **how)
    return p_value(counts_of(written), joint_law(**how)) > SMALLEST_P


@pytest.mark.slow
def test_drawing_from_p_in_place_of_the_residual(monkeypatch):
    monkeypatch.setattr(rejection, "residual", lambda p, q: p)
    assert not follows_the_law(token_level, Tree.chain(2))
    monkeypatch.setattr(recursive, "residual", lambda p, q: p)
    assert not follows_the_law()


@pytest.mark.slow
def test_a_residual_that_is_not_normalised(monkeypatch):
    monkeypatch.setattr(recursive, "residual", lambda p, q: jnp.maximum(p - q, 0.0))
    assert not follows_the_law()


@pytest.mark.slow
def test_a_law_of_the_draft_that_keeps_its_rejected_token(monkeypatch):
    # The more siblings are tried, the more probability is not theirs.
    monkeypatch.setattr(recursive, "without", lambda logits, token: logits)
    assert not follows_the_law(tree=Tree.branching((4,)), temperature=0.5)


@pytest.mark.slow
def test_a_law_of_the_draft_at_another_temperature(monkeypatch):
    def colder(self, noise, candidates, *target_side, tree):
        candidates = replace(candidates, draft_logits=candidates.draft_logits / 0.5)
        return verify(self, noise, candidates, *target_side, tree=tree)

    monkeypatch.setattr(WithoutReplacement, "verify", colder)
    assert not follows_the_law()


def test_one_uniform_for_all_siblings(monkeypatch):
    def shared(self, keys, length, sampling, **shapes):
        noise = sample_noise(self, keys, length, sampling, **shapes)
        return replace(
            noise, uniforms=jnp.broadcast_to(noise.uniforms[:, :1], noise.uniforms.shape)
        )

    monkeypatch.setattr(WithoutReplacement, "sample_noise", shared)
    assert not follows_the_law()


def test_drawn_siblings_that_are_ranked_again(monkeypatch):
    def ranked(self, noise, logits, **where):
        tokens, there = draw(self, noise, logits, **where)
        likelihood = jnp.take_along_axis(logits, tokens, axis=-1)
        order = jnp.argsort(-likelihood, axis=-1)
        return jnp.take_along_axis(tokens, order, axis=-1), there

    monkeypatch.setattr(WithoutReplacement, "draw", ranked)
    assert not follows_the_law()


def test_candidates_that_are_chosen_and_weighed_by_a_soft_law(monkeypatch):
    def likeliest(self, noise, logits, *, tree, depth, nodes):
        tokens = jax.lax.top_k(logits, tree.children(depth))[1]
        return tokens, jnp.ones(tokens.shape, bool)

    monkeypatch.setattr(WithoutReplacement, "draw", likeliest)
    assert not follows_the_law()


def for_itself(weight, p, q):
    """The weight of one token, whatever those above it left over."""
    return extend_weight(1.0, p, q)


def without_its_weight(weight, p, q):
    """What a path is left, weighed as if nothing above it had been lost."""
    return rejection_residual(weight, p, q)[0], rejection.residual(p, q)


def unchanged(weight, p, q):
    """A node's weight after a rejection below it is that which it had before."""
    return weight, rejection_residual(weight, p, q)[1]


BREAKS = (
    ("extend_weight", for_itself),
    ("rejection_residual", without_its_weight),
    ("rejection_residual", unchanged),
)
FIRST = block, BREAKS[0]


@pytest.mark.parametrize(
    ("rule", "tree", "piece", "broken"),
    [
        pytest.param(rule, tree, *breaks, marks=() if (rule, breaks) == FIRST else pytest.mark.slow)
        for rule, tree in ((block, Tree.chain(2)), (traversal, PAIRS))
        for breaks in BREAKS
    ],
)
def test_paths_that_are_weighed_wrongly(rule, tree, piece, broken, monkeypatch):
    monkeypatch.setattr(paths, piece, broken)
    assert not follows_the_law(rule, tree, temperature=1.0, top_k=3)


@pytest.mark.slow
def test_siblings_that_are_traversed_as_if_each_were_the_first(monkeypatch):
    monkeypatch.setattr(paths, "without", lambda logits, token: logits)
    assert not follows_the_law(traversal, Tree.branching((4,)), temperature=0.5)


@pytest.mark.slow
def test_parents_that_are_tested_before_their_children(monkeypatch):
    def backwards(tree):
        lines = right(tree)
        return np.where(lines == tree.size, -1, lines)

    right = paths._paths_to_nodes
    monkeypatch.setattr(paths, "_paths_to_nodes", backwards)
    assert not follows_the_law(traversal)


@pytest.mark.slow
def test_drafting_testing_and_emitting_with_the_same_noise(monkeypatch):
    monkeypatch.setattr(rejection, "EMITTING", rejection.DRAFTING)
    assert not follows_the_law()


@pytest.mark.slow
def test_penalties_that_ignore_the_tokens_of_the_block(monkeypatch):
    def without_counts(logits, sampling, counts, tree_context=None):
        return process_logits(logits, sampling, counts)

    how = {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5}
    assert follows_the_law(**how)
    monkeypatch.setattr(decode, "process_logits", without_counts)
    assert not follows_the_law(**how)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "tree"),
    [
        (without_replacement, PAIRS),
        (without_replacement, Tree.chain(2)),
        (block, Tree.chain(2)),
        (traversal, PAIRS),
    ],
)
def test_none_of_this_is_so_of_the_rules_as_they_are(rule, tree):
    assert follows_the_law(rule, tree)
