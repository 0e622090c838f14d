"""What rounds cost: parts that are taken apart add up to what was measured."""

from dataclasses import replace

import numpy as np
import pytest

from jspec import Tree
from jspec.tuning.acceptance import shares_of
from jspec.tuning.costs import PROBES, Costs, rising, split_costs
from jspec.verify import block, coupled, token_level

KNOWN = Costs(
    target=((2, 3.0), (4, 4.0), (8, 5.0), (17, 8.0), (65, 20.0)),
    level=((1, 0.4), (8, 1.1), (16, 2.0)),
    plain=2.0,
    source="an example",
)
TREES = (*PROBES, Tree.branching((3, 2, 1)), Tree.comb((4, 2, 2)), Tree.chain(20))


def test_a_round_costs_the_targets_pass_and_a_level_for_each_of_the_draft():
    assert KNOWN.round(Tree.chain(3)) == pytest.approx(4.0 + 3 * 0.4)
    assert KNOWN.round(Tree.branching((8, 1))) == pytest.approx(8.0 + 0.4 + 1.1)
    # Between points a line, and past the last one as it came.
    assert KNOWN.round(Tree.chain(5)) == pytest.approx(4.5 + 5 * 0.4)
    assert KNOWN.round(Tree.chain(88)) == pytest.approx(20 + 24 * 0.25 + 88 * 0.4)


def test_costs_that_are_taken_apart_are_those_that_were_put_together():
    once = 0.7
    whole = np.array([KNOWN.round(tree) for tree in PROBES]) + once
    drafting = whole - [KNOWN.target[n][1] for n in range(len(PROBES))]
    found = split_costs(PROBES, whole, drafting, plain=2.0)
    for tree in TREES:
        assert found.round(tree) == pytest.approx(KNOWN.round(tree) + once)
    assert found.plain == 2.0 and found.source == "measured"


def test_costs_of_chains_alone_are_taken_apart_too():
    chains = PROBES[:3]
    whole = np.array([KNOWN.round(tree) for tree in chains])
    drafting = np.array([0.4 * tree.depth for tree in chains])
    found = split_costs(chains, whole, drafting, plain=2.0)
    assert found.round(Tree.chain(5)) == pytest.approx(KNOWN.round(Tree.chain(5)))


def test_more_rows_never_cost_less():
    assert rising([(4, 3.0), (1, 2.0), (8, 2.5), (9, -1.0)]) == (
        (1, 2.0), (4, 3.0), (8, 3.0), (9, 3.0)
    )  # fmt: skip
    rng = np.random.default_rng(2)
    for _ in range(20):
        noise = [rng.normal(1, 0.3, len(PROBES)) for _ in range(2)]
        found = split_costs(PROBES, 10 * noise[0], 2 * noise[1], plain=1.0)
        rounds = [found.round(Tree.chain(depth)) for depth in range(1, 40)]
        assert np.all(np.diff(rounds) >= 0)
        wider = [found.round(Tree.branching((width, 1))) for width in range(1, 40)]
        assert np.all(np.diff(wider) >= 0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"target": ()}, r"^costs target=\(\)"),
        ({"level": ((1, float("nan")),)}, "^costs level="),
        ({"level": ((1, -0.5),)}, "^costs level="),
        ({"level": ((4, 1.0), (1, 0.5))}, "^costs level="),
        ({"target": ((4, 1.0), (4, 1.0))}, "^costs target="),
        ({"plain": 0.0}, "^costs plain=0.0"),
    ],
)
def test_what_is_no_cost_is_refused(wrong, words):
    fields = {**KNOWN.record(), **wrong}
    with pytest.raises(ValueError, match=words):
        Costs(**fields)


def test_shares_are_of_the_rounds_that_accepted_the_first_node_above():
    accepted = np.array([[100, 0], [60, 20], [45, 6], [2, 1]])
    np.testing.assert_allclose(shares_of(accepted), [[0.6, 0.2], [0.75, 0.1], [2 / 45, 1 / 45]])
    # Too few rounds came so far: the level above stands for it.
    np.testing.assert_allclose(shares_of(accepted // 2)[2], shares_of(accepted // 2)[1])


def test_rules_along_chains_are_measured_along_chains():
    from jspec.tuning.acceptance import compatible_trees

    assert compatible_trees(PROBES, coupled, 1000) == list(PROBES)
    assert compatible_trees(PROBES, coupled, 20) == list(PROBES[:4])
    for rule in (token_level, block):
        assert compatible_trees(PROBES, rule, 1000) == list(PROBES[:3])


def test_wider_levels_of_another_draft_cost_as_many_times_more():
    costs = Costs(((1, 1.0),), ((1, 0.2), (8, 0.6)), 1.0, "")
    assert dict(costs.with_draft_level(0.1).level) == pytest.approx({1: 0.1, 8: 0.3})
    assert replace(costs, level=((1, 0.0),)).with_draft_level(0.1).draft_level() == 0.1
