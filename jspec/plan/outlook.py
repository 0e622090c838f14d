"""What is to be expected of a draft, and what bounds it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jspec.core.tree import Tree
from jspec.plan.acceptance import Acceptance
from jspec.plan.costs import Costs
from jspec.plan.gain import Prediction, best, break_even
from jspec.plan.room import Room
from jspec.plan.trees import best_trees

# The deepest chain and the largest tree that are thought of.
DEPTH, NODES = 12, 48
# Batches that are thought of where thinking costs nothing.
BATCHES = tuple(2**n for n in range(13))


@dataclass(frozen=True)
class Outlook:
    """Of a draft at a batch size.

    Attributes:
      parameters: of the draft; costs: of its rounds; acceptance: says where its shares come from.
      best: over all trees; chain: over chains alone.
      pays_to: the largest of the `batches` that were thought of, all of which fit, up to which
        chains pay; None if they never do. `batches_source` is where their costs come from.
      needed: acceptance at every depth with which it would be as fast as the best of the others, or
        as plain decoding where it is the best; None if none would do.
    """

    draft: str
    parameters: int
    batch: int
    costs: Costs
    acceptance: Acceptance
    best: Prediction
    chain: Prediction
    room: Room
    pays_to: int | None
    batches: tuple[int, ...]
    batches_source: str
    needed: float | None = None

    @property
    def bound(self) -> str:
        """In a sentence, what takes the most of what could be gained."""
        tree, costs = self.best.tree, self.costs
        guesses = self.best.round_ms - costs.verification(tree.size)
        heavier = max(costs.verification(tree.size) - costs.plain, 0.0)
        lost = 1 - self.best.tokens_per_round / (tree.depth + 1)
        steps = costs.verification(tree.size) / costs.plain
        shares = {
            f"draft latency: guessing takes {guesses / self.best.round_ms:.0%} of a round": (
                guesses / self.best.round_ms
            ),
            f"acceptance: {self.best.tokens_per_round:.2f} of {tree.depth + 1} tokens that a round "
            "could emit": lost,
            f"verification: {tree.size} nodes cost {steps:.2f} plain steps{_crowded(self.batch)}": (
                heavier / self.best.round_ms
            ),
        }
        return max(shares, key=shares.__getitem__)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "draft": self.draft,
            "parameters": self.parameters,
            "batch": self.batch,
            "latency_ms": self.costs.guess(),
            "plain_ms": self.costs.plain,
            "costs": self.costs.record(),
            "acceptance": self.acceptance.shares.tolist(),
            "acceptance_source": self.acceptance.source,
            "best": self.best.record(),
            "best_chain": self.chain.record(),
            "memory": {"needed": self.room.needed, "there": self.room.there},
            "fits": self.room.fits,
            "pays_to_batch": self.pays_to,
            "batches_thought_of": list(self.batches),
            "batches_source": self.batches_source,
            "needed_acceptance": self.needed,
            "bound": self.bound,
        }


def outlooks(
    draft: str,
    parameters: int,
    batches: Sequence[int],
    source: Callable[[int], tuple[Costs, Room]],
    acceptance: Acceptance,
    *,
    cheap: Callable[[int], tuple[Costs, Room]] | None = None,
) -> Iterator[Outlook]:
    """What is to be expected of a draft over its best trees, at each batch size.

    Args:
      source: costs and memory at a batch size; cheap: the same where no time goes into finding
        them, so that all batches that fit are thought of, not those alone that are asked for.
    """
    told = {batch: source(batch) for batch in batches}
    thought, find = tuple(sorted(batches)), told.__getitem__
    if cheap:
        fitting = tuple(one for one in sorted({*BATCHES, *batches}) if cheap(one)[1].fits)
        thought, find = (fitting, cheap) if fitting else (thought, find)
    limit = largest_batch(lambda batch: find(batch)[0], acceptance, thought)
    origin = find(thought[0])[0].source
    for batch, (costs, room) in told.items():
        chain = best(chains(), acceptance, costs, batch=batch)
        found = best(candidates(acceptance, chain.tree), acceptance, costs, batch=batch)
        yield Outlook(
            draft, parameters, batch, costs, acceptance, found, chain, room,
            pays_to=limit, batches=thought, batches_source=origin,
        )  # fmt: skip


def chains(depth: int = DEPTH) -> Iterator[Tree]:
    """All of up to that depth."""
    return map(Tree.chain, range(1, depth + 1))


def candidates(acceptance: Acceptance, chain: Tree) -> Iterator[Tree]:
    """The best chain and, where it is known what siblings bring, the best trees of all sizes."""
    yield chain
    if acceptance.shares.shape[1] > 1:
        for depth in range(1, len(acceptance.shares) + 1):
            yield from best_trees(acceptance.to_depth(depth), NODES)


def ranked(outlooks: Iterable[Outlook]) -> list[Outlook]:
    """Of one batch size, the fastest first and what does not fit last; each told what it needs to
    be as fast as the best of the others."""
    order = sorted(outlooks, key=lambda one: (not one.room.fits, -one.best.tokens_per_second))
    told = []
    for place, one in enumerate(order):
        rival = 1.0 if not place else order[0].best.speedup
        told.append(replace(one, needed=break_even(one.costs, rival, depth=DEPTH, batch=one.batch)))
    return told


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


def _crowded(batch: int) -> str:
    return f" in a batch of {batch}" if batch > 1 else ""
