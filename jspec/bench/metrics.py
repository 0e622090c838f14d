"""How many draft tokens are accepted: every measure of a round, under one name everywhere."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from jspec.decode import GenerationOutput

DEFINITION = (
    "acceptance_length is tokens per forward pass of the target, the bonus token included; "
    "accepted_by_position[d - 1] is the share of the rounds that wrote tokens in which a draft "
    "token at depth d was accepted; acceptance_rate is accepted draft tokens over the depth of "
    "the tree, the most that a round can accept; acceptance_rate_drafted is accepted draft tokens "
    "over the levels that were drafted"
)


@dataclass(frozen=True)
class RoundCounts:
    """What the rounds of some texts drafted and accepted, all rows added.

    >>> counts = RoundCounts(rounds=4, tokens=7, accepted=3, max_accepted=8, drafted_levels=6)
    >>> counts.acceptance_length, counts.acceptance_rate, counts.acceptance_rate_drafted
    (1.75, 0.375, 0.5)

    Attributes:
      rounds: forward passes of the target; 0 where that is not known.
      tokens: written tokens.
      accepted: draft tokens that were accepted; max_accepted: those of rounds that accept as many
        as their tree is deep.
      drafted_levels: levels that were drafted, fewer where drafting stops early.
      wasted_levels: levels that were drafted for other rows of a batch after a row's own last.
      batched: whether rows were drafted together.
    """

    rounds: int = 0
    tokens: int = 0
    accepted: int = 0
    max_accepted: int = 0
    drafted_levels: int = 0
    wasted_levels: int = 0
    batched: bool = False

    def __add__(self, other: "RoundCounts") -> "RoundCounts":
        added = (getattr(self, one.name) + getattr(other, one.name) for one in fields(self))
        *counts, batched = added
        return RoundCounts(*counts, batched=bool(batched))

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per forward pass of the target; None where that is not known."""
        return self.tokens / self.rounds if self.rounds else None

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted draft tokens over the depth of the tree; None without a draft."""
        return self.accepted / self.max_accepted if self.max_accepted else None

    @property
    def acceptance_rate_drafted(self) -> float | None:
        """Accepted draft tokens over the levels that were drafted; None without a draft."""
        return self.accepted / self.drafted_levels if self.drafted_levels else None

    @property
    def wasted_levels_per_round(self) -> float | None:
        """None in batches of one and without a draft."""
        return self.wasted_levels / max(self.rounds, 1) if self.batched else None


def round_counts(generation: GenerationOutput) -> RoundCounts:
    """Counts of a generation that has finished."""
    accepted = np.asarray(generation.accepted_by_position)
    depth = accepted.shape[1] - 1
    return RoundCounts(
        rounds=int(np.sum(generation.num_rounds)),
        tokens=int(np.sum(generation.length)),
        accepted=int(accepted[:, 1:].sum()),
        max_accepted=int(accepted[:, 0].sum()) * depth,
        drafted_levels=int(np.sum(generation.num_draft_levels)),
        wasted_levels=int(np.sum(generation.wasted_draft_levels)),
        batched=bool(depth) and len(accepted) > 1,
    )


def acceptance_metrics(generation: GenerationOutput) -> dict[str, Any]:
    """All measures of a generation, for JSON, with their definition."""
    counts = round_counts(generation)
    accepted = np.asarray(generation.accepted_by_position).sum(axis=0)
    wrote, depth = int(accepted[0]), len(accepted) - 1
    wasted = counts.wasted_levels_per_round
    return {
        "rounds": counts.rounds,
        "tokens": counts.tokens,
        "acceptance_length": counts.acceptance_length or 0.0,
        "accepted_per_round": counts.accepted / max(counts.rounds, 1),
        "accepted_by_position": [float(count / max(wrote, 1)) for count in accepted[1:]],
        "acceptance_rate": (counts.acceptance_rate or 0.0) if depth else None,
        "drafted_levels_per_round": counts.drafted_levels / wrote if wrote and depth else None,
        "acceptance_rate_drafted": counts.acceptance_rate_drafted,
        **({} if wasted is None else {"wasted_levels_per_round": wasted}),
        "acceptance_definition": DEFINITION,
    }
