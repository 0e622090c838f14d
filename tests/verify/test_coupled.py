"""The walk of coupled verification, against one that follows the picks a node at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from jspec import Candidates, SamplingParams, Tree
from jspec.verify import coupled

VOCABULARY = 5
# The rule reads nothing of it.
HOW = SamplingParams.create(1)


def walk(tokens, parents, valid, picks) -> tuple[list[int], int]:
    """The nodes kept of one tree, and the token after the last of them."""
    path = [0]
    while True:
        children = [
            node
            for node in range(len(tokens))
            if parents[node] == path[-1] and valid[node] and tokens[node] == picks[path[-1]]
        ]
        if not children:
            return path, picks[path[-1]]
        path.append(children[0])


def check(tree: Tree, candidates: Candidates, logits, noise, depths) -> np.ndarray:
    """Holds what is accepted against `walk`; returns the counts."""
    verification = coupled.verify(noise, candidates, logits, HOW, tree=tree)
    rows = np.arange(len(logits))[:, None]
    picks = np.argmax(np.asarray(logits) + np.asarray(noise)[rows, depths], axis=-1)
    for row in range(len(picks)):
        path, following = walk(
            *(np.asarray(x)[row] for x in (candidates.tokens, candidates.parent)),
            np.asarray(candidates.valid)[row],
            picks[row],
        )
        assert verification.num_accepted[row] == len(path)
        assert verification.bonus_token[row] == following
        padded = path + [path[-1]] * (tree.path_length - len(path))
        np.testing.assert_array_equal(verification.accepted_path[row], padded)
    return np.asarray(verification.num_accepted)


def random_round(trees: list[Tree], rows: int, seed: int):
    """Candidates that are right every other time, and a few nodes that are not valid, over trees of
    one size that take turns."""
    rng = np.random.default_rng(seed)
    shapes = [trees[row % len(trees)] for row in range(rows)]
    parents, depths = (np.array([getattr(tree, table) for tree in shapes]) for table in
                       ("parents", "depths"))  # fmt: skip
    logits = rng.normal(size=(rows, trees[0].size, VOCABULARY)).astype(np.float32)
    noise = rng.gumbel(size=(rows, depths.max() + 1, VOCABULARY)).astype(np.float32)
    noise[::3] = 0  # greedy
    each = np.arange(rows)[:, None]
    picks = np.argmax(logits + noise[each, depths], axis=-1)
    tokens = rng.integers(0, VOCABULARY, depths.shape)
    guided = picks[each, np.maximum(parents, 0)]
    candidates = Candidates(
        tokens=jnp.asarray(np.where(rng.random(tokens.shape) < 0.4, guided, tokens)),
        parent=jnp.asarray(parents),
        valid=jnp.asarray(rng.random(tokens.shape) < 0.9).at[:, 0].set(True),
    )
    return candidates, jnp.asarray(logits), jnp.asarray(noise), depths


def test_the_walk_follows_the_picks_through_any_tree():
    for seed, tree in enumerate(
        [Tree.chain(4), Tree.fork(3, 3), Tree.from_paths([(0, 0, 0), (0, 1), (1, 0), (2,)])]
    ):
        counts = check(tree, *random_round([tree], 200, 70 + seed))
        assert set(counts) == set(range(1, tree.path_length + 1))


def test_each_sequence_may_have_a_tree_of_its_own():
    shapes = [Tree.chain(3), Tree.fork(3, 1), Tree.from_paths([(0, 0), (1,)])]
    assert {tree.size for tree in shapes} == {4}
    check(shapes[0], *random_round(shapes, 60, 73))


def test_a_node_that_is_not_valid_is_never_kept_nor_what_lies_below_it():
    tree = Tree.chain(3)
    logits = jax.nn.one_hot(jnp.array([[1, 2, 3, 4]]), VOCABULARY)
    candidates = Candidates(
        tokens=jnp.array([[0, 1, 2, 3]]),
        parent=jnp.asarray(tree.parents)[None],
        valid=jnp.array([[True, True, False, True]]),
    )
    verification = coupled.verify(jnp.zeros((1, 4, VOCABULARY)), candidates, logits, HOW, tree=tree)
    assert verification.num_accepted[0] == 2
    assert verification.bonus_token[0] == 2


def test_the_picked_child_is_kept_though_another_path_is_longer():
    """Greedy: the candidate after the picked child 1 is wrong, that after its sibling 2 right."""
    tree = Tree.fork(2, 2)
    candidates = Candidates(
        tokens=jnp.array([[0, 1, 2, 4, 3]]),
        parent=jnp.asarray(tree.parents)[None],
        valid=jnp.ones((1, 5), bool),
    )
    logits = jax.nn.one_hot(jnp.array([[1, 3, 3, 0, 0]]), VOCABULARY)
    verification = coupled.verify(jnp.zeros((1, 3, VOCABULARY)), candidates, logits, HOW, tree=tree)
    np.testing.assert_array_equal(verification.accepted_path[0, :2], [0, 1])
    assert verification.num_accepted[0] == 2
    assert verification.bonus_token[0] == 3


def test_the_noise_of_a_node_decides_what_follows_it():
    """Uniform logits, so that the pick after each node is where its own noise is largest."""
    tree = Tree.chain(2)
    candidates = Candidates(
        tokens=jnp.array([[0, 3, 2]]),
        parent=jnp.asarray(tree.parents)[None],
        valid=jnp.ones((1, 3), bool),
    )
    noise = 5.0 * jax.nn.one_hot(jnp.array([[3, 2, 4]]), VOCABULARY)
    verification = coupled.verify(noise, candidates, jnp.zeros_like(noise), HOW, tree=tree)
    assert verification.num_accepted[0] == 3
    assert verification.bonus_token[0] == 4
