"""What passes between a drafter, a verification rule and the loop."""

from flax import struct
from jax import Array


@struct.dataclass
class Candidates:
    """A tree of guesses for each sequence; node 0 is the root, the last emitted token.

    Attributes:
      tokens: `[B, N]`.
      parent: `[B, N]`, the root's is -1.
      valid: `[B, N]` bool; a node that is not valid is never kept, nor what hangs below it.
    """

    tokens: Array
    parent: Array
    valid: Array


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
