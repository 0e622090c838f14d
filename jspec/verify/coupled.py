"""Coupled verification: the target picks with its own noise, and the walk follows its picks.

The emitted token is a function of the target and the noise alone, so no draft, no tree and no
pruning can change the text. (In the literature: Gumbel coupling, drafter-invariant decoding.)
"""

import jax.numpy as jnp
from jax import Array

from jspec.candidates import Candidates, Verdict
from jspec.sampling import Sampling, pick


def verify(candidates: Candidates, logits: Array, noise: Array, sampling: Sampling) -> Verdict:
    """Walks down from the root for as long as the picked token is among a node's children.

    Args:
      candidates: trees of N nodes.
      logits: `[B, N, V]` the target's, at every node.
      noise: `[B, A, V]` for the tokens after the root, after its children, and so on.
    """
    rows = jnp.arange(logits.shape[0])
    node = jnp.zeros_like(rows)
    walking = jnp.ones_like(rows, bool)
    count = next_token = jnp.zeros_like(rows)
    path = []
    for depth in range(noise.shape[1]):
        path.append(node)
        count += walking
        picked = pick(logits[rows, node, None], noise[:, depth, None], sampling)[:, 0]
        next_token = jnp.where(walking, picked, next_token)
        chosen = (
            (candidates.parent == node[:, None])
            & (candidates.tokens == picked[:, None])
            & candidates.valid
        )
        walking &= chosen.any(axis=-1)
        node = jnp.where(walking, jnp.argmax(chosen, axis=-1), node)
    return Verdict(jnp.stack(path, axis=-1), count, next_token)
