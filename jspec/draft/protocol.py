"""What a drafter must offer."""

from typing import Any, Protocol

from flax import struct
from jax import Array

from jspec.core.candidates import Candidates, Dice, Draws, Rule
from jspec.core.penalties import History
from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree
from jspec.models.protocol import Output, Params

DrafterState = Any


@struct.dataclass
class Text:
    """What is written so far: of `tokens` `[B, M]` the first `length` `[B]`, the last of which is
    the root; `history` counts them. Rows that are not `running` `[B]` are written no more."""

    tokens: Array
    length: Array
    history: History
    running: Array


class Drafter(Protocol):
    """A policy. Hashable, so that jit takes it as a static argument; its state is a pytree.

    Under coupled verification nothing that a drafter does can change the text, only the speed.
    """

    tree: Tree | Growth
    draws: Draws
    """Where its candidates come from."""

    def read(self, output: Output) -> Array | None:
        """What it takes of the target's pass over a prompt: `[B, T, E]`, or nothing."""

    def start(
        self,
        params: Params,
        tokens: Array,
        length: Array,
        features: Array | None,
        *,
        capacity: int,
        chunk: int,
    ) -> DrafterState:
        """The state after the first `length` `[B]` of the prompts `tokens` `[B, P]`.

        The last of these is the root. `capacity` and `chunk` are `prefill`'s.

        Args:
          features: `[B, P, E]` what it read at the tokens before the root.
        """

    def propose(
        self,
        params: Params,
        state: DrafterState,
        text: Text,
        dice: Dice,
        sampling: Sampling,
        *,
        rule: Rule,
    ) -> tuple[Candidates, DrafterState]:
        """Guesses what follows the root, with the dice that the rule rolled."""

    def commit(
        self, state: DrafterState, path: Array, count: Array, output: Output
    ) -> DrafterState:
        """The state once the first `count` `[B]` nodes of `path` `[B, A]` are kept.

        Args:
          output: the target's pass over all nodes.
        """
