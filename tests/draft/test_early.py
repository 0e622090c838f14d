"""Drafting that stops early: the same text, and no more than was drafted is run."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from early_drafts import LONG, Coin, early_draft, network
from texts import TOKENS, Candidate, disagreements, few_tokens, headed, rows_of, speculative_text

from jspec import (
    DynamicTree,
    LookupDrafter,
    SamplingParams,
    Tree,
    generate,
    generate_many,
    make_mesh,
)
from jspec.core.candidates import check_buckets, default_buckets
from jspec.decode import generate_program
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stopping import (
    Confidence,
    Entropy,
    Margin,
    NetworkStop,
    RunningAcceptance,
    StopInputs,
)
from jspec.models.stop_networks import DistributionNetwork, HiddenStateNetwork, hidden_sizes
from jspec.parallel.sharding import shardings
from jspec.verify import coupled, coupling, token_level

pytestmark = pytest.mark.law

STOPS = {
    "confidence": (Confidence(0.4), ()),
    "entropy": (Entropy(0.2), ()),
    "margin": (Margin(0.4), ()),
    "running": (RunningAcceptance(0.3), ()),
    "hidden network": network(HiddenStateNetwork, hidden_sizes(32)),
    "distribution network": network(DistributionNetwork),
    "coin": (Coin(), ()),
}


@pytest.fixture(scope="module")
def cousin(drafts) -> Candidate:
    return drafts["k-ary"]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind == "margin" else pytest.mark.slow) for kind in STOPS],
)
def test_text_is_plain_decodings_wherever_drafting_stops(
    kind, target, params, cousin, batch, plain
):
    draft = early_draft(cousin, *STOPS[kind], tree=LONG)
    written = speculative_text(target, params, batch, draft)
    ties, parted = disagreements(target, params, batch, plain, written)
    assert not parted and ties <= 1
    depth = np.asarray(written.num_draft_levels) / np.asarray(written.num_rounds)
    print(kind, written.acceptance_length, depth.min(), depth.max())
    # It says something only where some rounds stop and others go on.
    assert np.any(depth > 1) and np.any(depth < LONG.depth)
    assert np.any(np.asarray(written.wasted_draft_levels) > 0)


@pytest.mark.slow
def test_heads_and_trees_stop_early_too(target, params, cousin, batch, plain):
    head = headed(few_tokens(target), target, params, Tree.branching((2, 1, 1, 1)))
    for draft in (
        early_draft(head, Confidence(0.2)),
        early_draft(cousin, Coin(), tree=Tree.branching((2, 2, 1, 1)), buckets=(1, 3, 4)),
    ):
        shown = getattr(draft.drafter.drafter, "target", target)
        written = speculative_text(shown, params, batch, draft)
        ties, parted = disagreements(target, params, batch, plain, written)
        assert not parted and ties <= 1
        assert 1 < written.num_draft_levels.sum() / written.num_rounds.sum() < 4


def test_what_a_draft_that_is_always_right_drafted_is_all_kept(target, params, drafts, batch):
    """The draft's own rows are those of the text, wherever the last round stopped."""
    draft = early_draft(drafts["chain"], Coin(), tree=LONG)
    written = speculative_text(target, params, batch, draft)
    accepted = np.asarray(written.accepted_by_position)[:, 1:].sum(axis=1)
    # The budget may end inside the last path.
    missed = np.asarray(written.num_draft_levels) - accepted
    assert np.all((missed >= 0) & (missed <= LONG.depth))
    assert np.all(np.asarray(written.num_rounds) + accepted == TOKENS)
    assert len(set(np.asarray(written.num_rounds).tolist())) > 3


@pytest.mark.parametrize(
    ("rule", "kind"),
    [(coupled, "margin"), (token_level, "running")],
    ids=["coupled", "token_level"],
)
@pytest.mark.slow
def test_a_row_drafts_as_far_as_it_does_alone(rule, kind, target, params, cousin, batch):
    draft = early_draft(cousin, *STOPS[kind], tree=LONG)
    decode = functools.partial(generate, rule=rule)
    together = speculative_text(target, params, batch, draft, tokens=40, decode=decode)
    for row in (0, 5, 11):
        own = rows_of(batch, slice(row, row + 1))
        alone = speculative_text(target, params, own, draft, tokens=40, decode=decode)
        for name in (
            "tokens",
            "num_rounds",
            "accepted_by_rank",
            "num_draft_tokens",
            "num_draft_levels",
        ):
            mine, own = getattr(together, name)[row], getattr(alone, name)[0]
            np.testing.assert_array_equal(mine, own, f"{name} of row {row}")
        assert alone.wasted_draft_levels[0] == 0


@pytest.mark.slow
def test_a_prompt_that_takes_a_seat_remembers_nothing_of_who_sat_there(
    target, params, cousin, batch
):
    draft = early_draft(cousin, *STOPS["running"], tree=LONG)
    together = speculative_text(target, params, batch, draft, tokens=40, decode=generate)
    texts = generate_many(
        params,
        draft.params,
        *batch,
        target=target,
        drafter=draft.drafter,
        max_new_tokens=40,
        batch_size=4,
    )
    for index, text in texts:
        for name in (
            "tokens",
            "num_rounds",
            "accepted_by_rank",
            "num_draft_tokens",
            "num_draft_levels",
        ):
            expected = getattr(together, name)[index]
            np.testing.assert_array_equal(getattr(text, name)[0], expected, name)


@pytest.mark.slow
def test_one_compilation_serves_however_far_is_drafted(target, params, drafts, cousin, batch):
    draft = early_draft(cousin, *STOPS["confidence"], tree=LONG)
    speculate = functools.partial(speculative_text, target, params, batch, decode=generate)
    rounds = {int(speculate(draft).num_rounds.sum())}
    compiled = generate_program._cache_size()
    own = draft._replace(params=EarlyParams(drafts["chain"].params))
    rounds.add(int(speculate(own).num_rounds.sum()))
    assert len(rounds) == 2 and generate_program._cache_size() == compiled


@pytest.mark.slow
def test_on_a_mesh_it_stops_where_it_does_without_one(target, params, cousin, batch, plain):
    mesh = make_mesh(data=8)
    draft = early_draft(cousin, *STOPS["confidence"], tree=LONG)
    alone = speculative_text(target, params, batch, draft)
    with jax.set_mesh(mesh):
        cut = jax.device_put(params, shardings(mesh, target.axes()))
        written = speculative_text(target, cut, batch, draft)
    ties, parted = disagreements(target, params, batch, plain, written)
    assert not parted and ties <= 1
    # A draft whose sums are added up in another order may stop a level sooner or later.
    assert (
        abs(int(written.num_draft_levels.sum()) - int(alone.num_draft_levels.sum()))
        < 0.02 * alone.num_draft_levels.sum()
    )


@pytest.mark.slow
def test_who_never_stops_and_who_stops_at_once(target, params, cousin, batch):
    whole = speculative_text(
        target, params, batch, cousin._replace(drafter=replace(cousin.drafter, tree=LONG))
    )
    never = speculative_text(target, params, batch, early_draft(cousin, Confidence(0.0), tree=LONG))
    np.testing.assert_array_equal(never.accepted_by_rank, whole.accepted_by_rank)
    np.testing.assert_array_equal(never.num_draft_levels, LONG.depth * never.num_rounds)
    assert not np.any(never.wasted_draft_levels)
    once = speculative_text(target, params, batch, early_draft(cousin, Confidence(1.0), tree=LONG))
    np.testing.assert_array_equal(once.num_draft_levels, once.num_rounds)


@pytest.mark.parametrize(
    "tree",
    [Tree.chain(4), Tree.branching((3, 2, 1)), Tree.fork(3, 4), Tree.comb((4, 3, 2)),
     Tree.from_paths([(0, 0, 0), (0, 1), (1, 0), (2,)])],
    ids=lambda tree: str(tree.size),
)  # fmt: skip
def test_a_slice_of_the_tables_is_the_tables_of_the_tree_that_is_cut(tree):
    for depth in range(tree.depth + 1):
        cut = tree.cut(depth)
        nodes = cut.size
        assert cut == Tree(tree.parents[: int(np.sum(tree.depths <= depth))])
        for mask in (tree.mask[:nodes, :nodes], cut.mask):
            np.testing.assert_array_equal(mask, rebuilt(cut))
        fresh = Tree(cut.parents)
        for table in ("depths", "ranks"):
            for other in (cut, fresh):
                np.testing.assert_array_equal(getattr(tree, table)[:nodes], getattr(other, table))
    with pytest.raises(ValueError, match="^depth=9: the tree is"):
        tree.cut(9)


def rebuilt(tree: Tree) -> np.ndarray:
    """The mask, by walking up from every node."""
    mask = np.zeros((tree.size, tree.size), bool)
    for node in range(tree.size):
        above = node
        while above >= 0:
            mask[node, above] = True
            above = tree.parents[above]
    return mask


def test_the_target_runs_the_smallest_slice_that_holds_what_was_drafted(
    target, params, drafts, batch
):
    """A pass over fewer nodes is a pass of fewer rows: of each slice, and of nothing else."""
    ran, drafted = [], []

    @dataclass(frozen=True)
    class Told(EarlyDrafter):
        def propose(self, *args, **how):
            candidates, state = super().propose(*args, **how)
            jax.debug.callback(lambda levels: drafted.append(int(levels)), candidates.num_levels)
            return candidates, state

    @dataclass(frozen=True)
    class Counting:
        inner: object
        config: object

        def forward(self, params, tokens, *rest, **how):
            jax.debug.callback(lambda: ran.append(tokens.shape[1]))
            return self.inner.forward(params, tokens, *rest, **how)

        def logits(self, params, hidden):
            return self.inner.logits(params, hidden)

    alone = rows_of(batch, slice(0, 1))
    draft = early_draft(drafts["chain"], Coin(), tree=LONG)
    draft = draft._replace(drafter=Told(draft.drafter.drafter, Coin()))
    counted = Counting(target, target.config)
    # Long enough for a round of three levels.
    written = speculative_text(counted, params, alone, draft, tokens=192)
    jax.effects_barrier()
    rounds = ran[-int(written.num_rounds[0]) :]
    slices = default_buckets(LONG.depth)
    assert rounds == [1 + min(cut for cut in slices if cut >= levels) for levels in drafted]
    # Three levels are no bucket, and take the next one.
    assert len(set(rounds)) > 2 and 3 in drafted


def test_slices_double_up_to_the_depth():
    assert [default_buckets(depth) for depth in (1, 2, 3, 8, 9)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 9)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda d: EarlyDrafter(LookupDrafter(LONG), Confidence(0.3)),
            "reads a model's draft logits",
        ),
        (
            lambda d: EarlyDrafter(replace(d, tree=DynamicTree(2, 2, 4)), Confidence(0.3)),
            "tree of 4 nodes",
        ),
        (lambda d: EarlyDrafter(d, Confidence(0.3), buckets=(1, 2)), "the tree is 3 deep"),
        (lambda d: EarlyDrafter(d, Confidence(0.3), buckets=(2, 1, 3)), "each once, the smallest"),
        (lambda d: Confidence(1.5), "^threshold=1.5: must be between 0"),
        (lambda d: RunningAcceptance(0.3, decay=2), "^decay=2"),
        (lambda d: HiddenStateNetwork((3, 2)), "^sizes="),
        (lambda d: NetworkStop(DistributionNetwork(), threshold=-1), "^threshold=-1"),
        (lambda d: DistributionNetwork().check_params({"weight": 1}), "these are not parameters"),
        (lambda d: Margin(0.2).check_compatible(token_level), "rule='token_level' has none"),
        (lambda d: EarlyDrafter(d, Confidence(0.3)).start({}, None, None), "takes EarlyParams"),
    ],
)
def test_what_cannot_be_is_refused(make, said, cousin):
    with pytest.raises(ValueError, match=said):
        make(cousin.drafter)


def test_a_network_for_another_width_is_refused(target, params, cousin, batch):
    stop, weights = network(HiddenStateNetwork, hidden_sizes(24))
    with pytest.raises(ValueError, match="trained for a draft of width 24, and this one has 32"):
        speculative_text(target, params, batch, early_draft(cousin, stop, weights))


def test_what_a_sequence_kept_lately_counts_most():
    stop = RunningAcceptance(0.3)
    state = stop.start(2)
    for _ in range(50):
        state = stop.update(state, jnp.array([4, 0]), jnp.array([4, 4]))
    rate = stop.score((), state, jnp.ones(2), None)
    assert rate[0] > 0.95 and rate[1] < 0.05
    state = stop.update(state, jnp.array([0, 4]), jnp.array([4, 4]))
    assert np.all(np.abs(np.asarray(stop.score((), state, jnp.ones(2), None)) - rate) > 0.02)


def test_the_paths_worth_is_what_its_nodes_say():
    logits = jnp.log(jnp.array([[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]]))
    seen = StopInputs(
        coupled,
        jnp.zeros((1, 1, 3)),
        SamplingParams.create(1, temperature=1.0),
        0,
        None,
        logits,
        jnp.array([[[0], [1]]]),
    )
    half = jnp.array([0.5])
    assert np.allclose(Confidence(0.3).score((), (), half, seen), 0.3)
    probs = np.array([0.6, 0.3, 0.1])
    assert np.allclose(
        Entropy(0.3).score((), (), half, seen), 0.5 * np.exp((probs * np.log(probs)).sum())
    )
    tau = coupling.ERROR + coupling.ERROR_PER_TEMPERATURE
    sharp = probs ** (1 / tau) / (probs ** (1 / tau)).sum()
    assert np.allclose(Margin(0.3).score((), (), half, seen), 0.5 * sharp[0], atol=1e-6)


def test_check_slices_takes_what_usual_slices_gives():
    for depth in range(1, 12):
        check_buckets(default_buckets(depth), Tree.chain(depth))
