"""What passes between a drafter, a verification rule and the decoding loop."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.sampling import SamplingParams
from jspec.core.tree import DynamicTree, Tree

Randomness = Any
"""A rule's random numbers for one round, a pytree: the coupled rule's noise, or a rejection rule's
uniforms beside the noise that it drafts with."""

# Where candidates come from; a drafter says it, and a rule which of them it is exact for.
SAMPLED, CHOSEN = "sampled from the draft by the rule", "chosen by the drafter"


@struct.dataclass
class Candidates:
    """A tree of draft tokens for each sequence; node 0 is the root, the last emitted token.

    >>> tree, tokens = Tree.chain(2), jnp.array([[7, 3, 5]])
    >>> candidates = Candidates(tokens, jnp.array([tree.parents]), valid=tokens > 0)
    >>> candidates.cut(tree.cut(1)).tokens.tolist()
    [[7, 3]]

    Attributes:
      tokens: `[B, N]`.
      parent: `[B, N]`, the root's is -1.
      valid: `[B, N]` bool; a node that is not valid is never accepted, nor any node below it.
      draft_logits: `[B, I, V]` float32, where the rule needs them: the draft's processed logits at
        the I nodes that have children, from which these were sampled.
      depth: `[B, N]`, and mask: `[B, N, N]` bool, which nodes are a node's ancestors or itself;
        None where the shape is a static tree, whose tables say it.
      num_levels: how many levels were drafted for any row, below which no node is valid; None where
        all are.
      buckets: static, the depths at which the target's pass over a static tree may be cut off.
    """

    tokens: Array
    parent: Array
    valid: Array
    draft_logits: Array | None = None
    depth: Array | None = None
    mask: Array | None = None
    num_levels: Array | None = None
    buckets: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def cut(self, tree: Tree) -> "Candidates":
        """The candidates of a static tree's first levels, which are the `tree`."""
        nodes = {
            name: getattr(self, name)[:, : tree.size] for name in ("tokens", "parent", "valid")
        }
        logits = None if self.draft_logits is None else self.draft_logits[:, : tree.rows]
        return replace(self, **nodes, draft_logits=logits, num_levels=None, buckets=())


@struct.dataclass
class Verification:
    """What the target accepts of the candidates.

    >>> one = Verification(jnp.array([[0, 2]]), jnp.array([2]), bonus_token=jnp.array([5]))

    Attributes:
      accepted_path: `[B, A]` nodes from the root down; past `num_accepted` the last one repeats.
      num_accepted: `[B]` nodes of it that are accepted, the root included: as many tokens are
        emitted, the accepted draft tokens and the bonus token.
      bonus_token: `[B]` the target's own token after the last of them: the new root. -1 where its
        logits there are not finite, so that there is none.
    """

    accepted_path: Array
    num_accepted: Array
    bonus_token: Array


class Rule(Protocol):
    """How candidates are sampled, and which of them are accepted: an object of `jspec.verify`.

    >>> rule = verify.get("token_level")
    >>> rule.needs_draft_logits, rule.drafter_invariant
    (True, False)

    Hashable and static. All randomness of a round is made before it begins, from each sequence's
    key and the length of its text, so a text does not depend on the rest of its batch.
    """

    @property
    def name(self) -> str:
        """What `jspec.verify.get` finds it by."""
        ...

    @property
    def needs_draft_logits(self) -> bool:
        """Whether `verify` compares the draft's distributions with the target's."""
        ...

    @property
    def drafter_invariant(self) -> bool:
        """Whether the emitted tokens are a function of the target and the noise alone. Such a rule
        has a `score`, and what it accepts may be chosen by anything the drafter knows."""
        ...

    def check_compatible(self, tree: Tree | DynamicTree, source: str) -> None:
        """Raises `ValueError` with the reason if the rule is not exact for such candidates.

        Args:
          source: where they come from: `SAMPLED`, `CHOSEN`, or a word of the drafter's own.
        """

    def sample_noise(
        self,
        keys: Array,
        length: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
        vocab_size: int,
    ) -> Randomness:
        """The randomness of a round whose root is the last of `length` `[B]` tokens."""
        ...

    def draw(
        self,
        noise: Randomness,
        logits: Array,
        *,
        tree: Tree | DynamicTree,
        depth: int,
        nodes: np.ndarray,
    ) -> tuple[Array, Array]:
        """Children of the `nodes` `[n]` of a level, in drawing order, from processed draft logits
        `[B, n, V]`: tokens `[B, n, W]`, and whether there is such a child at all."""
        ...

    def score(
        self,
        noise: Randomness,
        logits: Array,
        tokens: Array,
        sampling: SamplingParams,
        *,
        depth: int,
    ) -> Array:
        """Log-probabilities `[B, n, W]` that the target goes from the nodes of a level to their
        children `tokens` `[B, n, W]`, estimated from processed draft logits `[B, n, V]`.

        Dynamic trees are built by it. Rules that are not drafter-invariant have none.
        """
        ...

    def verify(
        self,
        noise: Randomness,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """What is accepted, from the target's processed logits `[B, N, V]` at every node."""
        ...


def tree_shape(candidates: Candidates, tree: Tree | DynamicTree) -> tuple[Array, Array]:
    """Depths and mask of all nodes: `[1, N]` and `[N, N]` of a static tree, which are constants,
    or `[B, N]` and `[B, N, N]`."""
    if isinstance(tree, Tree):
        return jnp.asarray(tree.depths)[None], jnp.asarray(tree.mask)
    assert candidates.depth is not None and candidates.mask is not None
    return candidates.depth, candidates.mask


def num_drafted_levels(candidates: Candidates, tree: Tree | DynamicTree) -> Array:
    """`[B]` how many levels have candidates: the depth of the deepest valid node."""
    return jnp.where(candidates.valid, tree_shape(candidates, tree)[0], 0).max(axis=-1)


def default_buckets(depth: int) -> tuple[int, ...]:
    """Depths at which a static tree may be cut by default: every power of two, and all of it. Each
    is one more program of the target to compile."""
    powers = [1 << power for power in range(depth.bit_length())]
    return tuple(sorted({*(cut for cut in powers if cut < depth), depth}))


def check_buckets(buckets: Sequence[int], tree: Tree) -> None:
    """Raises `ValueError` unless the depths rise to that of the tree."""
    if list(buckets) != sorted(set(buckets)) or not buckets or buckets[0] < 1:
        raise ValueError(f"buckets={buckets}: give depths from 1, each once, the smallest first")
    if buckets[-1] != tree.depth:
        raise ValueError(
            f"buckets={buckets}: the tree is {tree.depth} deep, and the largest bucket must hold "
            f"all of it: end with {tree.depth}"
        )
