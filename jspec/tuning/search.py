"""The static tree with the greatest acceptance length, or the fastest, for what a target accepts.

`acceptance` `[D, W]` is how often the child of rank r of an accepted node at depth d is accepted,
whatever happens to its siblings; the shares of one node sum to no more than 1. Coupled candidates
have such numbers, and so have siblings that are tried one after the other.
"""

from collections.abc import Callable, Iterator

import numpy as np

from jspec.core.tree import Tree


def acceptance_length(tree: Tree, acceptance: np.ndarray) -> float:
    """Mean tokens per target pass: the accepted candidates, and the bonus token.

    >>> acceptance_length(Tree.chain(2), np.array([[0.5], [0.5]]))
    1.75
    """
    check_acceptance(acceptance)
    depth, width = acceptance.shape
    if tree.depth > depth or tree.ranks.max() >= width:
        raise ValueError(
            f"acceptance {list(acceptance.shape)}: the tree is {tree.depth} deep and "
            f"{tree.ranks.max() + 1} wide, so give as many rows and columns"
        )
    return float(accepted_nodes(tree, acceptance).sum())


def accepted_nodes(tree: Tree, acceptance: np.ndarray) -> np.ndarray:
    """`[N]` the probability that a round accepts each node."""
    found = np.ones(tree.size)
    for node, parent in enumerate(tree.parents[1:], start=1):
        found[node] = found[parent] * acceptance[tree.depths[node] - 1, tree.ranks[node]]
    return found


def best_trees(acceptance: np.ndarray, nodes: int) -> Iterator[Tree]:
    """Of every size up to `nodes`, the root included, the tree with the greatest acceptance length,
    no deeper than `acceptance` (Sequoia, arXiv 2402.12374, section 3.1).

    A node's best children are the best way to share its nodes out among the ranks, from the last
    rank to the first; and a child is worth what it is by itself, times how often it is accepted.
    """
    check_acceptance(acceptance)
    if nodes < 2:
        raise ValueError(f"nodes={nodes}: a tree has its root and at least one candidate")
    depth, width = acceptance.shape
    alone = np.full(nodes + 1, -np.inf)
    alone[1] = 1.0
    # worth[n] of n nodes below and with a node of the level; shares[d][r][m], what the child of
    # rank r gets of m nodes that remain for it and those after it.
    worth, shares = alone, []
    for level in range(depth)[::-1]:
        rest = np.full(nodes, -np.inf)
        rest[0] = 0.0
        shares.insert(0, np.zeros((width, nodes), int))
        for rank in range(width)[::-1]:
            # 0 * -inf is NaN: an impossible tree stays impossible, however seldom it is accepted.
            own = np.full(nodes, -np.inf)
            np.multiply(acceptance[level, rank], worth[1:], out=own, where=np.isfinite(worth[1:]))
            rest, shares[0][rank] = _shared(own, rest)
        worth = np.concatenate([[-np.inf], 1.0 + rest])
    for size in range(2, nodes + 1):
        if np.isfinite(worth[size]):
            yield Tree.from_paths(_paths(shares, size))


def best_combs(acceptance: np.ndarray, nodes: int) -> Iterator[Tree]:
    """Of every size up to `nodes`, the root included, the comb with the greatest acceptance length,
    no deeper than `acceptance`: a draft runs one row a level of it, so that it costs what a chain
    does."""
    check_acceptance(acceptance)
    reached = np.cumprod([1.0, *acceptance[:-1, 0]])
    rest, shares = np.full(nodes, -np.inf), []
    rest[0] = 0.0
    for level in range(len(acceptance))[::-1]:
        own = np.full(nodes, -np.inf)
        worths = reached[level] * acceptance[level].cumsum()[:nodes]
        own[: len(worths)] = worths
        rest, share = _shared(own, rest)
        shares.insert(0, share)
    for size in range(2, nodes + 1):
        if np.isfinite(rest[size - 1]):
            yield Tree.comb(tuple(_widths(shares, size - 1)))


def fastest_tree(
    acceptance: np.ndarray, cost: Callable[[Tree], float], *, nodes: int
) -> tuple[Tree, float]:
    """Of the best trees and the best combs of every size and depth the one that emits the most
    tokens for its `cost`, which is of a round in any unit of time; and how many it emits in one.

    No tree is faster where the cost depends on size and depth alone, and no comb where it also
    depends on how many rows the draft runs a level. Raises `ValueError` for a cost that is not
    above 0.
    """
    found: dict[Tree, float] = {}
    for depth in range(1, len(acceptance) + 1):
        for find in (best_trees, best_combs):
            for tree in find(acceptance[:depth], nodes):
                if tree not in found:
                    found[tree] = acceptance_length(tree, acceptance) / _checked(cost(tree), tree)
    fastest = max(found, key=found.__getitem__)
    return fastest, found[fastest]


def check_acceptance(acceptance: np.ndarray) -> None:
    """Raises `ValueError` unless rows are shares that sum to no more than 1."""
    if acceptance.ndim != 2 or not acceptance.size:
        raise ValueError(f"acceptance {list(acceptance.shape)}: give [depths, ranks]")
    wrong = ~((acceptance >= 0) & (acceptance <= 1))
    if wrong.any():
        depth, rank = np.argwhere(wrong)[0]
        raise ValueError(
            f"acceptance[{depth}, {rank}]={acceptance[depth, rank]}: must lie between 0 and 1"
        )
    total = acceptance.sum(axis=1)
    if total.max() > 1 + 1e-6:
        raise ValueError(
            f"acceptance[{total.argmax()}] sums to {total.max():g}: at most one child of a node is "
            "accepted, so give no more than 1"
        )


def _checked(cost: float, tree: Tree) -> float:
    if not 0 < cost < np.inf:
        raise ValueError(
            f"cost={cost} of a tree of {tree.size} nodes: a round takes some time, so give a "
            "number above 0"
        )
    return cost


def _shared(own: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most that m nodes are worth, `[n]`, where a child that has k of them, at least one, is
    worth `own[k - 1]`, and the others `rest[m - k]`; and that k, or 0 where there is no child."""
    count = len(rest)
    best, share = np.full(count, -np.inf), np.zeros(count, int)
    best[0] = 0.0
    for total in range(1, count):
        worths = own[:total] + rest[total - 1 :: -1]
        share[total] = 1 + int(worths.argmax())
        best[total] = worths.max()
    return best, share


def _paths(shares: list[np.ndarray], size: int) -> list[tuple[int, ...]]:
    """Paths to all nodes of the tree of `size` below a node of the first of the levels."""
    paths, rest = [()], size - 1
    rank = 0
    while rest:
        share = shares[0][rank][rest]
        paths += [(rank, *path) for path in _paths(shares[1:], share)]
        rest, rank = rest - share, rank + 1
    return paths


def _widths(shares: list[np.ndarray], rest: int) -> Iterator[int]:
    """How many nodes each level of the comb of `rest` nodes has."""
    for share in shares:
        if not rest:
            return
        yield share[rest]
        rest -= share[rest]
