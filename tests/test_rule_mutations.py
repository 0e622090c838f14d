"""What breaks a rejection rule breaks the law that is there to catch it."""

import jax
import jax.numpy as jnp
import pytest
from laws import PAIRS, SMALLEST_P, counts_of, joint_law, p_value, speculative_draws
from texts import compiled_afresh

from jspec import Tree, decode
from jspec.sampling import warp
from jspec.verify import recursive, rejection, token_level, without_replacement

HOT = {"temperature": 1.0}
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
@pytest.mark.parametrize("tree", [PAIRS, Tree.chain(2)])
def test_none_of_this_is_so_of_the_rules_as_they_are(tree):
    assert follows_the_law(tree=tree)
