"""Recursive rejection: the children of a node are tried in the order in which they were drawn.

Each rejection leaves the target its residual, against which the next child is tried; the first that
is kept is descended into. When none is left the target draws from the last residual.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Verdict
from jspec.core.sampling import Sampling
from jspec.core.tree import NO_NODE, Tree
from jspec.verify.rejection import Dice, law, pick, residual, row_of


def walk(
    dice: Dice,
    candidates: Candidates,
    logits: Array,
    sampling: Sampling,
    *,
    tree: Tree,
    next_draw: Callable[[Array, Array], Array],
) -> Verdict:
    """Walks down the trees.

    Args:
      next_draw: the logits `[V]` of a node's next child, from those of the one which was rejected
        and its token.
    """

    rows = row_of(tree, np.arange(tree.size))

    def one(dice: Dice, candidates: Candidates, logits: Array, temperature: Array) -> Verdict:
        node, count, walking = jnp.int32(0), jnp.int32(1), jnp.bool_(True)
        path, p = [node], law(logits[0], temperature)
        for depth in range(tree.depth):
            draft = candidates.logits[jnp.asarray(rows)[node]]
            child = jnp.int32(NO_NODE)
            for rank in range(tree.children(depth)):
                tried = jnp.asarray(tree.offspring)[node, rank]
                q, token = jax.nn.softmax(draft), candidates.tokens[tried]
                trying = walking & (child == NO_NODE) & (tried != NO_NODE) & candidates.valid[tried]
                kept = trying & (dice.test[tried] * q[token] < p[token])
                child = jnp.where(kept, tried, child)
                p = jnp.where(trying & ~kept, residual(p, q), p)
                draft = next_draw(draft, token)
            walking = child != NO_NODE
            node, count = jnp.where(walking, child, node), count + walking
            p = jnp.where(walking, law(logits[node], temperature), p)
            path.append(node)
        return Verdict(jnp.stack(path), count, pick(p, dice.emit))

    return jax.vmap(one)(dice, candidates, logits, sampling.temperature)
