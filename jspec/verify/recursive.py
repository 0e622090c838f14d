"""Recursive rejection of siblings: each child of a node is tried in turn, against the residual of
the target's distribution that the rejections before it left.

When none is left the target samples from the last residual.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Verification
from jspec.core.sampling import SamplingParams, are_finite, first_best
from jspec.core.tree import NO_NODE, DynamicTree, Tree
from jspec.verify.rejection import (
    RejectionNoise,
    RejectionRule,
    inner_index,
    residual,
    sample_token,
    to_probs,
)

# Finite, so that there is a distribution even when every token was sampled.
LEAST = jnp.finfo(jnp.float32).min


class RecursiveRule(RejectionRule):
    """Walks down the tree and tries the children of each node in the order of their drawing."""

    def next_draft_logits(self, logits: Array, token: Array) -> Array:
        """Draft logits `[V]` of a node's next child, from the rejected one's and its token."""
        raise NotImplementedError

    def verify(
        self,
        noise: RejectionNoise,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """Accepts the path of first children that pass their tests."""
        assert isinstance(tree, Tree)
        rows = inner_index(tree, np.arange(tree.size))

        def one(
            noise: RejectionNoise, candidates: Candidates, logits: Array, temperature: Array
        ) -> Verification:
            assert candidates.draft_logits is not None
            node, num_accepted, walking = jnp.int32(0), jnp.int32(1), jnp.bool_(True)
            path, p = [node], to_probs(logits[0], temperature)
            for depth in range(tree.depth):
                draft = candidates.draft_logits[jnp.asarray(rows)[node]]
                child = jnp.int32(NO_NODE)
                for rank in range(tree.children(depth)):
                    tried = jnp.asarray(tree.offspring)[node, rank]
                    q, token = jax.nn.softmax(draft), candidates.tokens[tried]
                    trying = (
                        walking & (child == NO_NODE) & (tried != NO_NODE) & candidates.valid[tried]
                    )
                    accepted = trying & (noise.uniforms[tried] * q[token] < p[token])
                    child = jnp.where(accepted, tried, child)
                    p = jnp.where(trying & ~accepted, residual(p, q), p)
                    draft = self.next_draft_logits(draft, token)
                walking = child != NO_NODE
                node = jnp.where(walking, child, node)
                num_accepted = num_accepted + walking.astype(jnp.int32)
                p = jnp.where(walking, to_probs(logits[node], temperature), p)
                path.append(node)
            return Verification(jnp.stack(path), num_accepted, sample_token(p, noise.bonus))

        return jax.vmap(one)(noise, candidates, logits, sampling.temperature)


@dataclass(frozen=True, repr=False)
class WithReplacement(RecursiveRule):
    """Recursive rejection of siblings that are sampled independently (SpecInfer); two children may
    be the same token."""

    name = "with_replacement"

    def draws(self, tree: Tree) -> int:
        """One sample of noise for each child that a node may have."""
        return tree.offspring.shape[1]

    def draw(
        self,
        noise: RejectionNoise,
        logits: Array,
        *,
        tree: Tree | DynamicTree,
        depth: int,
        nodes: np.ndarray,
    ) -> tuple[Array, Array]:
        """A token of the distribution for each child, where there is one."""
        assert isinstance(tree, Tree)
        gumbel = noise.draft[:, inner_index(tree, nodes), : tree.children(depth)]
        tokens = first_best(logits[:, :, None] + gumbel)
        return tokens, jnp.broadcast_to(are_finite(logits)[..., None], tokens.shape)

    def next_draft_logits(self, logits: Array, token: Array) -> Array:
        """The same for every sibling."""
        return logits


@dataclass(frozen=True, repr=False)
class WithoutReplacement(RecursiveRule):
    """Recursive rejection of siblings that are sampled without replacement (MCSD, Sequoia, RSD)."""

    name = "without_replacement"

    def next_draft_logits(self, logits: Array, token: Array) -> Array:
        """A rejected token has probability 0 in the distribution of the next."""
        return without(logits, token)


def without(logits: Array, token: Array) -> Array:
    """Logits `[V]` of a sample that cannot be `token`.

    The distribution is made of them from scratch for every sample: of a distribution that one token
    has nearly all of, nothing would be left in float32 to divide among the others.
    """
    return jnp.where(jnp.arange(len(logits), dtype=jnp.int32) == token, LEAST, logits)
