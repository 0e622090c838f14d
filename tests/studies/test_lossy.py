"""The published multi-candidate method does what its code does, is not exact, and says so."""

import functools
import itertools
import warnings
from dataclasses import replace

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
from texts import NO_STOPS, compiled_again, near

from jspec import DynamicTree, LookupDrafter, SmallModelDrafter, Tree, decode, generate, pad_prompts
from jspec.bench.metrics import acceptance_metrics
from jspec.core.sampling import SamplingParams
from jspec.decode import generate_program
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stopping import Confidence, RunningAcceptance
from jspec.studies.multi_candidate import LOSSY, lossy
from jspec.studies.multi_candidate.lossy import (
    LossyWarning,
    TargetStartedDrafter,
    TargetStartedParams,
)
from jspec.verify import block, coupled, one_sample, token_level, without_replacement

FORK, STATIC, SINGLE = Tree.fork(2, 3), Tree.branching((2, 2, 2)), Tree.chain(3)
EXACT = coupled, one_sample, token_level, block, without_replacement
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
    return speculative_draws(seed, rule=LOSSY, tree=tree, draft=lambda: draft, kind=started, **how)


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
    print(f"TV {off(written, law):.3f}, {written.acceptance_length:.2f} tokens a round")
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
def test_the_text_is_that_of_the_published_loop_with_the_same_uniforms(tree):
    written = ours(tree)
    texts, rounds = theirs(tree)
    np.testing.assert_array_equal(written.tokens[:, :TOKENS], texts)
    # One round more asks for the law after the prompt.
    np.testing.assert_array_equal(written.num_rounds, [1 + count for count in rounds])
    kept = np.asarray(written.accepted_by_position).sum(axis=0)
    print(f"{written.num_rounds.sum()} rounds, accepted by depth {kept}")
    assert written.num_rounds.sum() > 60 and np.all(kept[1:] > 10)


@pytest.mark.slow
@pytest.mark.parametrize("tree", [Tree.fork(3, 3), STATIC], ids=["fork", "static"])
@pytest.mark.parametrize("broken", ["level", "residual", "uniform", "tie"])
def test_a_step_that_is_not_the_published_one_is_noticed(broken, tree, monkeypatch):
    fork, verify = lossy.is_fork, lossy.Lossy.verify

    def with_one_uniform(self, noise, *round, tree):
        uniforms = jnp.broadcast_to(noise.uniforms[:, :1], noise.uniforms.shape)
        return verify(self, replace(noise, uniforms=uniforms), *round, tree=tree)

    def with_the_last_of_ties(self, noise, candidates, *round, tree):
        found = verify(self, noise, candidates, *round, tree=tree)
        path, alone = found.accepted_path, found.num_accepted == 1
        last = jnp.where(candidates.valid & (tree.depths == 1)[None], jnp.arange(tree.size), 0)
        root = jnp.where(alone, last.max(axis=1), path[:, 1])
        path = jnp.where(alone[:, None], path.at[:, 1:].set(root[:, None]), path)
        token = jnp.take_along_axis(candidates.tokens, root[:, None], axis=1)[:, 0]
        bonus = jnp.where(alone, token, found.bonus_token)
        return replace(found, accepted_path=path, bonus_token=bonus)

    place, name, wrong = {
        "level": (lossy, "is_fork", lambda tree: not fork(tree)),
        "residual": (lossy, "residual", lambda p, q: p),
        "uniform": (lossy.Lossy, "verify", with_one_uniform),
        "tie": (lossy.Lossy, "verify", with_the_last_of_ties),
    }[broken]
    monkeypatch.setattr(place, name, wrong)
    tokens = np.asarray(ours(tree, compiled_again(generate)).tokens)[:, :TOKENS]
    assert np.any(tokens != theirs(tree)[0])


def ours(tree: Tree, decode=generate):
    return decode(
        enumerable_params(),
        beside(cousin()),
        pad_prompts(
            [PROMPT] * ROWS,
            context_length=enumerable.config.max_position_embeddings,
            max_new_tokens=TOKENS,
        ),
        jax.random.split(jax.random.key(203), ROWS),
        SamplingParams.create(ROWS, temperature=TEMPERATURES.tolist(), stop_token_ids=NO_STOPS),
        target=enumerable,
        drafter=started(tree),
        rule=LOSSY,
        max_new_tokens=TOKENS,
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
    how = SamplingParams.create(1)
    noise = LOSSY.sample_noise(
        jax.random.key(0)[None], jnp.array([3]), how, tree=tree, vocab_size=4
    )
    candidates = decode.Candidates(
        tokens=jnp.array([[3, 0, 1, 2, 2]]),
        parent=jnp.array([tree.parents]),
        valid=jnp.ones((1, 5), bool),
        draft_logits=jnp.zeros((1, 3, 4)),
    )
    best = jnp.array([0, 3, 2, 0, 0])
    target = 9 * jax.nn.one_hot(best, 4)[None]
    verify = jax.jit(lambda *round: LOSSY.verify(*round, tree=tree))
    verification = verify(noise, candidates, target, how)
    assert (verification.num_accepted[0], verification.bonus_token[0]) == (2, 2)
    np.testing.assert_array_equal(verification.accepted_path[0], [0, 2, 4])
    none = replace(candidates, valid=jnp.arange(5)[None] == 0)
    assert verify(noise, none, target, how).num_accepted[0] == 0


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("tree", [SINGLE, FORK])
def test_an_exact_rule_refuses_roots_that_the_target_samples(rule, tree):
    if rule in (token_level, block) and tree == FORK:
        tree = SINGLE
    with pytest.raises(ValueError, match="roots that the target has yet to sample .*own drafter"):
        trace(rule, started(tree))


@pytest.mark.parametrize(
    ("drafter", "said"),
    [
        (
            SmallModelDrafter(enumerable, FORK),
            "rule='lossy' with candidates .*: it takes roots that the target samples",
        ),
        (
            SmallModelDrafter(enumerable, DynamicTree(2, 2, 3)),
            "give TargetStartedDrafter, or an exact",
        ),
        (
            LookupDrafter(FORK),
            "rule='lossy' with candidates .*: it takes roots that the target samples",
        ),
        (lambda: started(Tree.branching((2,))), "tree of 3 nodes: rule='lossy' follows roots"),
        (lambda: started(Tree.comb((2, 2))), "as many children: give fork:2x4"),
        (lambda: started(DynamicTree(2, 2, 3)), "tree of 3 nodes: rule='lossy' follows roots"),
    ],
)
def test_the_lossy_rule_refuses_other_drafters_and_other_trees(drafter, said):
    with pytest.raises(ValueError, match=said):
        trace(LOSSY, drafter() if callable(drafter) else drafter)


def trace(rule, drafter):
    """Of a generation the part before anything is compiled."""
    batch = pad_prompts([PROMPT], context_length=64, max_new_tokens=4)
    draft = beside(enumerable_params())
    # Other drafters take the draft's parameters alone.
    params = draft if isinstance(drafter, TargetStartedDrafter) else draft.draft
    keys, models = jax.random.split(jax.random.key(0), 1), {"target": enumerable, "rule": rule}
    most, room = decode.budget(4, batch, enumerable)
    generate_program.trace(
        enumerable_params(),
        params,
        batch,
        keys,
        SamplingParams.create(1),
        most,
        drafter=drafter,
        room=room,
        **models,
    )


def test_roots_are_for_small_models():
    with pytest.raises(ValueError, match="drafter=LookupDrafter: .* so give SmallModelDrafter"):
        TargetStartedDrafter(LookupDrafter(FORK), enumerable)


def test_roots_are_drawn_by_the_targets_parameters():
    with pytest.raises(ValueError, match="give TargetStartedParams, the draft's"):
        started(FORK).start(
            {}, jnp.zeros((1, 64), jnp.int32), jnp.array([2]), None, capacity=64, chunk=64
        )


def test_who_makes_the_drafter_is_told_what_it_does_to_the_text():
    with pytest.warns(
        LossyWarning, match="off its distribution by a total variation of .16"
    ) as caught:
        TargetStartedDrafter(SmallModelDrafter(enumerable, FORK), enumerable)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_it_is_no_rule_that_is_offered():
    from jspec import verify

    assert "lossy" not in verify.__all__ and not hasattr(verify, "lossy")
    assert not LOSSY.exact and not any(hasattr(rule, "exact") for rule in EXACT)


@pytest.mark.parametrize("tree", [SINGLE, FORK, STATIC], ids=["one chain", "fork", "static"])
def test_all_that_the_target_drafts_for_itself_is_accepted(tree):
    """The roots are the target's and no draft tokens, and the round that asks for them has none."""
    tokens = 4 * tree.depth
    written = generate(
        enumerable_params(),
        beside(enumerable_params()),
        pad_prompts([PROMPT] * 4, context_length=64, max_new_tokens=tokens),
        jax.random.split(jax.random.key(206), 4),
        SamplingParams.create(4, temperature=1.0, stop_token_ids=NO_STOPS),
        target=enumerable,
        drafter=started(tree),
        rule=LOSSY,
        max_new_tokens=tokens,
    )
    np.testing.assert_array_equal(written.num_rounds, 5)
    np.testing.assert_array_equal(written.accepted_by_position, 4)
    rates = acceptance_metrics(written)
    assert rates["acceptance_rate"] == rates["acceptance_rate_drafted"] == 1
    assert rates["drafted_levels_per_round"] == tree.depth - 1
    drafted = tree.size - 1 - tree.children(0)
    if tree != STATIC:
        np.testing.assert_array_equal(written.num_draft_tokens, 4 * drafted)


@pytest.mark.slow
def test_drafting_may_stop_early_below_roots():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyWarning)
        drafter = EarlyDrafter(SmallModelDrafter(enumerable, FORK), Confidence(0.3))
        drafter = TargetStartedDrafter(drafter, enumerable)
    written = generate(
        enumerable_params(),
        beside(EarlyParams(cousin())),
        pad_prompts([PROMPT] * 8, context_length=64, max_new_tokens=TOKENS),
        jax.random.split(jax.random.key(204), 8),
        SamplingParams.create(8, temperature=1.0, stop_token_ids=NO_STOPS),
        target=enumerable,
        drafter=drafter,
        rule=LOSSY,
        max_new_tokens=TOKENS,
    )
    assert np.all(written.length == TOKENS)
    levels = np.asarray(written.num_draft_levels) / np.asarray(written.accepted_by_position)[:, 0]
    assert 0 < levels.min() and levels.mean() < FORK.depth - 1
    # All rows ask in the first round, in which nobody waits for anybody.
    most = (np.asarray(written.num_rounds) - 1) * (FORK.depth - 1)
    assert np.all(np.asarray(written.num_draft_levels + written.wasted_draft_levels) <= most)


def test_a_share_of_accepted_levels_means_nothing_where_the_first_is_the_targets():
    with pytest.raises(
        ValueError, match="^stop_drafting=running takes every level of a tree .* use confidence"
    ):
        TargetStartedDrafter(
            EarlyDrafter(SmallModelDrafter(enumerable, FORK), RunningAcceptance(0.3)), None
        )


@pytest.mark.parametrize("rule", [pytest.param(coupled, marks=pytest.mark.slow), token_level])
def test_the_root_of_an_exact_round_is_what_the_target_chose_in_the_last(rule, monkeypatch):
    """So the exact form of a target-started tree, one root, is every tree of ours."""
    right, seen = type(rule).verify, []

    def watched(self, noise, candidates, logits, sampling, *, tree):
        verification = right(self, noise, candidates, logits, sampling, tree=tree)
        seen.append((candidates.tokens[:, 0], verification.bonus_token))
        return verification

    drafter, draft = SmallModelDrafter(enumerable, Tree.chain(2)), cousin()
    models = {"target": enumerable, "drafter": drafter, "rule": rule}
    keys = jax.random.split(jax.random.key(205), 4)
    batch = pad_prompts([PROMPT] * 4, context_length=64, max_new_tokens=24)
    how = SamplingParams.create(4, temperature=1.0, stop_token_ids=NO_STOPS)
    monkeypatch.setattr(type(rule), "verify", watched)

    @jax.jit
    def advance(state):
        state = decode.speculate(enumerable_params(), draft, state, keys, how, **models)
        return state, *seen.pop()

    most, room = decode.budget(24, batch, enumerable)
    state = decode.start_decoding(enumerable_params(), draft, batch, most, **models, room=room)
    chosen = np.full(4, PROMPT[-1])
    for _ in range(6):
        state, root, following = advance(state)
        np.testing.assert_array_equal(root, chosen)
        chosen = following


def test_roots_that_are_drawn_before_the_drafts_cannot_help_an_exact_scheme():
    """No coupling of any number of chains keeps the first draft oftener than one chain does, if
    the root that is written does not depend on what was drafted."""
    for seed in range(3):
        root, p, q = some_laws(np.random.default_rng(seed))
        one = (root * np.minimum(p, q).sum(axis=1)).sum()
        assert best_coupling(root, p, q, choose=False) == pytest.approx(one)


def test_roots_that_are_chosen_by_their_drafts_can_help_an_exact_scheme():
    """The target writes token 0 after either root, and the draft drafted it every second time."""
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
