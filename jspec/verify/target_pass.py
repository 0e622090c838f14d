"""The target's pass over a tree, whatever the rule: no more of the tree than was drafted, and no
token out of logits that are not finite."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jspec.core.candidates import Candidates, Randomness, Rule, Verification
from jspec.core.sampling import NO_TOKEN, SamplingParams, are_finite
from jspec.core.tree import DynamicTree, Tree
from jspec.models.protocol import Output


def verify_finite(
    rule: Rule,
    noise: Randomness,
    candidates: Candidates,
    raw: Array,
    logits: Array,
    sampling: SamplingParams,
    *,
    tree: Tree | DynamicTree,
) -> Verification:
    """`rule.verify`, with `NO_TOKEN` for the bonus token where the target's logits at the end of
    the path are not finite.

    Nothing below such a node is accepted, so it ends its path, and what is accepted above it is
    accepted as in a tree where it is a leaf. Whether it is one does not depend on the draft tokens
    below, so every rule stays exact.

    Args:
      raw, logits: `[B, N, V]` the target's, as the model gives them and processed.
    """
    finite = are_finite(raw, logits)
    parent = candidates.parent
    above = jnp.take_along_axis(finite, jnp.maximum(parent, 0), axis=1)
    candidates = replace(candidates, valid=candidates.valid & (above | (parent < 0)))
    verification = rule.verify(noise, candidates, logits, sampling, tree=tree)
    last = jnp.maximum(verification.num_accepted - 1, 0)[:, None]
    node = jnp.take_along_axis(verification.accepted_path, last, axis=1)
    chosen = jnp.take_along_axis(finite, node, axis=1)[:, 0]
    return replace(verification, bonus_token=jnp.where(chosen, verification.bonus_token, NO_TOKEN))


def run_smallest_bucket(
    verify_tree: Callable[[Candidates, Tree | DynamicTree], tuple[Verification, Output]],
    candidates: Candidates,
    tree: Tree | DynamicTree,
) -> tuple[Verification, Output]:
    """The target's pass over no more of a tree than was drafted: the smallest verification bucket.

    Nodes are in breadth-first order, so a tree cut after a level is a prefix of every table, its
    mask the upper left corner of the whole one (the sliced mask of arXiv 2409.10644, made once).
    Every bucket is a branch of one compiled program, padded to the shapes of the whole tree; the
    padding means nothing.
    """
    if candidates.num_levels is None or isinstance(tree, DynamicTree):
        return verify_tree(candidates, tree)
    cuts = [tree.cut(depth) for depth in candidates.buckets]

    def branch(cut: Tree) -> Callable[[], tuple[Verification, Output]]:
        def run() -> tuple[Verification, Output]:
            verification, output = verify_tree(candidates.cut(cut), cut)
            path = _pad(verification.accepted_path, 1, tree.path_length, mode="edge")
            return replace(verification, accepted_path=path), _pad_output(output, tree.size)

        return run

    depths = jnp.asarray(candidates.buckets, jnp.int32)
    return jax.lax.switch(
        jnp.searchsorted(depths, candidates.num_levels), [branch(cut) for cut in cuts]
    )


def _pad_output(output: Output, nodes: int) -> Output:
    return replace(
        output,
        hidden=_pad(output.hidden, 1, nodes),
        hidden_states=jax.tree.map(lambda x: _pad(x, 1, nodes), output.hidden_states),
        block=jax.tree.map(lambda x: _pad(x, 2, nodes), output.block),
    )


def _pad(x: Array, axis: int, size: int, mode: str = "constant") -> Array:
    ends = [(0, 0)] * x.ndim
    ends[axis] = 0, size - x.shape[axis]
    return jnp.pad(x, ends, mode=mode)
