"""Coupled verification: the target picks with its own noise, and the walk follows its picks.

The emitted token is a function of the target and the noise alone, so no draft, no tree and no
pruning can change the text. (In the literature: Gumbel coupling, drafter-invariant decoding.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Draws, Verdict
from jspec.core.sampling import Sampling, first_best, noise, pick
from jspec.core.tree import Growth, Tree

WEIGHS = False

# What a draft is wrong by, as a scale of its raw logits, at temperature 0 and more for each degree:
# a line through the likeliest scales at seven temperatures of the picks of zoo:target under
# zoo:distilled, on text that the target wrote after held-out prompts (`bench/scores.py`).
ERROR, ERROR_OF_HEAT = 0.45, 0.2


def admit(tree: Tree | Growth, draws: Draws) -> None:
    """Any candidates will do but those of another scheme, which raise `ValueError`."""
    draws.refuse_roots()


def roll(
    keys: Array, length: Array, sampling: Sampling, *, tree: Tree | Growth, vocabulary: int
) -> Array:
    """The noise `[B, A, V]` of the positions that follow the root and the nodes below it."""
    positions = length[:, None] + jnp.arange(tree.path_length)[None]
    return noise(keys, positions, vocabulary, sampling)


def draw(
    dice: Array, logits: Array, *, tree: Tree | Growth, depth: int, nodes: np.ndarray
) -> tuple[Array, Array]:
    """The draft's best tokens under the noise of the target: it guesses with the same dice."""
    tokens = best(logits + dice[:, depth, None], tree.children(depth))
    return tokens, jnp.ones(tokens.shape, bool)


def score(dice: Array, logits: Array, tokens: Array, sampling: Sampling, *, depth: int) -> Array:
    """How likely the target picks each of `tokens`, whose dice are known to the draft as well.

    The target picks the best of the draft's perturbed logits once these are moved by what the draft
    is wrong by. Were that Gumbel noise of scale tau, the picks would follow their softmax at the
    temperature tau.
    """
    temperature = sampling.temperature[:, None, None]
    hot = jnp.where(temperature > 0, temperature, 1.0)
    wrong = ERROR + ERROR_OF_HEAT * temperature
    return chances((logits + dice[:, depth, None]) * (hot / wrong), tokens)


def chances(scores: Array, tokens: Array) -> Array:
    """Log-probabilities `[B, n, W]` of `tokens` `[B, n, W]` in the softmax of `[B, n, V]`."""
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return jnp.take_along_axis(scores, tokens, axis=-1) - total


def verify(
    dice: Array,
    candidates: Candidates,
    logits: Array,
    sampling: Sampling,
    *,
    tree: Tree | Growth,
) -> Verdict:
    """Walks down from the root for as long as the picked token is among a node's children."""
    rows = jnp.arange(len(logits))
    node, count = jnp.zeros_like(rows), jnp.ones_like(rows)
    walking, path = jnp.ones_like(rows, bool), [node]
    token = pick(logits[:, 0], dice[:, 0])
    for depth in range(1, tree.path_length):
        chosen = (
            (candidates.parent == node[:, None])
            & (candidates.tokens == token[:, None])
            & candidates.valid
        )
        walking &= chosen.any(axis=-1)
        node = jnp.where(walking, jnp.argmax(chosen, axis=-1), node)
        token = jnp.where(walking, pick(logits[rows, node], dice[:, depth]), token)
        count += walking
        path.append(node)
    return Verdict(jnp.stack(path, axis=-1), count, token)


def best(scores: Array, width: int) -> Array:
    """The `width` best tokens of `[B, n, V]`, in order: `[B, n, width]` int32."""
    if width == 1:
        return first_best(scores)[..., None]
    return jax.lax.top_k(scores, width)[1]
