"""Recursive rejection of siblings drawn independently (SpecInfer)."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Draws, Verdict
from jspec.core.sampling import Sampling, first_best
from jspec.core.tree import Tree
from jspec.verify import rejection
from jspec.verify.recursive import walk
from jspec.verify.rejection import Dice, row_of

WEIGHS = True


def admit(tree: Tree, draws: Draws) -> None:
    """Raises `ValueError` for candidates that are not drawn."""
    rejection.admit("with_replacement", draws)


def roll(keys: Array, length: Array, sampling: Sampling, *, tree: Tree, vocabulary: int) -> Dice:
    """One draw of noise for each child that a node may have."""
    draws = tree.offspring.shape[1]
    return rejection.roll(keys, length, sampling, tree=tree, vocabulary=vocabulary, draws=draws)


def draw(
    dice: Dice, logits: Array, *, tree: Tree, depth: int, nodes: np.ndarray
) -> tuple[Array, Array]:
    """A token of the law for each child; two children may be alike."""
    noise = dice.guess[:, row_of(tree, nodes), : tree.children(depth)]
    tokens = first_best(logits[:, :, None] + noise)
    return tokens, jnp.ones(tokens.shape, bool)


def verify(
    dice: Dice, candidates: Candidates, logits: Array, sampling: Sampling, *, tree: Tree
) -> Verdict:
    """Tries the children of each node in turn, each against the same law of the draft."""
    return walk(dice, candidates, logits, sampling, tree=tree, next_draw=lambda logits, _: logits)
