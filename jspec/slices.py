"""The target's pass over no more of a tree than was drafted.

Nodes stand breadth-first, so a tree cut after a level is a prefix of every table, its mask the
upper left corner of the whole one (the sliced mask of arXiv 2409.10644, made once).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jspec.candidates import Candidates, Verdict
from jspec.growth import Growth
from jspec.models.protocol import Output
from jspec.tree import Tree

Check = Callable[[Candidates, Tree | Growth], tuple[Verdict, Output]]


def over_smallest_slice(
    check: Check, candidates: Candidates, tree: Tree | Growth
) -> tuple[Verdict, Output]:
    """What `check` finds on the smallest slice that holds all that was drafted.

    Every slice is a branch of one compiled program, filled up to the shapes of the whole tree; what
    stands in the rows that were not run means nothing.
    """
    if candidates.levels is None:
        return check(candidates, tree)
    whole = [tree.cut(depth) for depth in candidates.slices]

    def branch(cut: Tree) -> Callable[[], tuple[Verdict, Output]]:
        def run() -> tuple[Verdict, Output]:
            verdict, output = check(candidates.cut(cut), cut)
            path = _fill(verdict.path, 1, tree.path_length, mode="edge")
            return verdict.replace(path=path), _filled(output, tree.size)

        return run

    depths = jnp.asarray(candidates.slices)
    return jax.lax.switch(jnp.searchsorted(depths, candidates.levels), [branch(c) for c in whole])


def usual_slices(depth: int) -> tuple[int, ...]:
    """Depths at which a tree may be cut where nothing is said: every doubling, and all of it. Each
    is one more program of the target to compile."""
    doublings = [1 << power for power in range(depth.bit_length())]
    return tuple(sorted({*(cut for cut in doublings if cut < depth), depth}))


def check_slices(slices: tuple[int, ...], tree: Tree) -> None:
    """Raises `ValueError` unless they rise to the depth of the tree."""
    if list(slices) != sorted(set(slices)) or not slices or slices[0] < 1:
        raise ValueError(f"slices={slices}: give depths from 1, each once, the smallest first")
    if slices[-1] != tree.depth:
        raise ValueError(
            f"slices={slices}: the tree is {tree.depth} deep, and the largest slice must hold all "
            f"of it: end with {tree.depth}"
        )


def _filled(output: Output, nodes: int) -> Output:
    return output.replace(
        hidden=_fill(output.hidden, 1, nodes),
        features=jax.tree.map(lambda x: _fill(x, 1, nodes), output.features),
        block=jax.tree.map(lambda x: _fill(x, 2, nodes), output.block),
    )


def _fill(x: Array, axis: int, size: int, mode: str = "constant") -> Array:
    ends = [(0, 0)] * x.ndim
    ends[axis] = 0, size - x.shape[axis]
    return jnp.pad(x, ends, mode=mode)
