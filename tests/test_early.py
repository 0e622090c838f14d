"""Drafting that stops early: the same text, and no more than was drafted is run."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from early_drafts import LONG, Coin, early_draft, network
from texts import TOKENS, Candidate, disagreements, few_tokens, headed, rows_of, speculative_text

from jspec import Growth, LookupDrafter, Tree, generate, generate_many, make_mesh, sampling
from jspec.decode import check_slices, usual_slices
from jspec.draft import early_stopping
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stop_networks import HiddenNetwork, LawNetwork, hidden_sizes
from jspec.draft.stopping import Confidence, Entropy, Margin, Running
from jspec.parallel.sharding import shardings
from jspec.verify import coupled, token_level

STOPS = {
    "confidence": (Confidence(0.4), ()),
    "entropy": (Entropy(0.2), ()),
    "margin": (Margin(0.4), ()),
    "running": (Running(0.3), ()),
    "hidden network": network(HiddenNetwork, hidden_sizes(32)),
    "law network": network(LawNetwork),
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
    depth = np.asarray(written.levels) / np.asarray(written.rounds)
    print(kind, written.tokens_per_round, depth.min(), depth.max())
    # It says something only where some rounds stop and others go on.
    assert np.any(depth > 1) and np.any(depth < LONG.depth)
    assert np.any(np.asarray(written.waited) > 0)


@pytest.mark.slow
def test_heads_and_trees_stop_early_too(target, params, cousin, batch, plain):
    head = headed(few_tokens(target), target, params, Tree.branching((2, 1, 1, 1)))
    for draft in (
        early_draft(head, Confidence(0.2)),
        early_draft(cousin, Coin(), tree=Tree.branching((2, 2, 1, 1)), slices=(1, 3, 4)),
    ):
        shown = getattr(draft.drafter.drafter, "target", target)
        written = speculative_text(shown, params, batch, draft)
        ties, parted = disagreements(target, params, batch, plain, written)
        assert not parted and ties <= 1
        assert 1 < written.levels.sum() / written.rounds.sum() < 4


def test_what_a_draft_that_is_always_right_drafted_is_all_kept(target, params, drafts, batch):
    """The draft's own rows are those of the text, wherever the last round stopped."""
    draft = early_draft(drafts["chain"], Coin(), tree=LONG)
    written = speculative_text(target, params, batch, draft)
    kept = np.asarray(written.kept_by_depth)[:, 1:].sum(axis=1)
    # The budget may end inside the last path.
    missed = np.asarray(written.levels) - kept
    assert np.all((missed >= 0) & (missed <= LONG.depth))
    assert np.all(np.asarray(written.rounds) + kept == TOKENS)
    assert len(set(np.asarray(written.rounds).tolist())) > 3


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
        for name in ("tokens", "rounds", "kept", "drafted", "levels"):
            mine, own = getattr(together, name)[row], getattr(alone, name)[0]
            np.testing.assert_array_equal(mine, own, f"{name} of row {row}")
        assert alone.waited[0] == 0


@pytest.mark.slow
def test_a_prompt_that_takes_a_seat_remembers_nothing_of_who_sat_there(
    target, params, cousin, batch
):
    draft = early_draft(cousin, *STOPS["running"], tree=LONG)
    together = speculative_text(target, params, batch, draft, tokens=40)
    texts = generate_many(
        params, draft.params, *batch, target=target, drafter=draft.drafter, tokens=40, batch=4
    )
    for index, text in texts:
        for name in ("tokens", "rounds", "kept", "drafted", "levels"):
            expected = getattr(together, name)[index]
            np.testing.assert_array_equal(getattr(text, name)[0], expected, name)


@pytest.mark.slow
def test_one_compilation_serves_however_far_is_drafted(target, params, drafts, cousin, batch):
    draft = early_draft(cousin, *STOPS["confidence"], tree=LONG)
    rounds = {int(speculative_text(target, params, batch, draft).rounds.sum())}
    compiled = generate._cache_size()
    own = draft._replace(params=EarlyParams(drafts["chain"].params))
    rounds.add(int(speculative_text(target, params, batch, own).rounds.sum()))
    assert len(rounds) == 2 and generate._cache_size() == compiled


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
    assert abs(int(written.levels.sum()) - int(alone.levels.sum())) < 0.02 * alone.levels.sum()


@pytest.mark.slow
def test_who_never_stops_and_who_stops_at_once(target, params, cousin, batch):
    whole = speculative_text(
        target, params, batch, cousin._replace(drafter=replace(cousin.drafter, tree=LONG))
    )
    never = speculative_text(target, params, batch, early_draft(cousin, Confidence(0.0), tree=LONG))
    np.testing.assert_array_equal(never.kept, whole.kept)
    np.testing.assert_array_equal(never.levels, LONG.depth * never.rounds)
    assert not np.any(never.waited)
    once = speculative_text(target, params, batch, early_draft(cousin, Confidence(1.0), tree=LONG))
    np.testing.assert_array_equal(once.levels, once.rounds)


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
        afresh = Tree(cut.parents)
        for table in ("depths", "ranks"):
            for other in (cut, afresh):
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
            jax.debug.callback(lambda levels: drafted.append(int(levels)), candidates.levels)
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
    written = speculative_text(counted, params, alone, draft)
    jax.effects_barrier()
    rounds = ran[-int(written.rounds[0]) :]
    slices = usual_slices(LONG.depth)
    assert rounds == [1 + min(cut for cut in slices if cut >= levels) for levels in drafted]
    # Three levels are no slice, and want the next.
    assert len(set(rounds)) > 2 and 3 in drafted


def test_slices_double_up_to_the_depth():
    assert [usual_slices(depth) for depth in (1, 2, 3, 8, 9)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 9)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: EarlyDrafter(LookupDrafter(LONG), Confidence(0.3)), "reads a model's guesses"),
        (
            lambda d: EarlyDrafter(replace(d, tree=Growth(2, 2, 4)), Confidence(0.3)),
            "tree of 4 nodes",
        ),
        (lambda d: EarlyDrafter(d, Confidence(0.3), slices=(1, 2)), "the tree is 3 deep"),
        (lambda d: EarlyDrafter(d, Confidence(0.3), slices=(2, 1, 3)), "each once, the smallest"),
        (lambda d: Confidence(1.5), "^threshold=1.5: must lie"),
        (lambda d: Running(0.3, fading=2), "^fading=2"),
        (lambda d: HiddenNetwork((3, 2)), "^sizes="),
        (lambda d: LawNetwork(threshold=-1), "^threshold=-1"),
        (lambda d: LawNetwork().check({"weight": 1}), "these are not parameters"),
        (lambda d: Margin(0.2).admit(token_level), "rule='token_level' has none"),
        (lambda d: EarlyDrafter(d, Confidence(0.3)).start({}, None, None), "has EarlyParams"),
    ],
)
def test_what_cannot_be_is_refused(make, said, cousin):
    with pytest.raises(ValueError, match=said):
        make(cousin.drafter)


def test_a_network_for_another_width_is_refused(target, params, cousin, batch):
    stop, weights = network(HiddenNetwork, hidden_sizes(24))
    with pytest.raises(ValueError, match="taught for a draft of width 24, and this one has 32"):
        speculative_text(target, params, batch, early_draft(cousin, stop, weights))


def test_what_a_sequence_kept_lately_counts_most():
    stop = Running(0.3)
    memory = stop.start(2)
    for _ in range(50):
        memory = stop.learn(memory, jnp.array([4, 0]), jnp.array([4, 4]))
    share = stop.judge((), memory, jnp.ones(2), None)
    assert share[0] > 0.95 and share[1] < 0.05
    memory = stop.learn(memory, jnp.array([0, 4]), jnp.array([4, 4]))
    assert np.all(np.abs(np.asarray(stop.judge((), memory, jnp.ones(2), None)) - share) > 0.02)


def test_the_paths_worth_is_what_its_nodes_say():
    logits = jnp.log(jnp.array([[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]]))
    seen = early_stopping.Seen(
        coupled,
        jnp.zeros((1, 1, 3)),
        sampling(1, temperature=1.0),
        0,
        None,
        logits,
        jnp.array([[[0], [1]]]),
    )
    half = jnp.array([0.5])
    assert np.allclose(Confidence(0.3).judge((), (), half, seen), 0.3)
    law = np.array([0.6, 0.3, 0.1])
    assert np.allclose(
        Entropy(0.3).judge((), (), half, seen), 0.5 * np.exp((law * np.log(law)).sum())
    )
    tau = coupled.ERROR + coupled.ERROR_OF_HEAT
    sharp = law ** (1 / tau) / (law ** (1 / tau)).sum()
    assert np.allclose(Margin(0.3).judge((), (), half, seen), 0.5 * sharp[0], atol=1e-6)


def test_check_slices_takes_what_usual_slices_gives():
    for depth in range(1, 12):
        check_slices(usual_slices(depth), Tree.chain(depth))
