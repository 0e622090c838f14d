"""The published multi-candidate method does what its code does, is not exact, and says so."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import (
    PROMPT,
    SMALLEST_P,
    counts_of,
    enumerable,
    enumerable_params,
    joint_law,
    p_value,
    speculative_draws,
    unrelated_params,
)
from published import TOKENS, published
from scipy import optimize
from texts import NO_STOPS, compiled_afresh, near

from jspec import Growth, LookupDrafter, SmallModelDrafter, Tree, decode, generate, prompts
from jspec.bench.acceptance import acceptance
from jspec.core.candidates import Draws
from jspec.core.sampling import sampling
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stopping import Confidence, Running
from jspec.draft.target_started import LossyWarning, TargetStartedDrafter, TargetStartedParams
from jspec.verify import block, coupled, lossy, one_sample, token_level, without_replacement

FORK, STATIC, SINGLE = Tree.fork(2, 3), Tree.branching((2, 2, 2)), Tree.chain(3)
ROWS = 12
TEMPERATURES = np.tile([0.0, 0.5, 1.0, 1.5], ROWS // 4)


def started(tree: Tree) -> TargetStartedDrafter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyWarning)
        return TargetStartedDrafter(SmallModelDrafter(enumerable, tree), enumerable)


def beside(draft):
    """A draft's parameters with the target's."""
    return TargetStartedParams(draft, enumerable_params())


def cousin():
    """Of a draft that is often right."""
    return jax.jit(near)(enumerable_params(), jax.random.key(45), 0.2)


def lossy_draws(seed: int, tree: Tree, **how: float):
    draft = beside(unrelated_params())
    return speculative_draws(seed, rule=lossy, tree=tree, draft=lambda: draft, kind=started, **how)


def off(written, law: np.ndarray) -> float:
    """The total variation between what was written and a law."""
    counts = counts_of(written)
    return np.abs(counts / counts.sum() - law).sum() / 2


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param(SINGLE, marks=pytest.mark.slow, id="one chain"),
        pytest.param(FORK, id="fork"),
        pytest.param(STATIC, marks=pytest.mark.slow, id="static"),
    ],
)
def test_the_text_does_not_follow_the_law_of_the_target(tree):
    law = joint_law(temperature=1.0)
    written = lossy_draws(201, tree, temperature=1.0)
    print(f"TV {off(written, law):.3f}, {written.tokens_per_round:.2f} tokens a round")
    assert p_value(counts_of(written), law) < 1e-9
    assert off(written, law) > 0.1


@pytest.mark.slow
def test_one_chain_is_exact_once_every_residual_is_right():
    """Which is token-level rejection below the token that the target has drawn already."""
    law = joint_law(temperature=1.0)
    right = speculative_draws(202, rule=token_level, tree=Tree.chain(2), temperature=1.0)
    print(f"TV {off(right, law):.3f}")
    assert p_value(counts_of(right), law) > SMALLEST_P
    wrong = lossy_draws(202, SINGLE, temperature=1.0)
    print(f"TV {off(wrong, law):.3f} as published")
    assert p_value(counts_of(wrong), law) < 1e-9


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param(SINGLE, marks=pytest.mark.slow, id="one chain"),
        pytest.param(Tree.fork(3, 3), id="fork"),
        pytest.param(STATIC, id="static"),
    ],
)
def test_the_text_is_that_of_the_published_loop_with_the_same_dice(tree):
    written = ours(tree)
    texts, rounds = theirs(tree)
    np.testing.assert_array_equal(written.tokens, texts)
    # One round more asks for the law after the prompt.
    np.testing.assert_array_equal(written.rounds, [1 + count for count in rounds])
    kept = np.asarray(written.kept_by_depth).sum(axis=0)
    print(f"{written.rounds.sum()} rounds, kept by depth {kept}")
    assert written.rounds.sum() > 60 and np.all(kept[1:] > 10)


@pytest.mark.slow
@pytest.mark.parametrize("tree", [Tree.fork(3, 3), STATIC], ids=["fork", "static"])
@pytest.mark.parametrize("broken", ["level", "residual", "uniform", "tie"])
def test_a_step_that_is_not_the_published_one_is_noticed(broken, tree, monkeypatch):
    fork, verify = lossy.is_fork, lossy.verify

    def with_one_uniform(dice, *round, tree):
        test = jnp.broadcast_to(dice.test[:, :1], dice.test.shape)
        return verify(dice.replace(test=test), *round, tree=tree)

    def with_the_last_of_ties(dice, candidates, *round, tree):
        verdict = verify(dice, candidates, *round, tree=tree)
        alone = verdict.count == 1
        last = jnp.where(candidates.valid & (tree.depths == 1)[None], jnp.arange(tree.size), 0)
        root = jnp.where(alone, last.max(axis=1), verdict.path[:, 1])
        path = jnp.where(alone[:, None], verdict.path.at[:, 1:].set(root[:, None]), verdict.path)
        token = jnp.take_along_axis(candidates.tokens, root[:, None], axis=1)[:, 0]
        return verdict.replace(path=path, next=jnp.where(alone, token, verdict.next))

    name, wrong = {
        "level": ("is_fork", lambda tree: not fork(tree)),
        "residual": ("residual", lambda p, q: p),
        "uniform": ("verify", with_one_uniform),
        "tie": ("verify", with_the_last_of_ties),
    }[broken]
    monkeypatch.setattr(lossy, name, wrong)
    afresh = compiled_afresh(decode.generate.__wrapped__, "target", "drafter", "rule", "tokens")
    assert np.any(np.asarray(ours(tree, afresh).tokens) != theirs(tree)[0])


def ours(tree: Tree, decode=generate):
    return decode(
        enumerable_params(),
        beside(cousin()),
        prompts([PROMPT] * ROWS, context=enumerable.config.context, tokens=TOKENS),
        jax.random.split(jax.random.key(203), ROWS),
        sampling(ROWS, temperature=TEMPERATURES, stops=NO_STOPS),
        target=enumerable,
        drafter=started(tree),
        rule=lossy,
        tokens=TOKENS,
    )


@functools.cache
def theirs(tree: Tree) -> tuple[list, list]:
    """Texts and rounds of the published loop."""
    keys, draft = jax.random.split(jax.random.key(203), ROWS), cousin()
    loops = [published(key, tree, t, draft) for key, t in zip(keys, TEMPERATURES, strict=True)]
    return [text for text, _ in loops], [rounds for _, rounds in loops]


def test_the_longest_path_wins_over_the_targets_best_token():
    """At temperature 0: the draft is wrong after root 0, the best token, and right after root 1."""
    tree = Tree.fork(2, 2)
    how = sampling(1)
    dice = lossy.roll(jax.random.key(0)[None], jnp.array([3]), how, tree=tree, vocabulary=4)
    candidates = decode.Candidates(
        tokens=jnp.array([[3, 0, 1, 2, 2]]),
        parent=jnp.array([tree.parents]),
        valid=jnp.ones((1, 5), bool),
        logits=jnp.zeros((1, 3, 4)),
    )
    best = jnp.array([0, 3, 2, 0, 0])
    target = 9 * jax.nn.one_hot(best, 4)[None]
    verify = jax.jit(lambda *round: lossy.verify(*round, tree=tree))
    verdict = verify(dice, candidates, target, how)
    assert (verdict.count[0], verdict.next[0]) == (2, 2)
    np.testing.assert_array_equal(verdict.path[0], [0, 2, 4])
    none = candidates.replace(valid=jnp.arange(5)[None] == 0)
    assert verify(dice, none, target, how).count[0] == 0


@pytest.mark.parametrize("rule", [coupled, one_sample, token_level, block, without_replacement])
@pytest.mark.parametrize("tree", [SINGLE, FORK])
def test_an_exact_rule_refuses_roots_of_the_targets_law(rule, tree):
    if rule in (token_level, block) and tree == FORK:
        tree = SINGLE
    with pytest.raises(ValueError, match="the target has yet to draw.*it is node 0 of every tree"):
        begin(rule, started(tree))


@pytest.mark.parametrize(
    ("drafter", "said"),
    [
        (SmallModelDrafter(enumerable, FORK), "rule='lossy' takes roots of the target's law"),
        (SmallModelDrafter(enumerable, Growth(2, 2, 3)), "give TargetStartedDrafter, or an exact"),
        (LookupDrafter(FORK), "rule='lossy' takes roots of the target's law"),
        (lambda: started(Tree.branching((2,))), "tree of 3 nodes: rule='lossy' follows roots"),
        (lambda: started(Tree.comb((2, 2))), "as many children: give fork:2x4"),
        (lambda: started(Growth(2, 2, 3)), "tree of 3 nodes: rule='lossy' follows roots"),
    ],
)
def test_the_lossy_rule_refuses_other_drafters_and_other_trees(drafter, said):
    with pytest.raises(ValueError, match=said):
        begin(lossy, drafter() if callable(drafter) else drafter)


def begin(rule, drafter):
    batch = prompts([PROMPT], context=64, tokens=4)
    params = beside(enumerable_params())
    models = {"target": enumerable, "drafter": drafter, "rule": rule}
    return decode.begin(enumerable_params(), params, batch, **models, tokens=4)


def test_roots_are_for_small_models():
    with pytest.raises(ValueError, match="drafter=LookupDrafter: .* so give SmallModelDrafter"):
        TargetStartedDrafter(LookupDrafter(FORK), enumerable)


def test_roots_are_drawn_by_the_targets_parameters():
    with pytest.raises(ValueError, match="give TargetStartedParams, the draft's"):
        started(FORK).start({}, jnp.zeros((1, 64), jnp.int32), jnp.array([2]), None)


def test_who_makes_the_drafter_is_told_what_it_does_to_the_text():
    with pytest.warns(LossyWarning, match="off its law by a total variation of .16") as caught:
        TargetStartedDrafter(SmallModelDrafter(enumerable, FORK), enumerable)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_it_is_no_rule_that_is_offered():
    from jspec import verify

    assert "lossy" not in verify.__all__ and started(FORK).draws is Draws.TARGET


@pytest.mark.parametrize("tree", [SINGLE, FORK, STATIC], ids=["one chain", "fork", "static"])
def test_all_that_a_draft_which_is_the_target_guesses_is_kept(tree):
    """The roots are the target's and no guesses, and the round that asks for them has none."""
    tokens = 4 * tree.depth
    written = generate(
        enumerable_params(),
        beside(enumerable_params()),
        prompts([PROMPT] * 4, context=64, tokens=tokens),
        jax.random.split(jax.random.key(206), 4),
        sampling(4, temperature=1.0, stops=NO_STOPS),
        target=enumerable,
        drafter=started(tree),
        rule=lossy,
        tokens=tokens,
    )
    np.testing.assert_array_equal(written.rounds, 5)
    np.testing.assert_array_equal(written.kept_by_depth, 4)
    rates = acceptance(written)
    assert rates["acceptance_rate"] == rates["acceptance_rate_drafted"] == 1
    assert rates["levels_per_round"] == tree.depth - 1
    guesses = tree.size - 1 - tree.children(0)
    if tree != STATIC:
        np.testing.assert_array_equal(written.drafted, 4 * guesses)


@pytest.mark.slow
def test_drafting_may_stop_early_below_roots():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyWarning)
        drafter = EarlyDrafter(SmallModelDrafter(enumerable, FORK), Confidence(0.3))
        drafter = TargetStartedDrafter(drafter, enumerable)
    written = generate(
        enumerable_params(),
        beside(EarlyParams(cousin())),
        prompts([PROMPT] * 8, context=64, tokens=TOKENS),
        jax.random.split(jax.random.key(204), 8),
        sampling(8, temperature=1.0, stops=NO_STOPS),
        target=enumerable,
        drafter=drafter,
        rule=lossy,
        tokens=TOKENS,
    )
    assert np.all(written.length == TOKENS)
    levels = np.asarray(written.levels) / np.asarray(written.kept_by_depth)[:, 0]
    assert 0 < levels.min() and levels.mean() < FORK.depth - 1
    # All rows ask in the first round, in which nobody waits for anybody.
    most = (np.asarray(written.rounds) - 1) * (FORK.depth - 1)
    assert np.all(np.asarray(written.levels + written.waited) <= most)


def test_a_share_of_kept_levels_is_none_where_the_first_is_the_targets():
    with pytest.raises(ValueError, match="^stop=running takes every level .* use confidence"):
        TargetStartedDrafter(EarlyDrafter(SmallModelDrafter(enumerable, FORK), Running(0.3)), None)


@pytest.mark.parametrize("rule", [pytest.param(coupled, marks=pytest.mark.slow), token_level])
def test_the_root_of_an_exact_round_is_what_the_target_chose_in_the_last(rule, monkeypatch):
    """So the exact form of a target-started tree, one root, is every tree of ours."""
    right, seen = rule.verify, []

    def watched(dice, candidates, logits, sampling, *, tree):
        verdict = right(dice, candidates, logits, sampling, tree=tree)
        seen.append((candidates.tokens[:, 0], verdict.next))
        return verdict

    drafter, draft = SmallModelDrafter(enumerable, Tree.chain(2)), cousin()
    models = {"target": enumerable, "drafter": drafter, "rule": rule}
    keys = jax.random.split(jax.random.key(205), 4)
    batch = prompts([PROMPT] * 4, context=64, tokens=24)
    how = sampling(4, temperature=1.0, stops=NO_STOPS)
    monkeypatch.setattr(rule, "verify", watched)

    @jax.jit
    def advance(state):
        state = decode.speculate(enumerable_params(), draft, state, keys, how, **models)
        return state, *seen.pop()

    state = decode.begin(enumerable_params(), draft, batch, **models, tokens=24)
    chosen = np.full(4, PROMPT[-1])
    for _ in range(6):
        state, root, following = advance(state)
        np.testing.assert_array_equal(root, chosen)
        chosen = following


def test_roots_that_are_drawn_before_the_drafts_cannot_help_an_exact_scheme():
    """No coupling of any number of chains keeps the first draft oftener than one chain does, if
    the root that is written does not hang on what was drafted."""
    for seed in range(3):
        root, p, q = some_laws(np.random.default_rng(seed))
        one = (root * np.minimum(p, q).sum(axis=1)).sum()
        assert best_coupling(root, p, q, choose=False) == pytest.approx(one)


def test_roots_that_are_chosen_by_their_drafts_can_help_an_exact_scheme():
    """The target writes token 0 after either root, and the draft guesses it every second time."""
    root, p, q = np.full(2, 0.5), np.array([[1.0, 0], [1, 0]]), np.full((2, 2), 0.5)
    assert best_coupling(root, p, q, choose=False) == pytest.approx(0.5)
    assert best_coupling(root, p, q, choose=True) == pytest.approx(0.75)


def some_laws(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of roots, and after each root the target's and the draft's, of three tokens."""
    laws = rng.dirichlet(np.ones(3), 7)
    return laws[0], laws[1:4], laws[4:]


def best_coupling(root: np.ndarray, p: np.ndarray, q: np.ndarray, *, choose: bool) -> float:
    """How often at most the token after the root is what was drafted there, one draft for every
    root there is, if root and token follow the target's law.

    Args:
      choose: whether the drafts may sway which root is written.
    """
    roots = range(len(root))
    drafts = list(itertools.product(roots, repeat=len(root)))
    cells = list(itertools.product(range(len(drafts)), roots, roots))
    chance = np.array([np.prod([q[r, d[r]] for r in roots]) for d in drafts])
    wanted = [(lambda d, r, x, i=i: d == i, chance[i]) for i in range(len(drafts))]
    wanted += [
        (lambda d, r, x, pair=pair: (r, x) == pair, root[pair[0]] * p[pair])
        for pair in itertools.product(roots, roots)
    ]
    if not choose:
        wanted += [
            (lambda d, r, x, pair=pair: (d, r) == pair, chance[pair[0]] * root[pair[1]])
            for pair in itertools.product(range(len(drafts)), roots)
        ]
    kept = np.array([drafts[d][r] == x for d, r, x in cells], float)
    found = optimize.linprog(
        -kept,
        A_eq=np.array([[float(picks(*cell)) for cell in cells] for picks, _ in wanted]),
        b_eq=np.array([mass for _, mass in wanted]),
    )
    return -found.fun
