"""Trees: every table against one made the slow way, and what is refused."""

import numpy as np
import pytest

from jspec import Tree

PATHS = [(0, 0, 0), (0, 1), (1, 0), (2,)]
TREES = {
    "root": Tree(),
    "chain": Tree.chain(5),
    "branching": Tree.branching((4, 2, 2, 1)),
    "fork": Tree.fork(3, 4),
    "comb": Tree.comb((3, 2, 3)),
    "paths": Tree.from_paths(PATHS),
    "parents": Tree((-1, 0, 0, 0, 2, 3, 3, 5)),
}


def ancestry(tree: Tree, node: int) -> list[int]:
    """From the root down to `node`."""
    line = [node]
    while tree.parents[line[0]] >= 0:
        line.insert(0, tree.parents[line[0]])
    return line


@pytest.mark.parametrize("name", TREES)
def test_tables_equal_those_made_node_by_node(name):
    tree = TREES[name]
    lines = [ancestry(tree, node) for node in range(tree.size)]
    children = [[n for n in range(tree.size) if tree.parents[n] == p] for p in range(tree.size)]
    assert tree.size == len(lines)
    assert tree.depths.tolist() == [len(line) - 1 for line in lines]
    assert tree.depth == max(len(line) for line in lines) - 1
    assert tree.path_length == max(len(line) for line in lines)
    np.testing.assert_array_equal(
        tree.mask, [[other in line for other in range(tree.size)] for line in lines]
    )
    assert tree.ranks.tolist() == [0] + [
        children[tree.parents[node]].index(node) for node in range(1, tree.size)
    ]
    assert tree.inner.tolist() == [len(below) > 0 for below in children]
    for depth in range(tree.path_length):
        level = [node for node in range(tree.size) if len(lines[node]) == depth + 1]
        assert list(range(tree.size))[tree.level(depth)] == level
        assert tree.level_ends[depth] == level[-1] + 1
        assert tree.children(depth) == max(len(children[node]) for node in level)


def test_only_the_first_node_of_each_level_of_a_comb_has_children():
    assert Tree.comb((3, 2, 1)) == Tree.from_paths([(0, 0, 0), (0, 1), (1,), (2,)])
    assert Tree.comb((1, 1)) == Tree.chain(2)


@pytest.mark.parametrize("name", TREES)
def test_a_tree_cut_after_a_level_is_a_prefix_of_every_table(name):
    tree = TREES[name]
    for depth in range(tree.path_length):
        end = tree.level_ends[depth]
        cut = Tree(tree.parents[:end])
        assert cut.depth == depth
        np.testing.assert_array_equal(cut.depths, tree.depths[:end])
        np.testing.assert_array_equal(cut.ranks, tree.ranks[:end])
        np.testing.assert_array_equal(cut.mask, tree.mask[:end, :end])
        assert cut.level_ends == tree.level_ends[: depth + 1]
        assert [cut.children(d) for d in range(depth)] == [tree.children(d) for d in range(depth)]


def test_shapes_are_what_their_names_say():
    assert Tree.chain(3).parents == (-1, 0, 1, 2)
    assert Tree.branching((2, 2)).parents == (-1, 0, 0, 1, 1, 2, 2)
    assert Tree.fork(2, 3).parents == (-1, 0, 0, 1, 2, 3, 4)
    assert Tree.from_paths(PATHS).parents == (-1, 0, 0, 0, 1, 1, 2, 4)
    assert Tree.from_paths([(0, 0), (1, 0)]) == Tree.fork(2, 2)


def test_trees_with_the_same_nodes_are_one_static_argument():
    assert Tree.fork(1, 4) == Tree.chain(4) == Tree.branching((1, 1, 1, 1))
    assert hash(Tree.fork(1, 4)) == hash(Tree.chain(4))
