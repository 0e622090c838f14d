"""What speculation gains: a model, from what is accepted and what the parts of a round cost.

Rounds are taken to be alike and independent: each emits 1 + the depth of the last node it keeps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jspec.core.tree import Tree
from jspec.core.tree_text import write_tree
from jspec.plan.acceptance import Acceptance
from jspec.plan.costs import Costs
from jspec.plan.trees import kept_nodes, tokens_per_round

# Of what else acceptance and costs might be, for intervals of 95%.
DRAWS = 200
EDGES = 0.025, 0.975


@dataclass(frozen=True)
class Prediction:
    """What a draft should gain over a tree.

    Attributes:
      tokens_per_round: emitted tokens, the target's own included; round_ms: milliseconds.
      tokens_per_second: of the whole batch, and plain, of plain decoding of the same.
      low, high: where the speed-up lies with a chance of 95%, as far as what was measured tells.
    """

    tree: Tree
    tokens_per_round: float
    round_ms: float
    tokens_per_second: float
    plain: float
    low: float
    high: float

    @property
    def speedup(self) -> float:
        """Over plain decoding."""
        return self.tokens_per_second / self.plain

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tree": write_tree(self.tree),
            "tokens_per_round": self.tokens_per_round,
            "round_ms": self.round_ms,
            "tokens_per_second": self.tokens_per_second,
            "plain_tokens_per_second": self.plain,
            "speedup": self.speedup,
            "speedup_interval": [self.low, self.high],
        }


def predict(
    tree: Tree, acceptance: Acceptance, costs: Costs, *, batch: int = 1, tokens: int | None = None
) -> Prediction:
    """What a batch should gain over `tree`.

    Args:
      tokens: that each text has, so that prefill counts, and rows that wait for the last one; None
        for a batch that is kept full.
    """
    shares = acceptance.to_depth(tree.depth)
    kept, took = tokens_per_round(tree, shares), costs.round(tree, late(tree, shares, batch))
    if tokens is None:
        plain, fast = batch * 1e3 / costs.plain, batch * kept * 1e3 / took
    else:
        texts = [emitted(tree, own) for own in acceptance.of_texts(tree.depth)]
        count = np.mean([rounds(rows, tokens) for rows in _batches(texts, batch)])
        plain = batch * tokens * 1e3 / (costs.plain_start + tokens * costs.plain)
        fast = batch * tokens * 1e3 / (costs.start + count * took)
    draws = acceptance.draws(tree.depth, DRAWS)
    told = np.array([tokens_per_round(tree, draw) for draw in draws]) / kept
    noise = np.random.default_rng(1).normal(scale=costs.spread, size=DRAWS)
    low, high = np.quantile(fast / plain * told * np.exp(noise), EDGES)
    return Prediction(tree, kept, took, fast, plain, float(low), float(high))


def best(
    trees: Iterable[Tree], acceptance: Acceptance, costs: Costs, *, batch: int = 1
) -> Prediction:
    """The fastest of the predictions over `trees`."""
    found = [predict(tree, acceptance, costs, batch=batch) for tree in trees]
    return max(found, key=lambda one: one.tokens_per_second)


def emitted(tree: Tree, shares: np.ndarray) -> np.ndarray:
    """`[A]` how likely a round emits 1, 2, ... tokens, given `[D, W]` shares."""
    deep = np.bincount(tree.depths, weights=kept_nodes(tree, shares))
    return np.maximum(-np.diff(deep, append=0.0), 0.0)


def late(tree: Tree, shares: np.ndarray, batch: int = 1) -> float:
    """How likely a round keeps a leaf, which no draft runs, in any of `batch` texts."""
    alone = kept_nodes(tree, shares)[~tree.inner].sum()
    return float(1 - (1 - alone) ** batch)


def rounds(texts: Sequence[np.ndarray], tokens: int) -> float:
    """The expected number of rounds until each of several texts has its `tokens`: of the sum of
    what rounds emit, the law is carried on round by round.

    Args:
      texts: `[A]` of each, as `emitted` gives it.
    """
    expected, unfinished = 0.0, [np.eye(1, tokens)[0] for _ in texts]
    while (left := 1 - np.prod([1 - min(row.sum(), 1.0) for row in unfinished])) > 1e-9:
        expected += left
        unfinished = [
            np.convolve(row, np.concatenate([[0.0], law]))[:tokens]
            for row, law in zip(unfinished, texts, strict=True)
        ]
    return float(expected)


def iid_tokens(rate: float, depth: int) -> float:
    """Tokens a round along a chain whose every guess is kept with the same chance."""
    return float((rate ** np.arange(depth + 1)).sum())


def break_even(costs: Costs, speedup: float, *, depth: int, batch: int = 1) -> float | None:
    """The acceptance, the same at every depth, with which the best chain of up to `depth` is as
    much faster than plain decoding as `speedup`; None if there is none that would do."""

    def reached(rate: float) -> float:
        chains = map(Tree.chain, range(1, depth + 1))
        same = np.full((depth, 1), rate)
        return max(
            iid_tokens(rate, one.depth) * costs.plain / costs.round(one, late(one, same, batch))
            for one in chains
        )

    if reached(1.0) < speedup:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < speedup else (low, middle)
    return high


def _batches(texts: list[np.ndarray], batch: int) -> list[list[np.ndarray]]:
    """All texts in batches of `batch`, some of them again where that does not divide them."""
    whole = -(-len(texts) // batch) * batch
    again = [texts[n % len(texts)] for n in range(whole)]
    return [again[start : start + batch] for start in range(0, whole, batch)]
