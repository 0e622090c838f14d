"""One sample per node, for candidates that are chosen and not drawn: the target draws a token of
its own at every node, and where that is a child it goes there (EAGLE-2's rule at any temperature,
MCSD's naive sampling).

A child is kept as often as the target would write it, so the best candidates are the likeliest.
It is the coupled rule for a draft that does not look at the dice.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree
from jspec.verify import coupled

WEIGHS = False
admit, roll, verify = coupled.admit, coupled.roll, coupled.verify


def draw(
    dice: Array, logits: Array, *, tree: Tree | Growth, depth: int, nodes: np.ndarray
) -> tuple[Array, Array]:
    """The draft's likeliest tokens."""
    tokens = coupled.best(logits, tree.children(depth))
    return tokens, jnp.ones(tokens.shape, bool)


def score(dice: Array, logits: Array, tokens: Array, sampling: Sampling, *, depth: int) -> Array:
    """How likely the target draws each of `tokens`, whose dice the draft does not look at.

    To the draft they are one more thing that it is wrong by: noise of the scale of the temperature
    beside that of `coupled.ERROR`. (EAGLE-2 scores by the law at temperature 1 whatever is served.)
    """
    temperature = sampling.temperature[:, None, None]
    hot = jnp.where(temperature > 0, temperature, 1.0)
    return coupled.chances(logits * (hot / jnp.hypot(temperature, coupled.ERROR)), tokens)
