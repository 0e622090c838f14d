"""The walk of coupled verification, against one that follows the picks a node at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from jspec import Candidates, Tree, sampling
from jspec.verify.coupled import verify

VOCABULARY = 5
GREEDY = {"temperature": 0.0}


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


def check(candidates: Candidates, logits, noise, how, path_length: int) -> np.ndarray:
    """Holds the verdict against `walk`; returns the counts."""
    verdict = verify(candidates, logits, noise, how, path_length=path_length)
    greedy = np.asarray(how.temperature)[:, None, None] == 0
    hot = np.where(greedy, 1.0, np.asarray(how.temperature)[:, None, None])
    picks = np.argmax(np.asarray(logits) / hot + np.asarray(noise), axis=-1)
    for row in range(len(picks)):
        path, following = walk(
            *(np.asarray(x)[row] for x in (candidates.tokens, candidates.parent)),
            np.asarray(candidates.valid)[row],
            picks[row],
        )
        assert verdict.count[row] == len(path)
        assert verdict.next[row] == following
        padded = path + [path[-1]] * (path_length - len(path))
        np.testing.assert_array_equal(verdict.path[row], padded)
    return np.asarray(verdict.count)


def random_round(tree: Tree, rows: int, seed: int):
    """Guesses that are right every other time, and a few nodes that are not valid."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, tree.size, VOCABULARY)).astype(np.float32)
    temperature = rng.choice([0.0, 0.5, 2.0], rows)
    noise = rng.gumbel(size=logits.shape).astype(np.float32)
    noise = np.where(temperature[:, None, None] > 0, noise, 0).astype(np.float32)
    hot = np.where(temperature > 0, temperature, 1.0)[:, None, None].astype(np.float32)
    picks = np.argmax(logits / hot + noise, axis=-1)
    tokens = rng.integers(0, VOCABULARY, (rows, tree.size))
    guided = picks[:, np.maximum(tree.parents, 0)]
    tokens = np.where(rng.random(tokens.shape) < 0.4, guided, tokens)
    candidates = Candidates(
        tokens=jnp.asarray(tokens),
        parent=jnp.broadcast_to(jnp.asarray(tree.parents), tokens.shape),
        valid=jnp.asarray(rng.random(tokens.shape) < 0.9).at[:, 0].set(True),
    )
    how = sampling(rows, temperature=temperature.tolist())
    return candidates, jnp.asarray(logits), jnp.asarray(noise), how


def test_the_walk_follows_the_picks_through_any_tree():
    for seed, tree in enumerate(
        [Tree.chain(4), Tree.fork(3, 3), Tree.from_paths([(0, 0, 0), (0, 1), (1, 0), (2,)])]
    ):
        counts = check(*random_round(tree, 200, 70 + seed), tree.path_length)
        assert set(counts) == set(range(1, tree.path_length + 1))


def test_each_sequence_may_have_a_tree_of_its_own():
    shapes = [Tree.chain(3), Tree.fork(3, 1), Tree.from_paths([(0, 0), (1,)])]
    assert {tree.size for tree in shapes} == {4}
    candidates, logits, noise, how = random_round(shapes[0], 60, 73)
    parent = jnp.asarray([shapes[row % 3].parents for row in range(60)])
    check(candidates.replace(parent=parent), logits, noise, how, 4)


def test_a_node_that_is_not_valid_is_never_kept_nor_what_hangs_below_it():
    tree = Tree.chain(3)
    logits = jax.nn.one_hot(jnp.array([[1, 2, 3, 4]]), VOCABULARY)
    candidates = Candidates(
        tokens=jnp.array([[0, 1, 2, 3]]),
        parent=jnp.asarray(tree.parents)[None],
        valid=jnp.array([[True, True, False, True]]),
    )
    verdict = verify(
        candidates, logits, jnp.zeros_like(logits), sampling(1, **GREEDY), path_length=4
    )
    assert verdict.count[0] == 2
    assert verdict.next[0] == 2


def test_the_picked_child_is_kept_though_another_path_is_longer():
    """Greedy: the guess after the picked child 1 is wrong, the one after its sibling 2 right."""
    tree = Tree.fork(2, 2)
    candidates = Candidates(
        tokens=jnp.array([[0, 1, 2, 4, 3]]),
        parent=jnp.asarray(tree.parents)[None],
        valid=jnp.ones((1, 5), bool),
    )
    logits = jax.nn.one_hot(jnp.array([[1, 3, 3, 0, 0]]), VOCABULARY)
    verdict = verify(
        candidates, logits, jnp.zeros_like(logits), sampling(1, **GREEDY), path_length=3
    )
    np.testing.assert_array_equal(verdict.path[0, :2], [0, 1])
    assert verdict.count[0] == 2
    assert verdict.next[0] == 3


def test_the_noise_of_a_node_decides_what_follows_it():
    """Uniform logits, so that the pick after each node is where its own noise is largest."""
    tree = Tree.chain(2)
    candidates = Candidates(
        tokens=jnp.array([[0, 3, 2]]),
        parent=jnp.asarray(tree.parents)[None],
        valid=jnp.ones((1, 3), bool),
    )
    noise = 5.0 * jax.nn.one_hot(jnp.array([[3, 2, 4]]), VOCABULARY)
    verdict = verify(
        candidates, jnp.zeros_like(noise), noise, sampling(1, temperature=1.0), path_length=3
    )
    assert verdict.count[0] == 3
    assert verdict.next[0] == 4
