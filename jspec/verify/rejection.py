"""Rejection rules: what they share, and token-level rejection along a chain.

Drafting, tests and the bonus token take randomness of their own, each keyed by its purpose.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.candidates import SAMPLED, Candidates, Verification
from jspec.core.sampling import SamplingParams, are_finite, first_best
from jspec.core.threefry import gumbel
from jspec.core.tree import DynamicTree, Tree
from jspec.verify.coupling import top_tokens
from jspec.verify.registry import NamedRule

# The purposes that keys are folded with.
DRAFTING, TESTING, EMITTING = 1, 2, 3


@struct.dataclass
class RejectionNoise:
    """The randomness of a round.

    Attributes:
      draft: `[B, I, W, V]` Gumbel noise for the children of the I nodes that have some, W draws of
        it a node.
      uniforms: `[B, N]` in [0, 1), one for each node's test.
      bonus: `[B, V]` Gumbel noise for the bonus token.
    """

    draft: Array
    uniforms: Array
    bonus: Array


class RejectionRule(NamedRule):
    """A rule that weighs sampled candidates by the draft's distribution against the target's.

    Siblings are sampled without replacement: the order of Gumbel's top-k is the order of such
    samples.
    """

    needs_draft_logits = True
    drafter_invariant = False
    sources = (SAMPLED,)
    why_not = (
        "none of these comes as often as the draft's distribution says, so the text would not "
        "follow the target's distribution; use coupled or one_sample"
    )

    def draws(self, tree: Tree) -> int:
        """How many samples of noise a node's children take."""
        return 1

    def sample_noise(
        self,
        keys: Array,
        length: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
        vocab_size: int,
    ) -> RejectionNoise:
        """Greedy sequences draft without noise; what they emit does not depend on it."""
        assert isinstance(tree, Tree)
        inner, draws = int(tree.inner.sum()), self.draws(tree)

        def one(key: Array, position: Array, sampled: Array) -> RejectionNoise:
            draft, test, emit = (
                jax.random.fold_in(jax.random.fold_in(key, purpose), position)
                for purpose in (DRAFTING, TESTING, EMITTING)
            )
            noise = jax.vmap(lambda count: gumbel(draft, count, vocab_size))(
                jnp.arange(inner * draws, dtype=jnp.uint32)
            )
            noise = jnp.where(sampled, noise, 0.0).reshape(inner, draws, vocab_size)
            uniforms = jax.random.uniform(test, (tree.size,), jnp.float32)
            return RejectionNoise(noise, uniforms, gumbel(emit, 0, vocab_size))

        return jax.vmap(one)(keys, length, sampling.temperature > 0)

    def draw(
        self,
        noise: RejectionNoise,
        logits: Array,
        *,
        tree: Tree | DynamicTree,
        depth: int,
        nodes: np.ndarray,
    ) -> tuple[Array, Array]:
        """The best tokens under the noise; a token of probability 0 is no child, and a node whose
        draft logits are not finite has none."""
        assert isinstance(tree, Tree)
        scores = logits + noise.draft[:, inner_index(tree, nodes), 0]
        tokens = top_tokens(scores, tree.children(depth))
        possible = jnp.take_along_axis(scores, tokens, axis=-1) > -jnp.inf
        return tokens, possible & are_finite(logits)[..., None]

    def score(
        self,
        noise: RejectionNoise,
        logits: Array,
        tokens: Array,
        sampling: SamplingParams,
        *,
        depth: int,
    ) -> Array:
        """There is none: candidates that are chosen by a score are not samples of the draft."""
        raise ValueError(f"rule={self.name!r} has no score: it does not verify dynamic trees")


class ChainRule(RejectionRule):
    """A rejection rule for one candidate a level."""

    def check_compatible(self, tree: Tree | DynamicTree, source: str) -> None:
        """Raises `ValueError` for a tree that is no chain, or candidates that are not sampled."""
        if tree.depth != tree.size - 1:
            raise ValueError(
                f"rule={self.name!r} verifies a chain, and the tree has {tree.size} nodes of which "
                f"{tree.path_length} on its longest path: use chain:{tree.depth}, or another rule"
            )
        super().check_compatible(tree, source)


@dataclass(frozen=True, repr=False)
class TokenLevel(ChainRule):
    """Token-level rejection (Leviathan et al. 2023, algorithm 1; Chen et al. 2023).

    A draft token is accepted with probability `min(1, p / q)`. At the first that is rejected, the
    target samples from the residual `norm(max(p - q, 0))`.
    """

    name = "token_level"

    def verify(
        self,
        noise: RejectionNoise,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """Accepts tokens up to the first that is rejected."""
        assert isinstance(tree, Tree)
        chain = jnp.arange(tree.size, dtype=jnp.int32)

        def one(
            noise: RejectionNoise, candidates: Candidates, logits: Array, temperature: Array
        ) -> Verification:
            assert candidates.draft_logits is not None
            p = jax.vmap(to_probs, (0, None))(logits, temperature)
            q = jax.nn.softmax(candidates.draft_logits)
            drafted = chain[:-1], candidates.tokens[1:]
            accepted = noise.uniforms[1 : tree.size] * q[drafted] < p[drafted]
            num_accepted = 1 + length_of_prefix(accepted & candidates.valid[1:])
            last = num_accepted - 1
            following = candidates.valid[jnp.minimum(num_accepted, tree.depth)]
            rejected = (num_accepted < tree.size) & following
            rest = residual(p[last], q[jnp.minimum(last, tree.depth - 1)])
            bonus = sample_token(jnp.where(rejected, rest, p[last]), noise.bonus)
            return Verification(jnp.minimum(chain, last), num_accepted, bonus)

        return jax.vmap(one)(noise, candidates, logits, sampling.temperature)


def inner_index(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    """The places of `nodes` among those that have children."""
    return np.cumsum(tree.inner)[nodes] - 1


def length_of_prefix(accepted: Array) -> Array:
    """How many of `[N]` come before the first that is false: `[]` int32."""
    return jnp.cumprod(accepted, dtype=jnp.int32).sum(dtype=jnp.int32)


def to_probs(logits: Array, temperature: Array) -> Array:
    """Probabilities `[V]` of processed logits; at temperature 0 the best token has them all."""
    greedy = jax.nn.one_hot(first_best(logits), len(logits), dtype=logits.dtype)
    return jnp.where(temperature > 0, jax.nn.softmax(logits), greedy)


def residual(p: Array, q: Array) -> Array:
    """`norm(max(p - q, 0))` over `[V]`; `p` where that is empty, which has probability 0."""
    left = jnp.maximum(p - q, 0.0)
    mass = left.sum()
    return jnp.where(mass > 0, left / jnp.where(mass > 0, mass, 1.0), p)


def sample_token(p: Array, noise: Array) -> Array:
    """A token of the distribution `p` `[V]`, by Gumbel noise `[V]`."""
    return first_best(jnp.log(p) + noise)
