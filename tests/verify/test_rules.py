"""Every rule keeps the target's distribution, and refuses what it would not be exact for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from early_drafts import Coin, network
from laws import (
    HOW,
    ROWS,
    SMALLEST_P,
    counts_of,
    enumerable,
    enumerable_params,
    head_params,
    head_with_few_tokens,
    joint_law,
    p_value,
    small_model,
    speculative_draws,
    unrelated_params,
)
from pairwise import combinations, pairwise

from jspec import (
    Candidates,
    DynamicTree,
    LookupDrafter,
    Rule,
    SamplingParams,
    SmallModelDrafter,
    Tree,
    decode,
    pad_prompts,
)
from jspec.core.candidates import SAMPLED
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stopping import Entropy, RunningAcceptance
from jspec.models.stop_networks import HiddenStateNetwork, hidden_sizes
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

pytestmark = pytest.mark.law

CHAIN, PAIRS = Tree.chain(2), Tree.branching((2, 2))
TREES = {
    "chain:2": CHAIN,
    "chain:3": Tree.chain(3),
    "pairs": PAIRS,
    "ragged": Tree.from_paths([(0, 0), (0, 1), (0, 2), (1,), (2,)]),
    "2x1x2": Tree.branching((2, 1, 2)),
    "dynamic": DynamicTree(2, 2, 5),
}
STOPS = {
    "coin": (Coin(), ()),
    "running": (RunningAcceptance(0.5), ()),
    "entropy": (Entropy(0.2), ()),
    "network": network(
        HiddenStateNetwork, hidden_sizes(enumerable.config.hidden_size), threshold=0.4
    ),
}
DRAFTS = {"small": (small_model, unrelated_params), "head": (head_with_few_tokens, head_params)}
ROUNDS = 60_000
# Five standard deviations of a frequency near one half.
CLOSE = 5 * 0.5 / ROUNDS**0.5
ALONG_CHAINS = (token_level, block)
WEIGHING = (*ALONG_CHAINS, with_replacement, without_replacement, traversal)


RULES = {rule.name: rule for rule in (coupled, one_sample, *WEIGHING)}


def possible(rule: str, tree: str, stop: str, draft: str) -> bool:
    if tree == "dynamic":
        return rule in ("coupled", "one_sample") and stop == "never"
    return RULES[rule] not in ALONG_CHAINS or tree.startswith("chain")


# Rules of siblings along trees that have some: what plain pytest is to have of them.
WHOLE = [
    {"rule": rule, "tree": tree, "stop": "never", "draft": "small"}
    for rule, tree in (
        ("traversal", "ragged"),
        ("without_replacement", "pairs"),
        ("with_replacement", "2x1x2"),
    )
]
# Along these some rounds are known to stop early, and some not, at temperature 1.
SURE = [
    {"rule": rule, "tree": "chain:3", "stop": stop, "draft": draft}
    for rule, stop, draft in (
        ("token_level", "running", "small"),
        ("block", "entropy", "small"),
        ("token_level", "network", "head"),
    )
]


def grid() -> list:
    """Programs, each with its ways to sample: every pair of values meets in one of the rows.

    Plain pytest takes of the first whole tree of each rule, and of the first that stops by a coin,
    two ways.
    """
    named = {"rule": RULES, "tree": TREES, "stop": ("never", *STOPS), "draft": DRAFTS}
    programs = pairwise(
        (row for row in combinations(**named) if possible(**row)), first=WHOLE + SURE
    )
    sure = [{**program, "how": "T=1"} for program in SURE]
    rows = pairwise(({**program, "how": how} for program in programs for how in HOW), first=sure)
    quick = {row["rule"]: row for row in reversed(programs) if row["stop"] == "never"}
    quick = [*quick.values(), next(row for row in programs if row["stop"] == "coin")]
    params = []
    for program in programs:
        ways = [row["how"] for row in rows if program.items() <= row.items()]
        few = ways[:2] if program in quick else []
        rest = [way for way in ways if way not in few]
        if few:
            few += [way for way in ("T=1", "penalties") if way not in ways][: 2 - len(few)]
        for part, marks in ((few, ()), (rest, pytest.mark.slow)):
            if part:
                name = " ".join([*program.values(), " & ".join(part)])
                params.append(pytest.param(*program.values(), part, marks=marks, id=name))
    return params


@pytest.mark.parametrize(("rule", "tree", "stop", "draft", "ways"), grid())
def test_text_follows_the_distribution_of_the_target(rule, tree, stop, draft, ways):
    """Whatever the rule, the tree, the draft, what stops it, and how tokens are drawn."""
    program = {"rule": rule, "tree": tree, "stop": stop, "draft": draft}
    make, params = DRAFTS[draft]
    how_to_draft = {"kind": make, "draft": params}
    if stop != "never":
        decides, weights = STOPS[stop]
        how_to_draft = {
            "kind": lambda tree: EarlyDrafter(make(tree), decides),
            "draft": lambda: EarlyParams(params(), weights),
        }
    for seed, name in enumerate(ways):
        written = speculative_draws(
            100 + seed, rule=RULES[rule], tree=TREES[tree], **how_to_draft, **HOW[name]
        )
        p = p_value(counts_of(written), joint_law(**HOW[name]))
        # A round that keeps a whole path writes one token more than the tree is deep.
        cut_short = 1 - written.accepted_by_position[:, -1].sum() / written.num_rounds.sum()
        depth = written.num_draft_levels.sum() / written.num_rounds.sum()
        print(f"{name}: p = {p:.3f}, {written.acceptance_length:.2f} acceptance length")
        assert p > SMALLEST_P, name
        # It says something only where tokens are accepted, and where some are not.
        assert cut_short > 0.3, name
        assert written.acceptance_length > 1.05, name
        if stop == "coin" or (name == "T=1" and program in SURE):
            assert 1 < depth < TREES[tree].depth, name
        # Where a filter leaves fewer tokens than a node has children, a rule that takes the best
        # may fill up with any.
        if draft == "head" and not {"top_k", "top_p", "min_p"} & HOW[name].keys():
            missing = np.isin(written.tokens, (1, 4))
            assert not np.asarray(written.is_draft_token)[missing].any(), name


def test_the_grid_has_every_rule_with_every_tree_stop_draft_and_way_that_it_can_have():
    rows = [(*param.values[:4], how) for param in grid() for how in param.values[4]]
    for rule, compiled in RULES.items():
        mine = [row for row in rows if row[0] == rule]
        chains = [tree for tree in TREES if tree.startswith("chain")]
        trees = chains if compiled in ALONG_CHAINS else set(TREES) - {"dynamic"}
        assert {row[1] for row in mine} - {"dynamic"} == set(trees)
        assert {row[2] for row in mine} == {"never", *STOPS}
        assert {row[3] for row in mine} == set(DRAFTS)
        assert {row[4] for row in mine} == set(HOW)


@pytest.mark.parametrize("rule", WEIGHING, ids=str)
def test_a_draft_equal_to_the_target_is_always_kept(rule):
    written = speculative_draws(
        110, rule=rule, tree=CHAIN, draft=enumerable_params, draws=ROWS, temperature=1.0
    )
    np.testing.assert_array_equal(written.num_rounds, 1)
    assert p_value(counts_of(written), joint_law(temperature=1.0)) > SMALLEST_P


@pytest.mark.parametrize("rule", [*WEIGHING, one_sample, coupled], ids=str)
def test_where_no_draft_token_is_possible_none_is_accepted_and_the_law_is_right(rule):
    tree = Tree.chain(1) if rule in ALONG_CHAINS else Tree.branching((2,))
    p, q = [0, 0, 0.7, 0.3], [0.5, 0.5, 0, 0]
    law, accepted = one_round(rule, tree, p, q)
    assert accepted == 0
    np.testing.assert_allclose(law, p, atol=CLOSE)


def test_one_sample_proposes_the_drafts_likeliest_tokens():
    tree, how = Tree.branching((2,)), SamplingParams.create(1, temperature=1.0)
    keys = jax.random.split(jax.random.key(112), 1)
    noise = one_sample.sample_noise(keys, jnp.full(1, 5), how, tree=tree, vocab_size=4)
    logits = jnp.log(jnp.array([[[0.1, 0.5, 0.3, 0.1]]]))
    tokens, there = one_sample.draw(noise, logits, tree=tree, depth=0, nodes=np.array([0]))
    assert tokens[0, 0].tolist() == [1, 2] and np.all(there)


def test_a_draft_that_is_certain_does_not_sway_a_law_that_is_not():
    p = [0.5, 0.3, 0.2]
    for rule in (with_replacement, without_replacement, traversal):
        law, _ = one_round(rule, Tree.branching((3,)), p, [1, 0, 0])
        np.testing.assert_allclose(law, p, atol=CLOSE)


@pytest.mark.parametrize("rule", [without_replacement, traversal], ids=str)
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


@pytest.mark.parametrize("rule", [token_level, block, traversal], ids=str)
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
    with np.errstate(divide="ignore"):
        p, q = (jnp.asarray(np.log(law), jnp.float32) for law in (p, q))
    first, kept = _one_round(p, q, chosen, dropped, rule=rule, tree=tree)
    return np.bincount(first, minlength=len(p)) / ROUNDS, np.mean(kept)


@functools.partial(jax.jit, static_argnames=("rule", "tree"))
def _one_round(p, q, chosen, dropped, *, rule: Rule, tree: Tree):
    keys = jax.random.split(jax.random.key(111), ROUNDS)
    how = SamplingParams.create(ROUNDS, temperature=1.0)
    noise = rule.sample_noise(keys, jnp.full(ROUNDS, 5), how, tree=tree, vocab_size=len(p))
    draft = jnp.broadcast_to(q, (ROUNDS, 1, len(q)))
    tokens, there = rule.draw(noise, draft, tree=tree, depth=0, nodes=np.array([0]))
    if chosen is not None:
        tokens = jnp.broadcast_to(jnp.array(chosen), tokens.shape)
    if dropped is not None:
        there &= tokens != dropped
    root = jnp.zeros((ROUNDS, 1), jnp.int32)
    candidates = Candidates(
        tokens=jnp.concatenate([root, tokens[:, 0]], axis=1),
        parent=jnp.broadcast_to(jnp.asarray(tree.parents), (ROUNDS, tree.size)),
        valid=jnp.concatenate([root == 0, there[:, 0]], axis=1),
        draft_logits=draft if rule.needs_draft_logits else None,
    )
    target = jnp.broadcast_to(p, (ROUNDS, tree.size, len(p)))
    verification = rule.verify(noise, candidates, target, how, tree=tree)
    child = jnp.take_along_axis(candidates.tokens, verification.accepted_path[:, 1:2], axis=1)[:, 0]
    kept = verification.num_accepted == 2
    return jnp.where(kept, child, verification.bonus_token), kept


@pytest.mark.parametrize("kind", ["lookup chain", "grown chain"])
@pytest.mark.parametrize("rule", WEIGHING, ids=str)
def test_a_drafter_that_chooses_its_candidates_is_refused(rule, kind, target, params):
    drafter = {
        "lookup chain": LookupDrafter(Tree.chain(2)),
        "grown chain": SmallModelDrafter(target, DynamicTree(1, 2, 3)),
    }[kind]
    with pytest.raises(ValueError, match=f"^rule='{rule.name}' with candidates chosen"):
        decode.start_decoding(
            params,
            (),
            pad_prompts([[1, 2]], context_length=64, max_new_tokens=4),
            np.full(1, 4),
            target=target,
            drafter=drafter,
            rule=rule,
            room=64,
        )


@pytest.mark.parametrize("rule", ALONG_CHAINS, ids=str)
def test_a_rule_along_chains_refuses_a_tree(rule):
    said = f"^rule='{rule.name}' verifies a chain, and the tree has 7"
    with pytest.raises(ValueError, match=said):
        rule.check_compatible(PAIRS, SAMPLED)


def test_the_residual_of_equal_laws_is_the_law():
    p = jnp.array([0.5, 0.3, 0.2])
    np.testing.assert_array_equal(residual(p, p), p)
    np.testing.assert_allclose(residual(p, jnp.array([0.2, 0.6, 0.2])), [1, 0, 0])
