"""Prompt lookup (n-gram): what followed the last time that the sequence read like this."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jspec.core.candidates import CHOSEN, Candidates, Randomness, Rule
from jspec.core.sampling import SamplingParams
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.protocol import DraftContext
from jspec.models.protocol import Output, Params


@dataclass(frozen=True)
class LookupDrafter:
    """Copies what followed earlier occurrences of the last tokens, the longest match first.

    A copy that reaches the end of the sequence continues from its own beginning, so a loop is
    followed for as long as it lasts. Each chain of a fork starts with another token.

    >>> LookupDrafter(Tree.chain(8))

    Attributes:
      tree: a chain or a fork; it branches at the root alone.
      longest: the most tokens to match; shortest: the fewest that are copied from.
    """

    tree: Tree
    longest: int = 4
    shortest: int = 1

    @property
    def source(self) -> str:
        """As `Drafter.source`."""
        return CHOSEN

    @property
    def undrafted_levels(self) -> int:
        """As `Drafter.undrafted_levels`."""
        return 0

    def read_hidden_states(self, output: Output) -> None:
        """It needs nothing of the target."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest={self.shortest}, longest={self.longest}: "
                "a match is at least one token and at most the longest"
            )
        if isinstance(self.tree, DynamicTree):
            raise ValueError(
                f"tree of {self.tree.size} nodes is dynamic and needs scores, which prompt lookup "
                "has not: use a chain or a fork"
            )
        if any(self.tree.children(depth) > 1 for depth in range(1, self.tree.depth)):
            raise ValueError(
                f"tree of {self.tree.size} nodes branches below its root: prompt lookup copies "
                "one continuation a match, so use a chain or a fork"
            )

    def start(
        self,
        params: Params,
        tokens: Array,
        length: Array,
        hidden_states: Array | None,
        *,
        capacity: int,
        chunk: int,
    ) -> tuple[()]:
        """As `Drafter.start`."""
        return ()

    def propose(
        self,
        params: Params,
        state: tuple[()],
        context: DraftContext,
        noise: Randomness,
        sampling: SamplingParams,
        *,
        rule: Rule,
    ) -> tuple[Candidates, tuple[()]]:
        """As `Drafter.propose`."""
        tokens, length = context.tokens, context.length
        rows, tree = jnp.arange(len(length), dtype=jnp.int32), self.tree
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        matched = self._matched(tokens, length)
        following = jnp.roll(tokens, -1, axis=1)
        score = matched * tokens.shape[1] + places
        chains, valid = [], []
        for _ in range(tree.children(0)):
            score = jnp.where(matched >= self.shortest, score, -1)
            best = jnp.argmax(score, axis=-1).astype(jnp.int32)
            chains.append(_copy(tokens, best, length, tree.depth))
            valid.append(score[rows, best] >= 0)
            matched = jnp.where(following == following[rows, best][:, None], 0, matched)
        chain = _first_ancestor(tree)
        drafted = jnp.stack(chains, axis=1)[:, chain, tree.depths[1:] - 1]
        valid = jnp.stack(valid, axis=1)[:, chain]
        candidates = Candidates(
            tokens=jnp.concatenate([context.root, drafted], axis=1),
            parent=jnp.broadcast_to(jnp.asarray(tree.parents, jnp.int32), (len(length), tree.size)),
            valid=jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True),
        )
        return candidates, state

    def commit(self, state: tuple[()], path: Array, count: Array, output: Output) -> tuple[()]:
        """As `Drafter.commit`."""
        return state

    def _matched(self, tokens: Array, length: Array) -> Array:
        """`[B, M]`: how many tokens up to each earlier place equal the last ones."""
        rows = jnp.arange(len(length), dtype=jnp.int32)
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        going = places < (length - 1)[:, None]
        matched = jnp.zeros(tokens.shape, jnp.int32)
        for back in range(self.longest):
            last = tokens[rows, jnp.maximum(length - 1 - back, 0)][:, None]
            going &= (jnp.roll(tokens, back, axis=1) == last) & (places >= back)
            matched += going.astype(jnp.int32)
        return matched


def _copy(tokens: Array, after: Array, length: Array, depth: int) -> Array:
    """`[B, depth]` tokens that follow the places `after` `[B]`, around again at the end."""
    period = length - 1 - after
    steps = jnp.arange(depth, dtype=jnp.int32)[None] % jnp.maximum(period, 1)[:, None]
    return jnp.take_along_axis(tokens, after[:, None] + 1 + steps, axis=1, mode="clip")


def _first_ancestor(tree: Tree) -> list[int]:
    """For every node but the root, the rank of its ancestor below the root."""
    chain = [0] * tree.size
    for node, parent in enumerate(tree.parents[1:], start=1):
        chain[node] = int(tree.ranks[node]) if parent == 0 else chain[parent]
    return chain[1:]
