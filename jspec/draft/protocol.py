"""What a drafter must offer."""

from typing import Any, Protocol

from jax import Array

from jspec.candidates import Candidates
from jspec.models.protocol import Params
from jspec.sampling import Sampling
from jspec.tree import Tree

DrafterState = Any


class Drafter(Protocol):
    """A policy. Hashable, so that jit takes it as a static argument; its state is a pytree.

    Under coupled verification nothing that a drafter does can change the text, only the speed.
    """

    tree: Tree

    def start(
        self, params: Params, tokens: Array, length: Array, *, capacity: int, chunk: int
    ) -> DrafterState:
        """The state after the first `length` `[B]` of the prompts `tokens` `[B, P]`.

        The last of these is the root. `capacity` and `chunk` are `prefill`'s.
        """

    def propose(
        self,
        params: Params,
        state: DrafterState,
        tokens: Array,
        length: Array,
        noise: Array,
        sampling: Sampling,
    ) -> tuple[Candidates, DrafterState]:
        """Guesses what follows the root.

        Args:
          tokens: `[B, M]` the sequences so far, of which the first `length` `[B]` count; the last
            of these is the root.
          noise: `[B, A, V]` what the target will add to its logits at the root and below.
        """

    def commit(self, state: DrafterState, path: Array, count: Array) -> DrafterState:
        """The state once the first `count` `[B]` nodes of `path` `[B, A]` are kept."""
