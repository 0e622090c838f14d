"""Traversal verification of a tree, leaf to root (arXiv 2505.12398), over siblings drawn without
replacement. The steps are as we reconstruct them from the abstract, not checked against the paper;
that they are exact rests on our own test of the joint law.

Paths are weighed whole, the leaves first: the first node that passes its test is kept with all that
is above it. A rejected one is taken from the tree, which leaves its parent a residual and a weight
of its own. Along a chain it is block verification.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Draws, Verdict
from jspec.core.sampling import Sampling
from jspec.core.tree import NO_NODE, Tree
from jspec.verify import rejection, without_replacement
from jspec.verify.block import carried, rejected
from jspec.verify.rejection import Dice, law, pick
from jspec.verify.without_replacement import without

WEIGHS = True
roll, draw = without_replacement.roll, without_replacement.draw


def admit(tree: Tree, draws: Draws) -> None:
    """Raises `ValueError` for candidates that are not drawn."""
    rejection.admit("traversal", draws)


def verify(
    dice: Dice, candidates: Candidates, logits: Array, sampling: Sampling, *, tree: Tree
) -> Verdict:
    """Keeps the path to the first node, children before parents, that passes its test.

    What a rejected child leaves its parent does not hang on what was below the child, so levels
    are weighed from the root down, all nodes of one at once.
    """
    lines = _lines(tree)
    paths = np.minimum(lines, np.arange(tree.size)[:, None])
    order = np.array(sorted(range(tree.size), key=lambda node: tuple(lines[node])))

    def one(dice: Dice, candidates: Candidates, logits: Array, temperature: Array) -> Verdict:
        p = jax.vmap(law, (0, None))(logits, temperature)
        weights, there = jnp.ones(tree.size), jnp.ones(tree.size, bool)
        for depth in range(tree.depth):
            nodes = np.flatnonzero(tree.inner & (tree.depths == depth))
            children = tree.offspring[nodes, : tree.children(depth)]
            real = children != NO_NODE
            alive = candidates.valid[children] & there[nodes][:, None] & real
            draft = candidates.logits[rejection.row_of(tree, nodes)]
            begun, ended, left = jax.vmap(_weigh)(
                weights[nodes], p[nodes], draft, candidates.tokens[children], alive
            )
            below = children[real]
            weights = weights.at[nodes].set(ended).at[below].set(begun[real])
            there, p = there.at[below].set(alive[real]), p.at[nodes].set(left)
        passed = (dice.test[: tree.size] < weights) & there
        last = jnp.asarray(order)[jnp.argmax(passed[order])]
        path, count = jnp.asarray(paths)[last], 1 + jnp.asarray(tree.depths)[last]
        return Verdict(path, count, pick(p[last], dice.emit))

    return jax.vmap(one)(dice, candidates, logits, sampling.temperature)


def _weigh(
    weight: Array, p: Array, draft: Array, tokens: Array, there: Array
) -> tuple[Array, Array, Array]:
    """Of a node with children `tokens` `[W]`: the weight `[W]` that each begins with once those
    before it are rejected, and the node's own weight and law `[V]` once all of them are."""
    begun = []
    for token, drawn in zip(tokens, there, strict=True):
        q = jax.nn.softmax(draft)
        begun.append(carried(weight, p[token], q[token]))
        less, left = rejected(weight, p, q)
        weight, p = jnp.where(drawn, less, weight), jnp.where(drawn, left, p)
        draft = without(draft, token)
    return jnp.stack(begun), weight, p


def _lines(tree: Tree) -> np.ndarray:
    """`[N, A]` the nodes from the root to each, filled up with N: in their order children come
    before parents, and a sibling with all below it before the next."""
    lines = np.full((tree.size, tree.path_length), tree.size)
    lines[0, 0] = 0
    for node, parent in enumerate(tree.parents[1:], start=1):
        lines[node] = lines[parent]
        lines[node, tree.depths[node]] = node
    return lines
