"""The coupled rule with EAGLE-2's score in the place of its own, to hold one against the other.

Nodes get the children that the coupled rule gives them; which nodes grow, and which are kept, the
draft's confidence alone decides. The text is the same.
"""

import jax.numpy as jnp
from jax import Array

from jspec.core.candidates import Draws
from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree
from jspec.verify import coupled

WEIGHS = False
roll, draw, verify = coupled.roll, coupled.draw, coupled.verify


def admit(tree: Tree | Growth, draws: Draws) -> None:
    """Trees that grow; over others it is the coupled rule."""
    if isinstance(tree, Tree):
        raise ValueError(
            "rule=by_confidence says how a tree grows, and this one is static: give grow:4x4x12, "
            "or rule=coupled"
        )


def score(dice: Array, logits: Array, tokens: Array, sampling: Sampling, *, depth: int) -> Array:
    """The draft's law at temperature 1, whatever is served (EAGLE-2, arXiv 2406.16858), of what
    filters and penalties leave."""
    temperature = sampling.temperature[:, None, None]
    return coupled.chances(logits * jnp.where(temperature > 0, temperature, 1.0), tokens)
