"""The model of what speculation gains."""

from dataclasses import replace

import numpy as np
import pytest

from jspec import Tree
from jspec.plan.forecast import (
    best,
    break_even,
    chain_acceptance_length,
    chains,
    emitted_probs,
    expected_rounds,
    forecasts,
    largest_batch,
    pending_share,
    predict,
)
from jspec.plan.sizes import MemoryFit
from jspec.tuning.acceptance import Acceptance, from_counts, from_rates, read_acceptance
from jspec.tuning.costs import Costs
from jspec.tuning.search import acceptance_length

COSTS = Costs(((1, 2.0), (5, 2.4), (17, 4.0)), ((1, 0.3), (4, 0.4)), 2.0, "told")
WIDE = np.array([[0.6, 0.2, 0.1], [0.5, 0.3, 0.05], [0.4, 0.1, 0.1]])
TREES = [Tree.chain(3), Tree.fork(3, 2), Tree.branching((2, 2)), Tree.comb((3, 2, 1))]


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("depth", [1, 4, 9])
def test_a_chain_of_equal_chances_emits_the_closed_form(rate, depth):
    closed = depth + 1 if rate == 1 else (1 - rate ** (depth + 1)) / (1 - rate)
    found = predict(Tree.chain(depth), from_rates([rate], "told"), COSTS)
    assert found.acceptance_length == pytest.approx(closed)
    assert chain_acceptance_length(rate, depth) == pytest.approx(closed)
    assert found.tokens_per_second == pytest.approx(1e3 * closed / COSTS.round(Tree.chain(depth)))


def walks(tree: Tree, shares: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The last nodes of `count` rounds, each walked from the root down by drawing which child is
    kept."""
    below = {n: [c for c, p in enumerate(tree.parents) if p == n] for n in range(tree.size)}
    found = np.zeros(count, int)
    for walk in range(count):
        while children := below[found[walk]]:
            chances = [shares[tree.depths[c] - 1, tree.ranks[c]] for c in children]
            kept = rng.choice(len(children) + 1, p=[*chances, 1 - sum(chances)])
            if kept == len(children):
                break
            found[walk] = children[kept]
    return found


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree.parents))
def test_what_a_tree_emits_is_what_walking_it_emits(tree):
    count = 4000
    seen = 1 + tree.depths[walks(tree, WIDE, count, np.random.default_rng(3))]
    law = emitted_probs(tree, WIDE)
    assert law.sum() == pytest.approx(1)
    told = np.bincount(seen, minlength=len(law) + 1)[1:] / count
    # Five standard deviations of a share that was counted so often.
    assert np.abs(told - law).max() < 5 * 0.5 / count**0.5
    mean = (law * np.arange(1, len(law) + 1)).sum()
    assert mean == pytest.approx(acceptance_length(tree, WIDE))


@pytest.mark.parametrize("batch", [1, 6])
def test_rounds_are_those_of_a_simulation(batch):
    laws = [emitted_probs(Tree.chain(3), shares) for shares in (WIDE[:, :1], 0.3 * WIDE[:, :1])]
    texts, tokens, count = [laws[n % 2] for n in range(batch)], 40, 1500
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        most = 0
        for law in texts:
            drawn = 1 + rng.choice(len(law), size=tokens, p=law)
            most = max(most, int((np.cumsum(drawn) < tokens).sum()) + 1)
        found.append(most)
    error = 5 * np.std(found) / count**0.5
    assert expected_rounds(texts, tokens) == pytest.approx(np.mean(found), abs=error)


def test_a_text_that_ends_costs_its_beginning_and_its_last_round():
    sure, tree = from_rates([1.0], "told"), Tree.chain(3)
    costs = replace(COSTS, start=5.0, plain_start=3.0)
    found = predict(tree, sure, costs, tokens=10)
    # Four tokens a round: ten take three rounds.
    assert found.tokens_per_second == pytest.approx(1e4 / (5 + 3 * costs.round(tree)))
    assert found.plain == pytest.approx(1e4 / (3 + 10 * 2.0))


def test_a_batch_waits_for_its_slowest_text():
    kept = np.zeros((2, 3, 1), int)
    kept[0, :, 0], kept[1, :, 0] = (100, 90, 80), (200, 20, 2)
    told = from_counts(kept, "told")
    assert told.shares[:, 0] == pytest.approx([110 / 300, 82 / 110])
    assert told.texts[:, :, 0] == pytest.approx(np.array([[0.9, 80 / 90], [0.1, 0.1]]))
    alone = predict(Tree.chain(2), told, COSTS, tokens=60)
    both = predict(Tree.chain(2), told, COSTS, batch=2, tokens=60)
    slow = expected_rounds([emitted_probs(Tree.chain(2), told.texts[1])], 60)
    took = COSTS.round(Tree.chain(2))
    assert both.tokens_per_second == pytest.approx(2 * 60e3 / (slow * took), rel=1e-3)
    assert both.tokens_per_second < 2 * alone.tokens_per_second


def test_what_breaks_even_is_as_fast_and_what_is_less_is_not():
    for speedup in (1.0, 1.5, 2.0):
        rate = break_even(COSTS, speedup, depth=8)
        fast, less = (
            best(chains(8), from_rates([r], "told"), COSTS).speedup for r in (rate, rate - 0.01)
        )
        assert fast == pytest.approx(speedup, rel=1e-4)
        assert less < speedup
    assert break_even(COSTS, 20.0, depth=8) is None


def test_a_slower_draft_needs_the_more_acceptance():
    needed = [break_even(replace(COSTS, level=((1, x),)), 1.2, depth=8) for x in (0.1, 0.4, 0.8)]
    assert needed == sorted(needed) and len(set(needed)) == 3


def test_a_small_model_runs_a_leaf_that_was_kept_in_the_next_round():
    """As often as a walk ends at a leaf, in any text of a batch."""
    rng, count = np.random.default_rng(4), 4000
    for tree in TREES:
        ended = (~tree.inner[walks(tree, WIDE, count, rng)]).mean()
        told = pending_share(tree, WIDE)
        assert abs(ended - told) < 5 * 0.5 / count**0.5
        assert pending_share(tree, WIDE, 3) == pytest.approx(1 - (1 - told) ** 3)
        costs = replace(COSTS, pending=0.5)
        seen = from_rates(WIDE, "told")
        slower = predict(tree, seen, costs).round_ms - predict(tree, seen, COSTS).round_ms
        assert slower == pytest.approx(0.5 * told)
    # A chain that is always kept is late in every round.
    sure = from_rates([1.0], "told")
    always = predict(Tree.chain(2), sure, replace(COSTS, pending=0.5), batch=2)
    assert always.round_ms == pytest.approx(COSTS.round(Tree.chain(2)) + 0.5)


def test_the_largest_batch_that_pays():
    def costs(batch: int) -> Costs:
        return Costs(((1, 1.0), (9, 1.0 + 0.1 * batch)), ((1, 0.1),), 1.0, "told")

    sure = from_rates([0.8], "told")
    limit = largest_batch(costs, sure)
    assert best(chains(), sure, costs(limit)).speedup > 1
    assert best(chains(), sure, costs(2 * limit)).speedup <= 1
    assert largest_batch(costs, from_rates([0.0], "told")) is None


def test_a_late_pass_is_of_the_draft_in_what_bounds_it():
    costs = Costs(((1, 1.0), (64, 1.0)), ((1, 0.3),), 1.0, "", pending=2.0)
    room = MemoryFit(1, None, "", 1, 1, bytes=2)
    (one,) = forecasts("it", 1, [1], lambda batch: (costs, room), from_rates([0.9], ""))
    assert one.best.round_ms > costs.round(one.best.tree)
    share = 1 - 1.0 / one.best.round_ms
    assert one.bottleneck == f"draft latency: drafting takes {share:.0%} of a round"


def test_intervals_narrow_with_what_was_counted_and_widen_with_noise():
    def width(trials: int, spread: float) -> float:
        told = Acceptance(WIDE, WIDE[None], np.full(3, trials), "told")
        found = predict(Tree.comb((3, 2, 1)), told, replace(COSTS, spread=spread))
        assert found.low < found.speedup < found.high
        return found.high - found.low

    assert width(10_000, 0.0) < width(100, 0.0) < width(100, 0.2)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    truth, tree, rng, held = np.array([[0.7], [0.6]]), Tree.chain(2), np.random.default_rng(9), 0
    right, count = predict(tree, from_rates(truth, "told"), COSTS).speedup, 200
    for _ in range(count):
        first = rng.binomial(300, 0.7)
        second = rng.binomial(first, 0.6)
        told = from_counts(np.array([300, first, second])[None, :, None], "told")
        found = predict(tree, told, COSTS)
        held += found.low <= right <= found.high
    # 95% of 200, less four standard deviations.
    assert held >= 200 * 0.95 - 4 * (200 * 0.95 * 0.05) ** 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.2", "between 0 and 1"),
        ("0.5,nan", "between 0 and 1"),
        ("much", "give numbers"),
        ("missing.json", "no such file"),
    ],
)
def test_acceptance_that_is_none_is_refused(text, said):
    with pytest.raises((ValueError, OSError), match=said):
        read_acceptance(text)


def test_acceptance_is_read_from_what_auto_keeps(tmp_path):
    file = tmp_path / "kept.json"
    for written in ('{"acceptance": [[0.5, 0.2], [0.4, 0.1]]}', "[[0.5, 0.2], [0.4, 0.1]]"):
        file.write_text(written)
        assert read_acceptance(str(file)).shares.tolist() == [[0.5, 0.2], [0.4, 0.1]]
    for written, said in (
        ("{}", "no field"),
        ("0.7", "a list"),
        ("[", "not JSON"),
        ('["a"]', "give numbers"),
    ):
        file.write_text(written)
        with pytest.raises(ValueError, match=said):
            read_acceptance(str(file))
