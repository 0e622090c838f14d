"""How well the scores that trees grow by foretell what a target picks, on text of its own."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import optimize

from jspec.core.prompts import Prompts
from jspec.core.sampling import noise, sampling
from jspec.decode import autoregress
from jspec.distill.rollouts import before, written_out
from jspec.draft.small_model import widened
from jspec.models.protocol import Model, Params
from jspec.verify import coupled, one_sample

SCALES = 0.02, 10.0  # between which the error of a draft is sought


@dataclass(frozen=True)
class Foresight:
    """Mean log-probabilities that a draft gave, before each, to the tokens that a target picked.

    Attributes:
      coupled, one_sample: by the scores of these rules.
      law: by the draft's law at the `temperature`; unwarped: at temperature 1, as EAGLE-2 scores.
      error: the scale of the draft's error under which the coupled rule's score would say most;
        fitted: what it would say.
    """

    temperature: float
    coupled: float
    one_sample: float
    law: float
    unwarped: float
    error: float
    fitted: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def foresight(
    params: Params,
    prompts: Prompts,
    keys: Array,
    *,
    target: Model,
    guess: Callable[[Array], Array],
    temperature: float,
    tokens: int,
) -> Foresight:
    """Has the target write `tokens` after each of the prompts, with the dice of its keys `[B]`, and
    the draft read them.

    Args:
      guess: the draft's logits `[B, T, V]` of what follows each token of texts `[B, T]`.
    """
    how = sampling(len(keys), temperature=temperature)
    written = autoregress(params, prompts, keys, how, target=target, tokens=tokens).tokens
    vocabulary = target.config.vocabulary
    guesses = guess(written_out(prompts, written))
    logits = widened(before(prompts, guesses, tokens), vocabulary)
    places = prompts.length[:, None] + jnp.arange(tokens)[None]
    dice = noise(keys, places, vocabulary, how).reshape(-1, 1, vocabulary)
    # Every place is the root of a sequence.
    logits, picks = logits.reshape(dice.shape), written.reshape(-1, 1, 1)
    how, hot = sampling(len(dice), temperature=temperature), temperature or 1.0

    def mean(score: Callable[[Array, Array], Array]) -> float:
        return float(jax.jit(lambda logits, dice: score(logits, dice).mean())(logits, dice))

    def misses(scale: Array, logits: Array, dice: Array) -> Array:
        return -coupled.chances((logits + dice * hot) / jnp.exp(scale), picks).mean()

    miss = jax.jit(misses)
    best = optimize.minimize_scalar(
        lambda scale: float(miss(scale, logits, dice)), bounds=np.log(SCALES), method="bounded"
    )
    return Foresight(
        temperature=temperature,
        coupled=mean(lambda z, dice: coupled.score(dice, z / hot, picks, how, depth=0)),
        one_sample=mean(lambda z, dice: one_sample.score(dice, z / hot, picks, how, depth=0)),
        law=mean(lambda z, dice: coupled.chances(z / hot, picks)),
        unwarped=mean(lambda z, dice: coupled.chances(z, picks)),
        error=float(np.exp(best.x)),
        fitted=-float(best.fun),
    )
