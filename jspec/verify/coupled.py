"""Coupled verification: the target picks with its own noise, and the walk follows its picks.

The emitted token is a function of the target and the noise alone, so no draft, no tree and no
pruning can change the text. (In the literature: Gumbel coupling, drafter-invariant decoding.)
"""

import jax.numpy as jnp
from jax import Array

from jspec.candidates import Candidates, Verdict
from jspec.sampling import Sampling, pick


def verify(
    candidates: Candidates, logits: Array, noise: Array, sampling: Sampling, *, path_length: int
) -> Verdict:
    """Walks down from the root for as long as the picked token is among a node's children.

    Args:
      candidates: trees of N nodes, at most `path_length` (A) of them from the root to a leaf.
      logits: `[B, N, V]` the target's, at every node.
      noise: `[B, N, V]` that of the position which follows each node.
    """
    picks = pick(logits, noise, sampling)
    rows = jnp.arange(len(picks))
    node = jnp.zeros_like(rows)
    walking = jnp.ones_like(rows, bool)
    path, count = [node], jnp.ones_like(rows)
    for _ in range(path_length - 1):
        chosen = (
            (candidates.parent == node[:, None])
            & (candidates.tokens == picks[rows, node][:, None])
            & candidates.valid
        )
        walking &= chosen.any(axis=-1)
        node = jnp.where(walking, jnp.argmax(chosen, axis=-1), node)
        count += walking
        path.append(node)
    return Verdict(jnp.stack(path, axis=-1), count, picks[rows, node])
