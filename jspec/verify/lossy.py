"""The improved multi-candidate method as its authors' code has it (arXiv 2409.10644): LOSSY.

The text does not follow the target's law. It stands here to be held against the exact rules, is no
part of what `jspec.verify` offers, and works with `TargetStartedDrafter` alone.

The first level of a tree are W roots, drawn without replacement from the law R of the next token,
and below each goes on what the draft draws. The longest path on which every draft passes its own
test is written, root included. A tree of W chains is the method's fork, any other its static tree.
What departs from an exact scheme:

1. The root whose path is the longest is written, so that roots do not follow R; at temperature 0
   it need not be the target's best token.
2. Where no draft passes, the first root is written, and the next R is the target's law after it,
   though that law had its chance and lost it: a residual is owed.
3. Where a fork rejects, the residual is of the draft's law one level too high.
4. Siblings drawn without replacement are tested each for itself, against laws that take no account
   of those before.
5. The first R after a prompt ignores the temperature.
6. At temperature 0 the next R of a fork is the target's law at temperature 1, of which the W
   likeliest are roots.

One detail is ours: a root of probability 0 is none. Of a static tree at temperature 0 R has one
token alone, beside which the code takes any W - 1 others.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Draws, Verdict
from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree
from jspec.verify import without_replacement
from jspec.verify.rejection import Dice, law, residual, row_of

WEIGHS = True
roll, draw = without_replacement.roll, without_replacement.draw


def admit(tree: Tree | Growth, draws: Draws) -> None:
    """Raises `ValueError` for another drafter's candidates, or a tree that the method has not."""
    if draws is not Draws.TARGET:
        raise ValueError(
            "rule='lossy' takes roots of the target's law, and this drafter guesses what follows "
            "a token that is written: give TargetStartedDrafter, or an exact rule"
        )
    widths = [tree.children(depth) for depth in range(tree.path_length - 1)]
    if tree != Tree.branching(widths) or len(widths) < 2:
        raise ValueError(
            f"tree of {tree.size} nodes: rule='lossy' follows roots below which every node of a "
            "level has as many children: give fork:2x4, 2x4x4x1, or chain:5"
        )


def verify(
    dice: Dice, candidates: Candidates, logits: Array, sampling: Sampling, *, tree: Tree
) -> Verdict:
    """Writes the longest path that passes, its root included; the first of those that are as long.

    The last node of the path is the token that is `next`, so that it is the node at `count`. With
    no root at all nothing is written, and the verdict is node 0 again.
    """
    depths, above = jnp.asarray(tree.depths), np.maximum(tree.parents, 0)
    paths = jnp.asarray(_paths(tree))

    def one(dice: Dice, candidates: Candidates, logits: Array, temperature: Array) -> Verdict:
        p = jax.vmap(law, (0, None))(logits, temperature)[above, candidates.tokens]
        q = jax.nn.softmax(candidates.logits)[row_of(tree, above), candidates.tokens]
        passed = candidates.valid & ((depths < 2) | (dice.test[: tree.size] * q < p))
        whole = ~jnp.any(jnp.asarray(tree.mask) & ~passed[None], axis=1)
        last = jnp.argmax(jnp.where(whole, depths, 0))
        return Verdict(paths[last], depths[last], candidates.tokens[last])

    return jax.vmap(one)(dice, candidates, logits, sampling.temperature)


def following(
    logits: Array,
    draft: Array,
    path: Array,
    count: Array,
    valid: Array,
    first: Array,
    sampling: Sampling,
    *,
    tree: Tree,
) -> Array:
    """Log-probabilities `[B, V]` of R, of which the next round's roots are drawn.

    Args:
      logits: `[B, V]` the target's, warped, after the token that was written last.
      draft: `[B, I, V]`, and valid: `[B, N]`, of the last round's candidates.
      path: `[B, A]`, and count: `[B]`, of the verdict on them.
      first: `[B]` whether nothing has been written yet.
    """
    fork = is_fork(tree)
    parents, rows = jnp.asarray(tree.parents), jnp.asarray(row_of(tree, np.arange(tree.size)))

    def one(
        logits: Array,
        draft: Array,
        path: Array,
        count: Array,
        valid: Array,
        first: Array,
        temperature: Array,
    ) -> Array:
        last, above = path[count], path[jnp.maximum(count - 1, 0)]
        soft = jax.nn.softmax(logits)
        p = soft if fork else jnp.where(first, soft, law(logits, temperature))
        q = jax.nn.softmax(draft[rows[above if fork else last]])
        rejected = (valid & (parents == last)).any() & (count > 1) & (temperature > 0)
        return jnp.log(jnp.where(rejected, residual(p, q), p))

    return jax.vmap(one)(logits, draft, path, count, valid, first, sampling.temperature)


def is_fork(tree: Tree) -> bool:
    """Whether it branches nowhere but into its roots."""
    return all(tree.children(depth) == 1 for depth in range(1, tree.depth))


def _paths(tree: Tree) -> np.ndarray:
    """`[N, A]` the nodes from node 0 to each, which is repeated."""
    lines = (np.flatnonzero(row) for row in tree.mask)
    return np.stack([np.pad(x, (0, tree.path_length - len(x)), mode="edge") for x in lines])
