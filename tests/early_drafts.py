"""Drafts that stop early, for the tests of what that does to a text."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from texts import Candidate

from jspec import Tree
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stopping import Forgetful

LONG = Tree.chain(6)


@dataclass(frozen=True)
class Coin(Forgetful):
    """Goes on after every second token, whatever it is worth."""

    threshold: float = 0.5

    def judge(self, params, memory, worth, seen):
        return (seen.children[:, 0, 0] % 2).astype(jnp.float32)


def network(of, *sizes, threshold: float = 0.66):
    """An untaught one, and its parameters."""
    stop = of(*sizes, threshold=threshold)
    return stop, stop.init(jax.random.key(3))


def early_draft(draft: Candidate, stop, weights=(), tree: Tree | None = None, **how) -> Candidate:
    """A draft that stops early, along another tree if one is given."""
    drafter = replace(draft.drafter, tree=tree) if tree else draft.drafter
    return Candidate(EarlyDrafter(drafter, stop, **how), EarlyParams(draft.params, weights))
