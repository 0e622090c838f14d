"""Rules that weigh whole paths: block verification of a chain, traversal verification of a tree.

What the target gives to one token beyond the draft makes up for what the next ones lack, so that no
fewer are accepted on average than token by token.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Verification
from jspec.core.sampling import SamplingParams
from jspec.core.tree import NO_NODE, DynamicTree, Tree
from jspec.verify.recursive import without
from jspec.verify.rejection import (
    ChainRule,
    RejectionNoise,
    RejectionRule,
    inner_index,
    length_of_prefix,
    residual,
    sample_token,
    to_probs,
)

LEAST = jnp.finfo(jnp.float32).tiny


@dataclass(frozen=True, repr=False)
class BlockVerification(ChainRule):
    """Block verification (arXiv 2403.10444): the tokens of a chain are weighed together.

    Along a chain of one token it is token-level rejection.
    """

    name = "block"

    def verify(
        self,
        noise: RejectionNoise,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """Accepts the longest of the paths that pass; each is tested, whatever the others do."""
        assert isinstance(tree, Tree)
        chain = jnp.arange(tree.size, dtype=jnp.int32)

        def one(
            noise: RejectionNoise, candidates: Candidates, logits: Array, temperature: Array
        ) -> Verification:
            assert candidates.draft_logits is not None
            p = jax.vmap(to_probs, (0, None))(logits, temperature)
            q = jax.nn.softmax(candidates.draft_logits)
            drafted = chain[:-1], candidates.tokens[1:]
            path_weights = [jnp.float32(1)]
            for of_target, of_draft in zip(p[drafted], q[drafted], strict=True):
                path_weights.append(extend_weight(path_weights[-1], of_target, of_draft))
            weights = jnp.stack(path_weights)
            chances, left = jax.vmap(rejection_residual)(weights[:-1], p[:-1], q)
            end = length_of_prefix(candidates.valid[1:])
            chances = jnp.where(chain < end, jnp.pad(chances, (0, 1)), weights)
            passed = (noise.uniforms[: tree.size] < chances) & (chain <= end)
            last = jnp.where(passed, chain, 0).max()
            rest = jnp.where(last < end, left[jnp.minimum(last, tree.depth - 1)], p[last])
            bonus = sample_token(rest, noise.bonus)
            return Verification(jnp.minimum(chain, last), 1 + last, bonus)

        return jax.vmap(one)(noise, candidates, logits, sampling.temperature)


@dataclass(frozen=True, repr=False)
class TraversalVerification(RejectionRule):
    """Traversal verification of a tree, leaf to root (arXiv 2505.12398), over siblings sampled
    without replacement. The steps are reconstructed from the abstract and not checked against the
    paper; that they are exact rests on our own test of the joint distribution.

    Paths are weighed whole, the leaves first: the first node that passes its test is accepted with
    all that is above it. A rejected one is removed from the tree, which leaves its parent a
    residual and a weight of its own. Along a chain it is block verification.
    """

    name = "traversal"

    def verify(
        self,
        noise: RejectionNoise,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """Accepts the path to the first node, children before parents, that passes its test.

        What a rejected child leaves its parent does not depend on what was below the child, so
        levels are weighed from the root down, all nodes of one at once.
        """
        assert isinstance(tree, Tree)
        lines = _paths_to_nodes(tree)
        paths = np.minimum(lines, np.arange(tree.size, dtype=np.int32)[:, None])
        order = np.array(sorted(range(tree.size), key=lambda node: tuple(lines[node])), np.int32)

        def one(
            noise: RejectionNoise, candidates: Candidates, logits: Array, temperature: Array
        ) -> Verification:
            assert candidates.draft_logits is not None
            p = jax.vmap(to_probs, (0, None))(logits, temperature)
            weights, exists = jnp.ones(tree.size, jnp.float32), jnp.ones(tree.size, bool)
            for depth in range(tree.depth):
                nodes = np.flatnonzero(tree.inner & (tree.depths == depth))
                children = tree.offspring[nodes, : tree.children(depth)]
                real = children != NO_NODE
                alive = candidates.valid[children] & exists[nodes][:, None] & real
                draft = candidates.draft_logits[inner_index(tree, nodes)]
                first, remaining, left = jax.vmap(_weigh_children)(
                    weights[nodes], p[nodes], draft, candidates.tokens[children], alive
                )
                below = children[real]
                weights = weights.at[nodes].set(remaining).at[below].set(first[real])
                exists, p = exists.at[below].set(alive[real]), p.at[nodes].set(left)
            passed = (noise.uniforms[: tree.size] < weights) & exists
            last = jnp.asarray(order)[jnp.argmax(passed[order])]
            path, num_accepted = jnp.asarray(paths)[last], 1 + jnp.asarray(tree.depths)[last]
            return Verification(path, num_accepted, sample_token(p[last], noise.bonus))

        return jax.vmap(one)(noise, candidates, logits, sampling.temperature)


def extend_weight(weight: Array, p: Array, q: Array) -> Array:
    """The weight of a path with one more token, from that without it and the token's probabilities:
    how likely it would be accepted if it ended there."""
    return jnp.minimum(1.0, weight * p / jnp.maximum(q, LEAST))


def rejection_residual(weight: Array | float, p: Array, q: Array) -> tuple[Array, Array]:
    """The weight and the distribution `[V]` that remain to a path when its continuation, a sample
    of `q`, is rejected."""
    left = jnp.maximum(weight * p - q, 0.0).sum()
    # At weight 1 nothing was lost: a path that ends here is accepted, even where nothing is left.
    chance = jnp.where(weight < 1, left / jnp.maximum(left + (1.0 - weight), LEAST), 1.0)
    return chance, residual(weight * p, q)


def _weigh_children(
    weight: Array, p: Array, draft: Array, tokens: Array, exists: Array
) -> tuple[Array, Array, Array]:
    """Of a node with children `tokens` `[W]`: the weight `[W]` that each has once those before it
    are rejected, and the node's own weight and distribution `[V]` once all of them are."""
    weights = []
    for token, drafted in zip(tokens, exists, strict=True):
        q = jax.nn.softmax(draft)
        weights.append(extend_weight(weight, p[token], q[token]))
        less, left = rejection_residual(weight, p, q)
        weight, p = jnp.where(drafted, less, weight), jnp.where(drafted, left, p)
        draft = without(draft, token)
    return jnp.stack(weights), weight, p


def _paths_to_nodes(tree: Tree) -> np.ndarray:
    """`[N, A]` the nodes from the root to each, padded with N: in their order children come before
    parents, and a sibling with all below it before the next."""
    lines = np.full((tree.size, tree.path_length), tree.size, np.int32)
    lines[0, 0] = 0
    for node, parent in enumerate(tree.parents[1:], start=1):
        lines[node] = lines[parent]
        lines[node, tree.depths[node]] = node
    return lines
