"""The best tree for what a target accepts, against all there are."""

import itertools

import numpy as np
import pytest

from jspec import Tree
from jspec.tuning.costs import Costs
from jspec.tuning.search import acceptance_length, best_combs, best_trees, fastest_tree

DEPTH, WIDTH, NODES = 3, 3, 7


def acceptances(count: int) -> list[np.ndarray]:
    """Acceptances, some of which do not fall from rank to rank."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([2.0, 1.0, 0.5, 1.0], (count, DEPTH))[..., :WIDTH]
    return list(shares * rng.choice([0.0, 0.3, 1.0], (count, DEPTH, WIDTH)))


def every_tree() -> list[Tree]:
    """All that are no larger, one for each way in which they can grow."""
    found, last = {Tree()}, {((),)}
    for _ in range(NODES - 1):
        grown = set()
        for paths in last:
            for path in paths:
                rank = sum(len(other) == len(path) + 1 and other[:-1] == path for other in paths)
                if len(path) < DEPTH and rank < WIDTH:
                    grown.add(tuple(sorted((*paths, (*path, rank)))))
        last = grown
        found |= {Tree.from_paths(paths) for paths in grown}
    return sorted(found, key=lambda tree: tree.parents)


def test_the_best_tree_of_every_size_is_the_best_there_is():
    trees = every_tree()
    assert len(trees) == len(set(trees)) > 100
    for acceptance in acceptances(8):
        best = {
            tree.size: acceptance_length(tree, acceptance) for tree in best_trees(acceptance, NODES)
        }
        assert set(best) == set(range(2, NODES + 1))
        for size, found in best.items():
            most = max(acceptance_length(t, acceptance) for t in trees if t.size == size)
            np.testing.assert_allclose(found, most, rtol=1e-12)


def test_the_fastest_tree_is_the_fastest_there_is():
    def cost(tree: Tree) -> float:
        return 1.0 + 0.1 * tree.size + 0.3 * tree.depth

    trees = [tree for tree in every_tree() if tree.size > 1]
    for acceptance in acceptances(8):
        tree, rate = fastest_tree(acceptance, cost, nodes=NODES)
        assert rate == acceptance_length(tree, acceptance) / cost(tree)
        fastest = max(acceptance_length(t, acceptance) / cost(t) for t in trees)
        np.testing.assert_allclose(rate, fastest, rtol=1e-12)


def test_the_fastest_tree_is_no_slower_than_any_comb_where_rows_cost_too():
    """As where the draft takes twice as long for two rows as for one."""
    costs = Costs(((2, 3.0),), ((1, 0.4), (2, 0.8)), 1.0, "an example")
    combs = [
        Tree.comb(widths)
        for depth in range(1, DEPTH + 1)
        for widths in itertools.product(range(1, WIDTH + 1), repeat=depth)
        if 1 + sum(widths) <= NODES
    ]
    won = 0
    for acceptance in [*acceptances(8), np.array([[0.5, 0.3], [0.5, 0.2]])]:
        fitting = [t for t in combs if t.depth <= len(acceptance) and t.width <= len(acceptance.T)]
        most = max(acceptance_length(t, acceptance) / costs.round(t) for t in fitting)
        _, rate = fastest_tree(acceptance, costs.round, nodes=NODES)
        assert rate >= most * (1 - 1e-12)
        alone = (t for d in range(len(acceptance)) for t in best_trees(acceptance[: d + 1], NODES))
        won += most > max(acceptance_length(t, acceptance) / costs.round(t) for t in alone)
    # It says something only where a comb beats the best trees of all sizes.
    assert won


def test_the_best_comb_of_every_size_is_the_best_there_is():
    for acceptance in acceptances(8):
        best = {tree.size: tree for tree in best_combs(acceptance, NODES)}
        assert set(best) == set(range(2, NODES + 1))
        for widths in itertools.product(range(WIDTH + 1), repeat=DEPTH):
            levels = [width for width in widths if width]
            if levels and 1 + sum(levels) <= NODES:
                comb = Tree.comb(levels)
                accepted = acceptance_length(best[comb.size], acceptance)
                assert accepted >= acceptance_length(comb, acceptance) - 1e-12


def test_tokens_a_round_are_what_rounds_emit():
    """By drawing which child of every node is accepted, and walking down."""
    rng, draws = np.random.default_rng(1), 40_000
    (acceptance,) = acceptances(1)
    tree = Tree.from_paths([(0, 0, 0), (0, 1), (1, 0), (2,)])
    picks = np.stack(
        [rng.choice(WIDTH + 1, draws, p=[*row, 1 - row.sum()]) for row in acceptance], axis=1
    )
    node, emitted = np.zeros(draws, int), np.ones(draws)
    child = {(p, r): n for n, (p, r) in enumerate(zip(tree.parents, tree.ranks, strict=True)) if n}
    for depth, row in itertools.product(range(tree.depth), range(draws)):
        node[row] = child.get((node[row], picks[row, depth]), -1)
        emitted[row] += node[row] > 0
    # Five standard deviations of a mean of numbers from 1 to 4.
    assert abs(emitted.mean() - acceptance_length(tree, acceptance)) < 5 * 1.5 / draws**0.5


@pytest.mark.parametrize(
    ("acceptance", "words"),
    [
        (np.array([0.5]), r"^acceptance \[1\]: give \[depths, ranks\]"),
        (np.array([[0.5, np.nan]]), r"^acceptance\[0, 1\]=nan: must lie"),
        (np.array([[0.5], [-0.1]]), r"^acceptance\[1, 0\]=-0.1: must lie"),
        (np.array([[0.6, 0.6]]), r"^acceptance\[0\] sums to 1.2: "),
    ],
)
def test_what_is_no_acceptance_is_refused(acceptance, words):
    with pytest.raises(ValueError, match=words):
        list(best_trees(acceptance, 4))
    with pytest.raises(ValueError, match=words):
        acceptance_length(Tree.chain(1), acceptance)


def test_a_tree_beyond_what_is_known_is_refused():
    with pytest.raises(ValueError, match="the tree is 2 deep and 1 wide"):
        acceptance_length(Tree.chain(2), np.array([[0.5]]))
    with pytest.raises(ValueError, match="nodes=1: a tree has its root"):
        list(best_trees(np.array([[0.5]]), 1))


@pytest.mark.parametrize("cost", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_cost_is_refused(cost):
    with pytest.raises(ValueError, match=r"^cost=.* of a tree of 2 nodes: a round takes some time"):
        fastest_tree(np.array([[0.5]]), lambda tree: cost, nodes=3)
