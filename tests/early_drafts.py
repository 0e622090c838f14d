"""Drafts that stop early, for the tests of what that does to a text."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from texts import Candidate

from jspec import Tree
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stopping import NetworkStop, StatelessStop

LONG = Tree.chain(6)


@dataclass(frozen=True)
class Coin(StatelessStop):
    """Continues after every second token, whatever its confidence."""

    threshold: float = 0.5

    def score(self, params, state, path_confidence, inputs):
        return (inputs.children[:, 0, 0] % 2).astype(jnp.float32)


def network(of, *sizes, threshold: float = 0.66):
    """A stop whose network is not trained, and its parameters."""
    inside = of(*sizes)
    return NetworkStop(inside, threshold), inside.init(jax.random.key(3))


def early_draft(draft: Candidate, stop, weights=(), tree: Tree | None = None, **how) -> Candidate:
    """A draft that stops early, along another tree if one is given."""
    drafter = replace(draft.drafter, tree=tree) if tree else draft.drafter
    return Candidate(EarlyDrafter(drafter, stop, **how), EarlyParams(draft.params, weights))
