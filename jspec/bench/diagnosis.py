"""What a head that guesses badly was made for instead, found by running it so."""

import jax.numpy as jnp
import numpy as np

from jspec.bench.drafts import HeadDraft, head_logits, model_logits, second_logits, seen_by
from jspec.bench.ways import Way, ways

CLEARLY = 0.1
"""Share of the text's places by which a head must agree better with its target when it is run in
another way; over four standard deviations of the difference on 512 places."""


def diagnose(draft: HeadDraft, tokens: np.ndarray, first: int) -> list[str]:
    """Ways in which a head agrees clearly better with its target, the best first; mostly none.

    Args:
      tokens: `[B, M]` a text that the head was not taught; `first`: the place it is compared from.
    """
    target, text = draft.target, jnp.asarray(tokens[:, :-1])
    best = jnp.argmax(model_logits(target.params, text, model=target.model), axis=-1)

    def agreement(way: Way) -> float:
        seen = seen_by(target.params, text, head=way.head, model=way.model)
        guesses = second_logits if way.second else head_logits
        logits = guesses(way.params, text, seen, head=way.head, target=target.model)
        # Of what follows the first token it knows nothing, and its second guesses start one later.
        return float(jnp.mean((jnp.argmax(logits, axis=-1) == best)[:, max(first, 3) - 1 :]))

    own = Way("", draft.checkpoint.head, draft.params, draft.reading(target.model))
    usual: dict[bool, float] = {}
    better: dict[str, tuple[float, float]] = {}
    for way in ways(own, target.model):
        if way.second not in usual:
            usual[way.second] = agreement(own._replace(second=way.second))
        share = agreement(way)
        if share > usual[way.second] + CLEARLY:
            better[way.said] = share, usual[way.second]
    return [
        f"{said}: run so it has the target's best token in {share:.0%} of places, and as it is in "
        f"{without:.0%}"
        for said, (share, without) in sorted(better.items(), key=lambda item: -item[1][0])
    ]
