"""Prompt look-up: what followed the last time that the sequence read like this. No model."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from jspec.core.candidates import Candidates, Dice, Draws, Rule
from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree
from jspec.draft.protocol import Text
from jspec.models.protocol import Output, Params


@dataclass(frozen=True)
class LookupDrafter:
    """Copies what followed earlier occurrences of the last tokens, the longest match first.

    A copy that reaches the end of the sequence goes on from its own beginning, so a loop is
    followed for as long as it lasts. Each chain of a fork starts with another token.

    Attributes:
      tree: a chain or a fork; it branches at the root alone.
      longest: the most tokens to match; shortest: the fewest that make a guess.
    """

    tree: Tree
    longest: int = 4
    shortest: int = 1
    draws: ClassVar[Draws] = Draws.DRAFTER

    def read(self, output: Output) -> None:
        """It needs nothing of the target."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest={self.shortest}, longest={self.longest}: "
                "a match is at least one token and at most the longest"
            )
        if isinstance(self.tree, Growth):
            raise ValueError(
                f"tree of {self.tree.size} nodes grows by scores, and look-up has none: use a "
                "chain or a fork"
            )
        if any(self.tree.children(depth) > 1 for depth in range(1, self.tree.depth)):
            raise ValueError(
                f"tree of {self.tree.size} nodes branches below its root: look-up copies "
                "one continuation a match, so use a chain or a fork"
            )

    def start(
        self,
        params: Params,
        tokens: Array,
        length: Array,
        features: None,
        *,
        capacity: int,
        chunk: int,
    ) -> tuple[()]:
        return ()

    def propose(
        self,
        params: Params,
        state: tuple[()],
        text: Text,
        dice: Dice,
        sampling: Sampling,
        *,
        rule: Rule,
    ) -> tuple[Candidates, tuple[()]]:
        tokens, length = text.tokens, text.length
        rows = jnp.arange(len(length))
        tree = self.tree
        root = tokens[rows, length - 1]
        matched = self._matched(tokens, length)
        following = jnp.roll(tokens, -1, axis=1)
        score = matched * tokens.shape[1] + jnp.arange(tokens.shape[1])[None]
        chains, found = [], []
        for _ in range(tree.children(0)):
            score = jnp.where(matched >= self.shortest, score, -1)
            best = jnp.argmax(score, axis=-1)
            chains.append(_copy(tokens, best, length, tree.depth))
            found.append(score[rows, best] >= 0)
            matched = jnp.where(following == following[rows, best][:, None], 0, matched)
        chain = _first_ancestor(tree)
        guesses = jnp.stack(chains, axis=1)[:, chain, tree.depths[1:] - 1]
        valid = jnp.stack(found, axis=1)[:, chain]
        candidates = Candidates(
            tokens=jnp.concatenate([root[:, None], guesses], axis=1),
            parent=jnp.broadcast_to(jnp.asarray(tree.parents), (len(length), tree.size)),
            valid=jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True),
        )
        return candidates, state

    def commit(self, state: tuple[()], path: Array, count: Array, output: Output) -> tuple[()]:
        return state

    def _matched(self, tokens: Array, length: Array) -> Array:
        """`[B, M]`: how many tokens up to each earlier place equal the last ones."""
        rows = jnp.arange(len(length))
        places = jnp.arange(tokens.shape[1])[None]
        going = places < (length - 1)[:, None]
        matched = jnp.zeros(tokens.shape, jnp.int32)
        for back in range(self.longest):
            last = tokens[rows, jnp.maximum(length - 1 - back, 0)][:, None]
            going &= (jnp.roll(tokens, back, axis=1) == last) & (places >= back)
            matched += going
        return matched


def _copy(tokens: Array, after: Array, length: Array, depth: int) -> Array:
    """`[B, depth]` tokens that follow the places `after` `[B]`, around again at the end."""
    period = length - 1 - after
    steps = jnp.arange(depth)[None] % jnp.maximum(period, 1)[:, None]
    return jnp.take_along_axis(tokens, after[:, None] + 1 + steps, axis=1, mode="clip")


def _first_ancestor(tree: Tree) -> list[int]:
    """For every node but the root, the rank of its ancestor below the root."""
    chain = [0] * tree.size
    for node, parent in enumerate(tree.parents[1:], start=1):
        chain[node] = int(tree.ranks[node]) if parent == 0 else chain[parent]
    return chain[1:]
