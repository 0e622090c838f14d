"""How much of a generation the drafter had guessed."""

from typing import Any

import numpy as np

from jspec.decode import Generation

DEFINITION = (
    "accepted_by_depth[d - 1] is the share of the rounds that wrote which kept a guess at depth d; "
    "acceptance_rate is guesses kept over tree depth, the most that a round can keep; "
    "acceptance_rate_drafted is guesses kept over the levels that were drafted"
)


def acceptance(generation: Generation) -> dict[str, Any]:
    """Rounds, tokens a round with and without the bonus token, acceptance by depth and of all
    guesses, and of a batch the levels a round that rows waited for others."""
    kept = np.asarray(generation.kept_by_depth).sum(axis=0)
    rounds = int(np.asarray(generation.rounds).sum())
    tokens = int(np.asarray(generation.length).sum())
    depth = len(kept) - 1
    by_depth = [float(kept[d] / kept[0]) if kept[0] else 0.0 for d in range(1, depth + 1)]
    levels, waited = (int(np.asarray(x).sum()) for x in (generation.levels, generation.waited))
    together = depth and len(generation.length) > 1
    return {
        "rounds": rounds,
        "tokens": tokens,
        "tokens_per_round": tokens / rounds if rounds else 0.0,
        "guessed_tokens_per_round": float(kept[1:].sum() / rounds) if rounds else 0.0,
        "accepted_by_depth": by_depth,
        "acceptance_rate": sum(by_depth) / depth if depth else None,
        "levels_per_round": float(levels / kept[0]) if kept[0] and depth else None,
        "acceptance_rate_drafted": int(kept[1:].sum()) / levels if levels else None,
        **({"waited_per_round": waited / rounds if rounds else 0.0} if together else {}),
        "acceptance_definition": DEFINITION,
    }
