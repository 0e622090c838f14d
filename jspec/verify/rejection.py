"""What the rejection rules share: their dice, the laws that they weigh, and the residual.

Drafting, tests and the last draw take randomness of their own, each keyed by its purpose.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.candidates import Draws
from jspec.core.sampling import Sampling, first_best
from jspec.core.threefry import gumbel
from jspec.core.tree import Tree

DRAFTING, TESTING, EMITTING = 1, 2, 3


def admit(rule: str, draws: Draws) -> None:
    """Raises `ValueError` for candidates that are not draws of the draft's law."""
    draws.refuse_roots()
    if draws is Draws.DRAFTER:
        raise ValueError(
            f"rule={rule!r} weighs draws of the draft's law, and this drafter chooses its "
            "candidates itself, so that none comes as often as the law that it would be weighed "
            "by says: the text would not follow the target's law; use coupled or one_sample"
        )


def admit_chain(rule: str, tree: Tree) -> None:
    """Raises `ValueError` for a tree that is no chain."""
    if tree.depth != tree.size - 1:
        raise ValueError(
            f"rule={rule!r} follows a chain, and the tree has {tree.size} nodes of which "
            f"{tree.path_length} on its longest path: use chain:{tree.depth}, or another rule"
        )


@struct.dataclass
class Dice:
    """`guess` `[B, I, W, V]` Gumbel noise for the children of the I nodes that have some, W draws
    of it a node; `test` `[B, N]` uniforms; `emit` `[B, V]` noise for the token after the path."""

    guess: Array
    test: Array
    emit: Array


def roll(
    keys: Array, length: Array, sampling: Sampling, *, tree: Tree, vocabulary: int, draws: int
) -> Dice:
    """The dice of a round, of which `draws` are for the children of each node.

    Greedy sequences guess without noise; what they write does not hang on it.
    """
    inner = int(tree.inner.sum())

    def one(key: Array, position: Array, hot: Array) -> Dice:
        guess, test, emit = (
            jax.random.fold_in(jax.random.fold_in(key, purpose), position)
            for purpose in (DRAFTING, TESTING, EMITTING)
        )
        rolled = jax.vmap(lambda count: gumbel(guess, count, vocabulary))(jnp.arange(inner * draws))
        rolled = jnp.where(hot, rolled, 0.0).reshape(inner, draws, vocabulary)
        return Dice(rolled, jax.random.uniform(test, (tree.size,)), gumbel(emit, 0, vocabulary))

    return jax.vmap(one)(keys, length, sampling.temperature > 0)


def row_of(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    """Where the dice of `nodes` stand among those of the nodes that have children."""
    return np.cumsum(tree.inner)[nodes] - 1


def law(logits: Array, temperature: Array) -> Array:
    """Probabilities `[V]` of warped logits; at temperature 0 the best token has them all."""
    greedy = jax.nn.one_hot(first_best(logits), len(logits))
    return jnp.where(temperature > 0, jax.nn.softmax(logits), greedy)


def residual(p: Array, q: Array) -> Array:
    """`norm(relu(p - q))` over `[V]`; `p` where that is empty, which has probability 0."""
    left = jnp.maximum(p - q, 0.0)
    mass = left.sum()
    return jnp.where(mass > 0, left / jnp.where(mass > 0, mass, 1.0), p)


def pick(p: Array, emit: Array) -> Array:
    """A token of the law `p` `[V]`, by Gumbel noise."""
    return first_best(jnp.log(p) + emit)
