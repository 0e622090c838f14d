"""What breaks a rejection rule breaks the law that is there to catch it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import PAIRS, SMALLEST_P, counts_of, joint_law, p_value, speculative_draws
from texts import compiled_afresh

from jspec import Tree, decode
from jspec.core.sampling import warp
from jspec.verify import block, recursive, rejection, token_level, traversal, without_replacement

HOT = {"temperature": 1.0}
carried, rejected = block.carried, block.rejected
verify, roll, draw = (
    without_replacement.verify,
    without_replacement.roll,
    without_replacement.draw,
)


def follows_the_law(rule=without_replacement, tree=PAIRS, **how) -> bool:
    """Of the code as it is now, compiled afresh."""
    how = how or HOT
    generate = compiled_afresh(decode.generate.__wrapped__, "target", "drafter", "rule", "tokens")
    written = speculative_draws(120, generate, rule=rule, tree=tree, **how)
    return p_value(counts_of(written), joint_law(**how)) > SMALLEST_P


@pytest.mark.slow
def test_drawing_from_p_in_place_of_the_residual(monkeypatch):
    monkeypatch.setattr(token_level, "residual", lambda p, q: p)
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
    monkeypatch.setattr(without_replacement, "without", lambda logits, token: logits)
    assert not follows_the_law(tree=Tree.branching((4,)), temperature=0.5)


@pytest.mark.slow
def test_a_law_of_the_draft_at_another_temperature(monkeypatch):
    def colder(dice, candidates, *target_side, tree):
        candidates = candidates.replace(logits=candidates.logits / 0.5)
        return verify(dice, candidates, *target_side, tree=tree)

    monkeypatch.setattr(without_replacement, "verify", colder)
    assert not follows_the_law()


def test_one_uniform_for_all_siblings(monkeypatch):
    def shared(keys, length, sampling, **shapes):
        dice = roll(keys, length, sampling, **shapes)
        return dice.replace(test=jnp.broadcast_to(dice.test[:, :1], dice.test.shape))

    monkeypatch.setattr(without_replacement, "roll", shared)
    assert not follows_the_law()


def test_drawn_siblings_that_are_ranked_again(monkeypatch):
    def ranked(dice, logits, **where):
        tokens, there = draw(dice, logits, **where)
        likelihood = jnp.take_along_axis(logits, tokens, axis=-1)
        order = jnp.argsort(-likelihood, axis=-1)
        return jnp.take_along_axis(tokens, order, axis=-1), there

    monkeypatch.setattr(without_replacement, "draw", ranked)
    assert not follows_the_law()


def test_candidates_that_are_chosen_and_weighed_by_a_soft_law(monkeypatch):
    def likeliest(dice, logits, *, tree, depth, nodes):
        tokens = jax.lax.top_k(logits, tree.children(depth))[1]
        return tokens, jnp.ones(tokens.shape, bool)

    monkeypatch.setattr(without_replacement, "draw", likeliest)
    assert not follows_the_law()


def for_itself(weight, p, q):
    """The weight of one token, whatever those above it left over."""
    return carried(1.0, p, q)


def without_its_weight(weight, p, q):
    """What a path is left, weighed as if nothing above it had been lost."""
    return rejected(weight, p, q)[0], rejection.residual(p, q)


def as_it_was(weight, p, q):
    """A node's weight after a rejection below it is that which it had before."""
    return weight, rejected(weight, p, q)[1]


BREAKS = (("carried", for_itself), ("rejected", without_its_weight), ("rejected", as_it_was))
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
    monkeypatch.setattr(rule, piece, broken)
    assert not follows_the_law(rule, tree, temperature=1.0, top_k=3)


@pytest.mark.slow
def test_siblings_that_are_traversed_as_if_each_were_the_first(monkeypatch):
    monkeypatch.setattr(traversal, "without", lambda logits, token: logits)
    assert not follows_the_law(traversal, Tree.branching((4,)), temperature=0.5)


@pytest.mark.slow
def test_parents_that_are_tested_before_their_children(monkeypatch):
    def backwards(tree):
        lines = right(tree)
        return np.where(lines == tree.size, -1, lines)

    right = traversal._lines
    monkeypatch.setattr(traversal, "_lines", backwards)
    assert not follows_the_law(traversal)


@pytest.mark.slow
def test_drafting_testing_and_emitting_with_the_same_dice(monkeypatch):
    monkeypatch.setattr(rejection, "EMITTING", rejection.DRAFTING)
    assert not follows_the_law()


@pytest.mark.slow
def test_penalties_that_ignore_the_tokens_of_the_block(monkeypatch):
    def forgetful(logits, sampling, history, ahead=None):
        return warp(logits, sampling, history)

    how = {"temperature": 1.0, "presence": 1.0, "frequency": 0.5}
    assert follows_the_law(**how)
    monkeypatch.setattr(decode, "warp", forgetful)
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
