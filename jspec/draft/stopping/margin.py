"""How far the candidates lie ahead of the rest under the dice that the target throws as well."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jspec.candidates import Rule
from jspec.draft.stopping.forgetful import Forgetful
from jspec.draft.stopping.protocol import Seen
from jspec.models.protocol import Params


@dataclass(frozen=True)
class Margin(Forgetful):
    """A path is worth the product of what the rule's score gives to the children of its nodes
    together: under the coupled rule a function of the margins between perturbed logits. A level is
    worth its surest node's, whatever stood above that one, and a node is given as many children as
    the widest of its level has."""

    def admit(self, rule: Rule) -> None:
        if not hasattr(rule, "score"):
            name = getattr(rule, "__name__", "lossy").rpartition(".")[2]
            raise ValueError(
                f"stop=margin reads dice that draft and target share, and rule={name!r} has none: "
                "use confidence or entropy, or rule=coupled"
            )

    def judge(self, params: Params, memory: tuple[()], worth: Array, seen: Seen) -> Array:
        scores = seen.rule.score(
            seen.dice, seen.logits, seen.children, seen.sampling, depth=seen.depth
        )
        return worth * jnp.minimum(jnp.exp(jax.nn.logsumexp(scores, axis=-1)).max(axis=-1), 1.0)
