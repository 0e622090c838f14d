"""Every rule keeps the law of the target, and each refuses what it would not be exact for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import (
    SMALLEST_P,
    counts_of,
    enumerable_params,
    head_params,
    head_with_few_tokens,
    joint_law,
    p_value,
    speculative_draws,
)

from jspec import (
    Candidates,
    Growth,
    LookupDrafter,
    Rule,
    SmallModelDrafter,
    Tree,
    decode,
    prompts,
    sampling,
)
from jspec.core.candidates import Draws
from jspec.verify import (
    block,
    coupled,
    one_sample,
    token_level,
    traversal,
    with_replacement,
    without_replacement,
)
from jspec.verify.rejection import residual

HOW = {
    "T=0.3": {"temperature": 0.3},
    "T=1": {"temperature": 1.0},
    "T=1.5": {"temperature": 1.5},
    "top-k": {"temperature": 1.0, "top_k": 3},
    "top-p": {"temperature": 1.5, "top_p": 0.8},
    "min-p": {"temperature": 1.5, "min_p": 0.2},
    "penalties": {"temperature": 1.0, "repetition": 1.5, "presence": 0.4, "frequency": 0.3},
}
CHAIN, PAIRS, RAGGED = (
    Tree.chain(2),
    Tree.branching((2, 2)),
    Tree.from_paths([(0, 0), (0, 1), (0, 2), (1,), (2,)]),
)
GROWN = Growth(2, 2, 5)
PAIRINGS = [
    (token_level, CHAIN),
    (without_replacement, RAGGED),
    *(
        pytest.param(*pairing, marks=pytest.mark.slow)
        for pairing in (
            (coupled, RAGGED),
            (one_sample, GROWN),
            (block, CHAIN),
            (traversal, RAGGED),
            (coupled, GROWN),
            (one_sample, PAIRS),
            (with_replacement, PAIRS),
            (with_replacement, RAGGED),
            (without_replacement, CHAIN),
            (without_replacement, PAIRS),
            (block, Tree.chain(3)),
            (traversal, CHAIN),
            (traversal, PAIRS),
            (traversal, Tree.branching((2, 1, 2))),
        )
    ),
]
ROUNDS = 60_000
# Five standard deviations of a frequency near one half.
CLOSE = 5 * 0.5 / ROUNDS**0.5
ALONG_CHAINS = (token_level, block)
WEIGHING = (*ALONG_CHAINS, with_replacement, without_replacement, traversal)


def name_of(value: object) -> str:
    return str(getattr(value, "__name__", value)).removeprefix("jspec.verify.")


@pytest.mark.parametrize(("rule", "tree"), PAIRINGS, ids=name_of)
def test_the_text_follows_the_law_of_the_target_under_every_rule(rule, tree):
    for seed, (name, how) in enumerate(HOW.items()):
        written = speculative_draws(100 + seed, rule=rule, tree=tree, **how)
        p = p_value(counts_of(written), joint_law(**how))
        # A round that keeps a whole path writes one token more than the tree is deep.
        cut_short = 1 - written.kept_by_depth[:, -1].sum() / written.rounds.sum()
        print(f"{name}: p = {p:.3f}, {written.tokens_per_round:.2f} tokens per round")
        assert p > SMALLEST_P, name
        assert cut_short > 0.3, name
        assert written.tokens_per_round > 1.05, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "tree"),
    [
        (without_replacement, RAGGED),
        (token_level, CHAIN),
        (block, CHAIN),
        (traversal, RAGGED),
        (with_replacement, PAIRS),
        (coupled, RAGGED),
        (one_sample, PAIRS),
    ],
    ids=name_of,
)
def test_a_draft_that_has_not_every_token_does_not_sway_the_law(rule, tree):
    how_to_draft = {"kind": head_with_few_tokens, "draft": head_params}
    for seed, name in enumerate(("T=1.5", "penalties")):
        how = HOW[name]
        written = speculative_draws(130 + seed, rule=rule, tree=tree, **how_to_draft, **how)
        p = p_value(counts_of(written), joint_law(**how))
        print(f"{name}: p = {p:.3f}, {written.tokens_per_round:.2f} tokens per round")
        assert p > SMALLEST_P, name
        assert written.tokens_per_round > 1.05, name
        missing = np.isin(written.tokens, (1, 4))
        assert missing.any() and not np.asarray(written.guessed)[missing].any()


@pytest.mark.parametrize("rule", WEIGHING, ids=name_of)
def test_a_draft_equal_to_the_target_is_always_kept(rule):
    written = speculative_draws(
        110, rule=rule, tree=CHAIN, draft=enumerable_params, temperature=1.0
    )
    np.testing.assert_array_equal(written.rounds, 1)
    assert p_value(counts_of(written), joint_law(temperature=1.0)) > SMALLEST_P


@pytest.mark.parametrize("rule", [*WEIGHING, one_sample, coupled], ids=name_of)
def test_where_no_guess_is_possible_none_is_kept_and_the_law_is_right(rule):
    tree = Tree.chain(1) if rule in ALONG_CHAINS else Tree.branching((2,))
    p, q = [0, 0, 0.7, 0.3], [0.5, 0.5, 0, 0]
    law, accepted = one_round(rule, tree, p, q)
    assert accepted == 0
    np.testing.assert_allclose(law, p, atol=CLOSE)


def test_a_draft_that_is_certain_does_not_sway_a_law_that_is_not():
    p = [0.5, 0.3, 0.2]
    for rule in (with_replacement, without_replacement, traversal):
        law, _ = one_round(rule, Tree.branching((3,)), p, [1, 0, 0])
        np.testing.assert_allclose(law, p, atol=CLOSE)


@pytest.mark.parametrize("rule", [without_replacement, traversal], ids=name_of)
def test_what_a_sure_draft_would_say_next_is_weighed_too(rule):
    # In float32 its law has nothing but the first token: exp(-95) is 0 there.
    p, q = [0, 0.9, 0.1], np.exp([0, -100, -95])
    law, _ = one_round(rule, Tree.branching((2,)), p, q)
    np.testing.assert_allclose(law, p, atol=CLOSE)


def test_chosen_candidates_with_a_soft_law_go_wrong_under_rejection_and_right_under_one_sample():
    p, q = [0.5, 0.3, 0.2], [0.6, 0.4, 0]
    tree = Tree.branching((2,))
    wrong, _ = one_round(without_replacement, tree, p, q, chosen=[0, 1])
    np.testing.assert_allclose(wrong, [5 / 6, 0, 1 / 6], atol=CLOSE)
    right, _ = one_round(one_sample, tree, p, q, chosen=[0, 1])
    np.testing.assert_allclose(right, p, atol=CLOSE)


@pytest.mark.parametrize("rule", [token_level, block, traversal], ids=name_of)
def test_a_drawn_candidate_that_is_dropped_for_what_it_is_goes_wrong(rule):
    p, q = [0.9, 0.1], [0.5, 0.5]
    right, _ = one_round(rule, Tree.chain(1), p, q)
    np.testing.assert_allclose(right, p, atol=CLOSE)
    wrong, _ = one_round(rule, Tree.chain(1), p, q, dropped=1)
    np.testing.assert_allclose(wrong, [0.95, 0.05], atol=CLOSE)


def one_round(
    rule: Rule,
    tree: Tree,
    p: list[float],
    q: list[float],
    chosen: list[int] | None = None,
    dropped: int | None = None,
) -> tuple[np.ndarray, float]:
    """The law `[V]` of the token after a root, and how often it was a child of it, from many rounds
    with the same laws `p` of the target and `q` of the draft.

    Args:
      chosen: children that are not drawn; dropped: a token that is not valid where it is drawn.
    """
    keys = jax.random.split(jax.random.key(111), ROUNDS)
    how = sampling(ROUNDS, temperature=1.0)
    dice = rule.roll(keys, jnp.full(ROUNDS, 5), how, tree=tree, vocabulary=len(p))
    with np.errstate(divide="ignore"):
        draft = jnp.broadcast_to(jnp.asarray(np.log(q), jnp.float32), (ROUNDS, 1, len(q)))
    tokens, there = rule.draw(dice, draft, tree=tree, depth=0, nodes=np.array([0]))
    if chosen is not None:
        tokens = jnp.broadcast_to(jnp.array(chosen), tokens.shape)
    if dropped is not None:
        there &= tokens != dropped
    root = jnp.zeros((ROUNDS, 1), jnp.int32)
    candidates = Candidates(
        tokens=jnp.concatenate([root, tokens[:, 0]], axis=1),
        parent=jnp.broadcast_to(jnp.asarray(tree.parents), (ROUNDS, tree.size)),
        valid=jnp.concatenate([root == 0, there[:, 0]], axis=1),
        logits=draft if rule.WEIGHS else None,
    )
    target = jnp.broadcast_to(jnp.log(jnp.array(p)), (ROUNDS, tree.size, len(p)))
    verdict = rule.verify(dice, candidates, target, how, tree=tree)
    child = np.asarray(candidates.tokens)[np.arange(ROUNDS), np.asarray(verdict.path)[:, 1]]
    kept = np.asarray(verdict.count) == 2
    first = np.where(kept, child, verdict.next)
    return np.bincount(first, minlength=len(p)) / ROUNDS, kept.mean()


@pytest.mark.parametrize("kind", ["look-up chain", "grown chain"])
@pytest.mark.parametrize("rule", WEIGHING, ids=name_of)
def test_a_drafter_that_chooses_its_candidates_is_refused(rule, kind, target, params):
    drafter = {
        "look-up chain": LookupDrafter(Tree.chain(2)),
        "grown chain": SmallModelDrafter(target, Growth(1, 2, 3)),
    }[kind]
    with pytest.raises(ValueError, match=f"^rule='{name_of(rule)}' weighs draws"):
        decode.begin(
            params,
            (),
            prompts([[1, 2]], context=64, tokens=4),
            target=target,
            drafter=drafter,
            rule=rule,
            tokens=4,
        )


@pytest.mark.parametrize("rule", ALONG_CHAINS, ids=name_of)
def test_a_rule_along_chains_refuses_a_tree(rule):
    said = f"^rule='{name_of(rule)}' follows a chain, and the tree has 7"
    with pytest.raises(ValueError, match=said):
        rule.admit(PAIRS, Draws.RULE)


def test_the_residual_of_equal_laws_is_the_law():
    p = jnp.array([0.5, 0.3, 0.2])
    np.testing.assert_array_equal(residual(p, p), p)
    np.testing.assert_allclose(residual(p, jnp.array([0.2, 0.6, 0.2])), [1, 0, 0])
