"""The draft's own top probability."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jspec.draft.stopping.forgetful import Forgetful
from jspec.draft.stopping.protocol import Seen
from jspec.models.protocol import Params


@dataclass(frozen=True)
class Confidence(Forgetful):
    """A path is worth the product of the top probabilities along it, where a level's is that of its
    surest node, whatever stood above that one."""

    def judge(self, params: Params, memory: tuple[()], worth: Array, seen: Seen) -> Array:
        total = jax.nn.logsumexp(seen.logits, axis=-1)
        return worth * jnp.exp(seen.logits.max(axis=-1) - total).max(axis=-1)
