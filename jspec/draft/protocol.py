"""What a drafter must offer."""

from typing import Any, Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.candidates import Candidates, Randomness, Rule
from jspec.core.penalties import TokenCounts
from jspec.core.sampling import SamplingParams
from jspec.core.tree import DynamicTree, Tree
from jspec.models.protocol import Output, Params

DrafterState = Any


@struct.dataclass
class DraftContext:
    """What a draft continues.

    Attributes:
      tokens: `[B, M]`, the first `length` `[B]` of them valid; the last valid one is the root.
      counts: how often each token occurs.
      running: `[B]` bool; other rows emit nothing more.
    """

    tokens: Array
    length: Array
    counts: TokenCounts
    running: Array

    @property
    def root(self) -> Array:
        """`[B, 1]` the last tokens."""
        return self.from_end(1)[:, None]

    def from_end(self, count: int) -> Array:
        """`[B]` the token that is `count` from the end; 1 is the root."""
        rows = jnp.arange(len(self.length), dtype=jnp.int32)
        return self.tokens[rows, self.length - count]


class Drafter(Protocol):
    """The policy that turns a draft, or no model at all, into candidates.

    Hashable, so that jit takes it as a static argument; its state is a pytree. Under coupled
    verification nothing that a drafter does can change the text, only the speed.

    >>> drafter = LookupDrafter(Tree.chain(8))
    >>> drafter.tree.depth, drafter.source
    (8, 'chosen by the drafter')
    """

    @property
    def tree(self) -> Tree | DynamicTree:
        """The shape of its candidates."""
        ...

    @property
    def source(self) -> str:
        """Where its candidates come from: `SAMPLED`, `CHOSEN`, or a word that a rule knows."""
        ...

    @property
    def undrafted_levels(self) -> int:
        """How many levels at the top of its trees are not the draft's; 0 but in a study."""
        ...

    def read_hidden_states(self, output: Output) -> Array | None:
        """What it takes of the target's pass over a prompt: `[B, T, E]`, or nothing."""
        ...

    def start(
        self,
        params: Params,
        tokens: Array,
        length: Array,
        hidden_states: Array | None,
        *,
        capacity: int,
        chunk: int,
    ) -> DrafterState:
        """The state after the first `length` `[B]` of the prompts `tokens` `[B, P]`.

        The last of these is the root. `capacity` and `chunk` are `prefill`'s.

        Args:
          hidden_states: `[B, P, E]` what it read at the tokens before the root.
        """
        ...

    def propose(
        self,
        params: Params,
        state: DrafterState,
        context: DraftContext,
        noise: Randomness,
        sampling: SamplingParams,
        *,
        rule: Rule,
    ) -> tuple[Candidates, DrafterState]:
        """Candidates for what follows the root, with the noise of the rule."""
        ...

    def commit(
        self, state: DrafterState, path: Array, count: Array, output: Output
    ) -> DrafterState:
        """The state once the first `count` `[B]` nodes of `path` `[B, A]` are accepted.

        Args:
          output: the target's pass over all nodes.
        """
        ...
