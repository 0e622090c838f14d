"""The entropy of the draft's law."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jspec.draft.stopping.forgetful import Forgetful
from jspec.draft.stopping.protocol import Seen
from jspec.models.protocol import Params


@dataclass(frozen=True)
class Entropy(Forgetful):
    """A path is worth `exp(-H)` for the sum H of the entropies along it, in nats: one in as many as
    a draw is between. A level is worth its surest node's, whatever stood above that one."""

    def judge(self, params: Params, memory: tuple[()], worth: Array, seen: Seen) -> Array:
        return worth * jnp.exp(-entropy(seen.logits).min(axis=-1))


def entropy(logits: Array) -> Array:
    """In nats, of `[..., V]` logits."""
    log = jax.nn.log_softmax(logits)
    # A token that is left out has probability 0, and adds nothing.
    return -jnp.where(log > -jnp.inf, jnp.exp(log) * log, 0.0).sum(axis=-1)
