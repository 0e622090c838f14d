"""Recursive rejection of siblings drawn without replacement (MCSD, Sequoia, RSD).

The order of Gumbel's top-k is the order of such draws; a token that was rejected has probability 0
in the law of the next.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Draws, Verdict
from jspec.core.sampling import Sampling
from jspec.core.tree import Tree
from jspec.verify import rejection
from jspec.verify.coupled import best
from jspec.verify.recursive import walk
from jspec.verify.rejection import Dice, row_of

WEIGHS = True
# Finite, so that there is a law even when every token was drawn.
LEAST = jnp.finfo(jnp.float32).min


def admit(tree: Tree, draws: Draws) -> None:
    """Raises `ValueError` for candidates that are not drawn."""
    rejection.admit("without_replacement", draws)


def roll(keys: Array, length: Array, sampling: Sampling, *, tree: Tree, vocabulary: int) -> Dice:
    """One draw of noise a node: its best tokens under it are all of the node's children."""
    return rejection.roll(keys, length, sampling, tree=tree, vocabulary=vocabulary, draws=1)


def draw(
    dice: Dice, logits: Array, *, tree: Tree, depth: int, nodes: np.ndarray
) -> tuple[Array, Array]:
    """The best tokens under the noise; a token of probability 0 is no child."""
    scores = logits + dice.guess[:, row_of(tree, nodes), 0]
    tokens = best(scores, tree.children(depth))
    return tokens, jnp.take_along_axis(scores, tokens, axis=-1) > -jnp.inf


def verify(
    dice: Dice, candidates: Candidates, logits: Array, sampling: Sampling, *, tree: Tree
) -> Verdict:
    """Tries the children of each node in the order in which they were drawn."""
    return walk(dice, candidates, logits, sampling, tree=tree, next_draw=without)


def without(logits: Array, token: Array) -> Array:
    """Logits `[V]` of a draw that cannot be `token`.

    The law is made of them anew for every draw: of a law that one token has nearly all of, nothing
    would be left in float32 to divide among the others.
    """
    return jnp.where(jnp.arange(len(logits)) == token, LEAST, logits)
