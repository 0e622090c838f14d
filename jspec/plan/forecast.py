"""What speculation gains: a model, from what is accepted and what the parts of a round cost; and
the forecast of a draft over its best trees.

Rounds are taken to be alike and independent: each emits 1 + the depth of the last node it accepts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jspec.core.tree import Tree
from jspec.core.tree_text import write_tree
from jspec.plan.sizes import MemoryFit
from jspec.tuning.acceptance import Acceptance
from jspec.tuning.costs import Costs
from jspec.tuning.search import acceptance_length, accepted_nodes, best_trees

# What else acceptance and costs may be, for intervals of 95%.
DRAWS = 200
EDGES = 0.025, 0.975
# The deepest chain and the largest tree that are considered.
DEPTH, NODES = 12, 48
# Batches that are considered where that takes no time.
BATCHES = tuple(2**n for n in range(13))


@dataclass(frozen=True)
class Prediction:
    """What a draft should gain over a tree.

    Attributes:
      acceptance_length: tokens per target pass, the bonus token included.
      round_ms: milliseconds.
      tokens_per_second: of the whole batch, and plain, of plain decoding of the same.
      low, high: an interval of 95% for the speed-up, as far as the measurements go.
    """

    tree: Tree
    acceptance_length: float
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
            "acceptance_length": self.acceptance_length,
            "round_ms": self.round_ms,
            "tokens_per_second": self.tokens_per_second,
            "plain_tokens_per_second": self.plain,
            "speedup": self.speedup,
            "speedup_interval": [self.low, self.high],
        }


@dataclass(frozen=True)
class Forecast:
    """Of a draft at a batch size.

    Attributes:
      parameters: of the draft; costs: of its rounds; acceptance: how often it is accepted.
      best: over all trees; chain: over chains alone.
      pays_up_to: the largest of the `batches` that were considered, all of which fit, up to which
        chains pay; None if they never do. `batches_source` is where their costs come from.
      needed_acceptance: at every depth, with which it would be as fast as the best of the others,
        or as plain decoding where it is the best; None if none would do.
    """

    draft: str
    parameters: int
    batch: int
    costs: Costs
    acceptance: Acceptance
    best: Prediction
    chain: Prediction
    memory: MemoryFit
    pays_up_to: int | None
    batches: tuple[int, ...]
    batches_source: str
    needed_acceptance: float | None = None

    @property
    def bottleneck(self) -> str:
        """In a sentence, what takes the most of what could be gained."""
        tree, costs, ours = self.best.tree, self.costs, self.best
        verifying = costs.verification(tree.size)
        drafting = (ours.round_ms - verifying) / ours.round_ms
        crowded = f" in a batch of {self.batch}" if self.batch > 1 else ""
        shares = {
            f"draft latency: drafting takes {drafting:.0%} of a round": drafting,
            f"acceptance: {ours.acceptance_length:.2f} of {tree.depth + 1} tokens that a round "
            "could emit": 1 - ours.acceptance_length / (tree.depth + 1),
            f"verification: {tree.size} nodes cost {verifying / costs.plain:.2f} plain "
            f"steps{crowded}": max(verifying - costs.plain, 0.0) / ours.round_ms,
        }
        return max(shares, key=shares.__getitem__)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "draft": self.draft,
            "parameters": self.parameters,
            "batch": self.batch,
            "draft_level_ms": self.costs.draft_level(),
            "plain_ms": self.costs.plain,
            "costs": self.costs.record(),
            "acceptance": self.acceptance.shares.tolist(),
            "acceptance_source": self.acceptance.source,
            "best": self.best.record(),
            "best_chain": self.chain.record(),
            "memory": {"needed": self.memory.needed, "available": self.memory.available},
            "fits": self.memory.fits,
            "pays_up_to_batch": self.pays_up_to,
            "batches_considered": list(self.batches),
            "batches_source": self.batches_source,
            "needed_acceptance": self.needed_acceptance,
            "bottleneck": self.bottleneck,
        }


def forecasts(
    draft: str,
    parameters: int,
    batches: Sequence[int],
    source: Callable[[int], tuple[Costs, MemoryFit]],
    acceptance: Acceptance,
    *,
    cheap: Callable[[int], tuple[Costs, MemoryFit]] | None = None,
) -> Iterator[Forecast]:
    """What to expect of a draft over its best trees, at each batch size.

    Args:
      source: costs and memory at a batch size; cheap: the same where finding them takes no time, so
        that all batches that fit are considered, not those alone that are asked for.
    """
    wanted = {batch: source(batch) for batch in batches}
    considered, find = tuple(sorted(batches)), wanted.__getitem__
    if cheap:
        fitting = tuple(one for one in sorted({*BATCHES, *batches}) if cheap(one)[1].fits)
        considered, find = (fitting, cheap) if fitting else (considered, find)
    limit = largest_batch(lambda batch: find(batch)[0], acceptance, considered)
    origin = find(considered[0])[0].source
    for batch, (costs, memory) in wanted.items():
        chain = best(chains(), acceptance, costs, batch=batch)
        found = best(candidates(acceptance, chain.tree), acceptance, costs, batch=batch)
        yield Forecast(
            draft, parameters, batch, costs, acceptance, found, chain, memory,
            pays_up_to=limit, batches=considered, batches_source=origin,
        )  # fmt: skip


def ranking(forecasts: Iterable[Forecast]) -> list[Forecast]:
    """Of one batch size, the fastest first and what does not fit last; each with the acceptance
    that it needs to be as fast as the best of the others."""
    order = sorted(forecasts, key=lambda one: (not one.memory.fits, -one.best.tokens_per_second))
    found = []
    for place, one in enumerate(order):
        rival = 1.0 if not place else order[0].best.speedup
        needed = break_even(one.costs, rival, depth=DEPTH, batch=one.batch)
        found.append(replace(one, needed_acceptance=needed))
    return found


def predict(
    tree: Tree, acceptance: Acceptance, costs: Costs, *, batch: int = 1, tokens: int | None = None
) -> Prediction:
    """What a batch should gain over `tree`.

    Args:
      tokens: that each text has, so that prefill counts, and rows that wait for the last one; None
        for a batch that is always full.
    """
    shares = acceptance.to_depth(tree.depth)
    length = acceptance_length(tree, shares)
    took = costs.round(tree, pending_share(tree, shares, batch))
    if tokens is None:
        plain, fast = batch * 1e3 / costs.plain, batch * length * 1e3 / took
    else:
        texts = [emitted_probs(tree, own) for own in acceptance.of_texts(tree.depth)]
        count = np.mean([expected_rounds(rows, tokens) for rows in _batches(texts, batch)])
        plain = batch * tokens * 1e3 / (costs.plain_start + tokens * costs.plain)
        fast = batch * tokens * 1e3 / (costs.start + count * took)
    draws = acceptance.draws(tree.depth, DRAWS)
    relative = np.array([acceptance_length(tree, draw) for draw in draws]) / length
    noise = np.random.default_rng(1).normal(scale=costs.spread, size=DRAWS)
    low, high = np.quantile(fast / plain * relative * np.exp(noise), EDGES)
    return Prediction(tree, length, took, fast, plain, float(low), float(high))


def best(
    trees: Iterable[Tree], acceptance: Acceptance, costs: Costs, *, batch: int = 1
) -> Prediction:
    """The fastest of the predictions over `trees`."""
    found = [predict(tree, acceptance, costs, batch=batch) for tree in trees]
    return max(found, key=lambda one: one.tokens_per_second)


def chains(depth: int = DEPTH) -> Iterator[Tree]:
    """All of up to that depth."""
    return map(Tree.chain, range(1, depth + 1))


def candidates(acceptance: Acceptance, chain: Tree) -> Iterator[Tree]:
    """The best chain and, where it is known what siblings gain, the best trees of all sizes."""
    yield chain
    if acceptance.shares.shape[1] > 1:
        for depth in range(1, len(acceptance.shares) + 1):
            yield from best_trees(acceptance.to_depth(depth), NODES)


def largest_batch(
    costs_of: Callable[[int], Costs], acceptance: Acceptance, batches: Sequence[int] = BATCHES
) -> int | None:
    """The largest of `batches` up to which speculation pays over chains; None if it never does."""
    paying = None
    for batch in sorted(batches):
        if best(chains(), acceptance, costs_of(batch), batch=batch).speedup <= 1:
            break
        paying = batch
    return paying


def emitted_probs(tree: Tree, shares: np.ndarray) -> np.ndarray:
    """`[A]` the probabilities that a round emits 1, 2, ... tokens, given `[D, W]` shares."""
    deep = np.bincount(tree.depths, weights=accepted_nodes(tree, shares))
    return np.maximum(-np.diff(deep, append=0.0), 0.0)


def pending_share(tree: Tree, shares: np.ndarray, batch: int = 1) -> float:
    """The probability that a round accepts a leaf, which no draft runs, in any of `batch` texts."""
    alone = accepted_nodes(tree, shares)[~tree.inner].sum()
    return float(1 - (1 - alone) ** batch)


def expected_rounds(texts: Sequence[np.ndarray], tokens: int) -> float:
    """The expected number of rounds until each of several texts has its `tokens`: the distribution
    of the sum of what rounds emit, round by round.

    Args:
      texts: `[A]` of each, as `emitted_probs` gives it.
    """
    expected, unfinished = 0.0, [np.eye(1, tokens)[0] for _ in texts]
    while (left := 1 - np.prod([1 - min(row.sum(), 1.0) for row in unfinished])) > 1e-9:
        expected += left
        unfinished = [
            np.convolve(row, np.concatenate([[0.0], probs]))[:tokens]
            for row, probs in zip(unfinished, texts, strict=True)
        ]
    return float(expected)


def chain_acceptance_length(rate: float, depth: int) -> float:
    """Of a chain whose every draft token is accepted with the same probability.

    >>> chain_acceptance_length(0.5, 2)
    1.75
    """
    return float((rate ** np.arange(depth + 1)).sum())


def break_even(costs: Costs, speedup: float, *, depth: int, batch: int = 1) -> float | None:
    """The acceptance, the same at every depth, with which the best chain of up to `depth` is as
    much faster than plain decoding as `speedup`; None if there is none that would do."""

    def reached(rate: float) -> float:
        same = np.full((depth, 1), rate)
        return max(
            chain_acceptance_length(rate, one.depth)
            * costs.plain
            / costs.round(one, pending_share(one, same, batch))
            for one in chains(depth)
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
