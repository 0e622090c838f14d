"""What passes between a drafter, a verification rule and the loop."""

from enum import Enum
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree

Dice = Any


class Draws(Enum):
    """Where candidates come from."""

    RULE = "the rule drew all of them, from the draft's law"
    DRAFTER = "the drafter chose them"
    TARGET = "the rule drew the first level from the target's law, and the others from the draft's"

    @property
    def given(self) -> int:
        """How many levels of a tree are no guesses."""
        return int(self is Draws.TARGET)

    def refuse_roots(self) -> None:
        """Raises `ValueError` for a first level of the target's law, which no exact rule takes."""
        if self is Draws.TARGET:
            raise ValueError(
                "a drafter that is target-started guesses for a token that the target has yet to "
                "draw, and under an exact rule it has drawn that one before drafting begins (it is "
                "node 0 of every tree): give the draft's own drafter, or the lossy rule"
            )


@struct.dataclass
class Candidates:
    """A tree of guesses for each sequence; node 0 is the root, the last emitted token.

    Attributes:
      tokens: `[B, N]`.
      parent: `[B, N]`, the root's is -1.
      valid: `[B, N]` bool; a node that is not valid is never kept, nor what hangs below it.
      logits: `[B, I, V]` float32, where the rule weighs them: the draft's warped logits at the I
        nodes that have children, from which these were drawn.
      depth: `[B, N]`, and mask: `[B, N, N]` bool, which nodes are a node's ancestors or itself;
        None where the shape is a static tree, whose tables say it.
      levels: how many levels were drafted for any row, below which no node is valid; None where
        all are.
      slices: static, the depths at which the target's pass over a static tree may be cut off.
    """

    tokens: Array
    parent: Array
    valid: Array
    logits: Array | None = None
    depth: Array | None = None
    mask: Array | None = None
    levels: Array | None = None
    slices: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def cut(self, tree: Tree) -> "Candidates":
        """Those of a static tree's first levels, which are the `tree`."""
        nodes = {
            name: getattr(self, name)[:, : tree.size] for name in ("tokens", "parent", "valid")
        }
        logits = None if self.logits is None else self.logits[:, : tree.rows]
        return self.replace(**nodes, logits=logits, levels=None, slices=())


@struct.dataclass
class Verdict:
    """What the target keeps of the candidates.

    Attributes:
      path: `[B, A]` nodes from the root down; past `count` they repeat the last one.
      count: `[B]` nodes kept, the root included.
      next: `[B]` the token after the last of them: the new root.
    """

    path: Array
    count: Array
    next: Array


def shape(candidates: Candidates, tree: Tree | Growth) -> tuple[Array, Array]:
    """Depths and mask of all nodes: `[1, N]` and `[N, N]` of a static tree, which are constants,
    or `[B, N]` and `[B, N, N]`."""
    if isinstance(tree, Tree):
        return jnp.asarray(tree.depths)[None], jnp.asarray(tree.mask)
    return candidates.depth, candidates.mask


def drafted(candidates: Candidates, tree: Tree | Growth) -> Array:
    """`[B]` how many levels there are candidates of: the depth of the deepest valid node."""
    return jnp.where(candidates.valid, shape(candidates, tree)[0], 0).max(axis=-1)


class Rule(Protocol):
    """How candidates are drawn, and which of them are kept: a module of `jspec.verify`.

    All randomness of a round is rolled before it begins, from each sequence's key and the length
    of its text, so a text does not hang on what shares its batch.
    """

    WEIGHS: bool
    """Whether `verify` needs the draft's logits."""

    def admit(self, tree: Tree | Growth, draws: Draws) -> None:
        """Raises `ValueError` with the reason if the rule is not exact for such candidates.

        Args:
          draws: where they come from.
        """

    def roll(
        self,
        keys: Array,
        length: Array,
        sampling: Sampling,
        *,
        tree: Tree | Growth,
        vocabulary: int,
    ) -> Dice:
        """The dice of a round whose root is the last of `length` `[B]` tokens."""

    def draw(
        self, dice: Dice, logits: Array, *, tree: Tree | Growth, depth: int, nodes: np.ndarray
    ) -> tuple[Array, Array]:
        """Children of the `nodes` `[n]` of a level, in drawing order, from warped logits
        `[B, n, V]`: tokens `[B, n, W]`, and whether there is such a child at all."""

    def score(
        self, dice: Dice, logits: Array, tokens: Array, sampling: Sampling, *, depth: int
    ) -> Array:
        """How likely the target goes from nodes of a level to their children `tokens` `[B, n, W]`,
        by warped logits `[B, n, V]`: log-probabilities `[B, n, W]`.

        Trees grow by it; a rule that refuses candidates which were chosen has none.
        """

    def verify(
        self,
        dice: Dice,
        candidates: Candidates,
        logits: Array,
        sampling: Sampling,
        *,
        tree: Tree | Growth,
    ) -> Verdict:
        """What is kept, from the target's warped logits `[B, N, V]` at every node."""
