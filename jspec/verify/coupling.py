"""Coupled verification: the target picks with its own noise, and the walk follows its picks.

The emitted token is a function of the target and the noise alone, so no draft, no tree and no
pruning can change the text. (In the literature: Gumbel coupling, drafter-invariant decoding.) Three
rules share it. They differ in what the draft proposes and how a dynamic tree is scored.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import CHOSEN, SAMPLED, Candidates, Verification
from jspec.core.sampling import SamplingParams, first_best, pick_token, sample_noise
from jspec.core.tree import DynamicTree, Tree
from jspec.verify.registry import NamedRule

# The draft's error, as a scale of its raw logits, at temperature 0 and more for each degree: a line
# through the likeliest scales at seven temperatures of the picks of zoo:target under
# zoo:distilled, on text that the target generated after held-out prompts (`bench/scores.py`).
ERROR, ERROR_PER_TEMPERATURE = 0.45, 0.2


@dataclass(frozen=True, repr=False)
class Coupled(NamedRule):
    """The draft proposes its best tokens under the noise that the target will pick with."""

    name = "coupled"
    needs_draft_logits = False
    drafter_invariant = True
    sources = (SAMPLED, CHOSEN)
    why_not = (
        "it continues the one root that the target has emitted before drafting begins: take the "
        "draft's own drafter"
    )

    def sample_noise(
        self,
        keys: Array,
        length: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
        vocab_size: int,
    ) -> Array:
        """The noise `[B, A, V]` of the positions that follow the root and the nodes below it."""
        positions = length[:, None] + jnp.arange(tree.path_length, dtype=jnp.int32)[None]
        return sample_noise(keys, positions, vocab_size, sampling)

    def draw(
        self,
        noise: Array,
        logits: Array,
        *,
        tree: Tree | DynamicTree,
        depth: int,
        nodes: np.ndarray,
    ) -> tuple[Array, Array]:
        """The draft's best tokens under the target's noise."""
        tokens = top_tokens(logits + noise[:, depth, None], tree.children(depth))
        return tokens, jnp.ones(tokens.shape, bool)

    def score(
        self, noise: Array, logits: Array, tokens: Array, sampling: SamplingParams, *, depth: int
    ) -> Array:
        """How likely the target picks each of `tokens`, given that draft and target share noise.

        The target picks the best of the draft's perturbed logits after these are moved by the
        draft's error. If that were Gumbel noise of scale tau, the picks would follow their softmax
        at the temperature tau.
        """
        temperature = sampling.temperature[:, None, None]
        scale = jnp.where(temperature > 0, temperature, 1.0)
        error = ERROR + ERROR_PER_TEMPERATURE * temperature
        return log_probs_of((logits + noise[:, depth, None]) * (scale / error), tokens)

    def verify(
        self,
        noise: Array,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """Walks down from the root for as long as the picked token is among a node's children."""
        rows = jnp.arange(len(logits), dtype=jnp.int32)
        node, num_accepted = jnp.zeros_like(rows), jnp.ones_like(rows)
        walking, path = jnp.ones_like(rows, bool), [node]
        token = pick_token(logits[:, 0], noise[:, 0])
        for depth in range(1, tree.path_length):
            picked = (
                (candidates.parent == node[:, None])
                & (candidates.tokens == token[:, None])
                & candidates.valid
            )
            walking &= picked.any(axis=-1)
            child = jnp.argmax(picked, axis=-1).astype(jnp.int32)
            node = jnp.where(walking, child, node)
            token = jnp.where(walking, pick_token(logits[rows, node], noise[:, depth]), token)
            num_accepted += walking.astype(jnp.int32)
            path.append(node)
        return Verification(jnp.stack(path, axis=-1), num_accepted, token)


@dataclass(frozen=True, repr=False)
class OneSample(Coupled):
    """One sample per node, for candidates that are chosen and not sampled: the target samples a
    token of its own at every node, and where that is a child it goes there (EAGLE-2's rule at any
    temperature, MCSD's naive sampling).

    A child is accepted as often as the target would emit it, so the best candidates are the
    likeliest. It is the coupled rule for a draft that does not look at the noise.
    """

    name = "one_sample"

    def draw(
        self,
        noise: Array,
        logits: Array,
        *,
        tree: Tree | DynamicTree,
        depth: int,
        nodes: np.ndarray,
    ) -> tuple[Array, Array]:
        """The draft's likeliest tokens."""
        tokens = top_tokens(logits, tree.children(depth))
        return tokens, jnp.ones(tokens.shape, bool)

    def score(
        self, noise: Array, logits: Array, tokens: Array, sampling: SamplingParams, *, depth: int
    ) -> Array:
        """How likely the target samples each of `tokens`, whose noise the draft does not look at.

        To the draft the noise is one more error: of the scale of the temperature, beside `ERROR`.
        (EAGLE-2 scores by the distribution at temperature 1 whatever is served.)
        """
        temperature = sampling.temperature[:, None, None]
        scale = jnp.where(temperature > 0, temperature, 1.0)
        return log_probs_of(logits * (scale / jnp.hypot(temperature, ERROR)), tokens)


@dataclass(frozen=True, repr=False)
class ByConfidence(Coupled):
    """The coupled rule with EAGLE-2's score in the place of its own, to compare one with the other.

    Nodes get the children that the coupled rule gives them. Which nodes are expanded, and which are
    kept, depends on the draft's confidence alone. The text is the same.
    """

    name = "by_confidence"

    def check_compatible(self, tree: Tree | DynamicTree, source: str) -> None:
        """Dynamic trees; over others it is the coupled rule, and raises `ValueError`."""
        super().check_compatible(tree, source)
        if isinstance(tree, Tree):
            raise ValueError(
                "rule='by_confidence' scores dynamic trees, and this tree is static: give "
                "tree=dynamic:4x4x12, or rule=coupled"
            )

    def score(
        self, noise: Array, logits: Array, tokens: Array, sampling: SamplingParams, *, depth: int
    ) -> Array:
        """The draft's distribution at temperature 1, whatever is served (EAGLE-2, arXiv
        2406.16858), of what filters and penalties leave."""
        temperature = sampling.temperature[:, None, None]
        return log_probs_of(logits * jnp.where(temperature > 0, temperature, 1.0), tokens)


def top_tokens(scores: Array, width: int) -> Array:
    """The `width` best tokens of `[B, n, V]`, in order: `[B, n, width]` int32."""
    if width == 1:
        return first_best(scores)[..., None]
    return jax.lax.top_k(scores, width)[1]


def log_probs_of(scores: Array, tokens: Array) -> Array:
    """Log-probabilities `[B, n, W]` of `tokens` `[B, n, W]` in the softmax of `[B, n, V]`."""
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return jnp.take_along_axis(scores, tokens, axis=-1) - total
