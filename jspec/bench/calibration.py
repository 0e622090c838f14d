"""How well acceptance is predicted: calibrated probabilities of draft tokens, and the scores by
which dynamic trees choose their nodes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import optimize

from jspec.core.prompts import PaddedPrompts
from jspec.core.sampling import SamplingParams, sample_noise
from jspec.decode import autoregress
from jspec.draft.small_model import to_vocab_size
from jspec.models.protocol import Model, Params
from jspec.training.stop_network import append_tokens, states_before
from jspec.verify import coupled, one_sample
from jspec.verify.coupling import log_probs_of

BINS = 10
SCALES = 0.02, 10.0  # between which the error of a draft is sought


class Bin(NamedTuple):
    """Draft tokens of about one predicted probability: how many, the mean prediction, and the share
    that was accepted."""

    count: int
    predicted: float
    accepted: float


@dataclass(frozen=True)
class Calibration:
    """Predicted acceptance of draft tokens, compared with what was accepted.

    Attributes:
      name: of what predicts; rule: by which draft tokens are accepted.
      bins: those of `BINS` equally wide ones that are not empty, the least probability first.
      error: the expected calibration error, the mean over draft tokens of how far their bin is off.
      accuracy: how often it is right to predict that a draft token of a probability above one half
        is accepted.
      accepted: the share of all draft tokens.
    """

    name: str
    rule: str
    temperature: float
    bins: tuple[Bin, ...]
    error: float
    accuracy: float
    accepted: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "bins": [one._asdict() for one in self.bins]}


def calibration(
    predicted: np.ndarray, accepted: np.ndarray, *, name: str, rule: str, temperature: float
) -> Calibration:
    """Of n draft tokens with `predicted` probabilities `[n]`, which were `accepted` `[n]`: bools,
    or the probabilities of that."""
    predicted, accepted = (np.asarray(x, np.float64) for x in (predicted, accepted))
    place = np.minimum((predicted * BINS).astype(int), BINS - 1)
    inside = [place == number for number in range(BINS)]
    bins = tuple(
        Bin(int(here.sum()), float(predicted[here].mean()), float(accepted[here].mean()))
        for here in inside
        if here.any()
    )
    return Calibration(
        name,
        rule,
        temperature,
        bins,
        error=sum(one.count * abs(one.predicted - one.accepted) for one in bins) / len(predicted),
        accuracy=float(np.where(predicted > 0.5, accepted, 1 - accepted).mean()),
        accepted=float(accepted.mean()),
    )


@dataclass(frozen=True)
class ScoreFit:
    """Mean log-probabilities that scores gave, in advance, to the tokens that a target picked.

    Attributes:
      coupled, one_sample: by the scores of these rules.
      by_draft: by the draft's distribution at the `temperature`.
      eagle2: the same at temperature 1, as EAGLE-2 scores.
      error_scale: the scale of the draft's error under which the coupled rule's score says most;
        fitted: what it says then.
    """

    temperature: float
    coupled: float
    one_sample: float
    by_draft: float
    eagle2: float
    error_scale: float
    fitted: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def fit_scores(
    params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    *,
    target: Model,
    draft_logits: Callable[[Array], Array],
    temperature: float,
    tokens: int,
) -> ScoreFit:
    """Has the target write `tokens` after each prompt, with the noise of its keys `[B]`, and the
    draft read them.

    Args:
      draft_logits: the draft's logits `[B, T, V]` for what follows each token of texts `[B, T]`.
    """
    how = SamplingParams.create(len(keys), temperature=temperature)
    output = autoregress(params, prompts, keys, how, target=target, max_new_tokens=tokens)
    picked = output.tokens[:, :tokens]
    vocabulary = target.config.vocab_size
    logits = draft_logits(append_tokens(prompts, picked))
    logits = to_vocab_size(states_before(prompts, logits, tokens), vocabulary)
    places = prompts.length[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None]
    added = sample_noise(keys, places, vocabulary, how).reshape(-1, 1, vocabulary)
    # Every place is the root of a sequence.
    logits, picks = logits.reshape(added.shape), picked.reshape(-1, 1, 1)
    how, scale = SamplingParams.create(len(added), temperature=temperature), temperature or 1.0

    def mean(score: Callable[[Array, Array], Array]) -> float:
        return float(jax.jit(lambda logits, added: score(logits, added).mean())(logits, added))

    def loss(error: Array, logits: Array, added: Array) -> Array:
        return -log_probs_of((logits + added * scale) / jnp.exp(error), picks).mean()

    compiled = jax.jit(loss)
    best = optimize.minimize_scalar(
        lambda error: float(compiled(error, logits, added)), bounds=np.log(SCALES), method="bounded"
    )
    return ScoreFit(
        temperature=temperature,
        coupled=mean(lambda z, added: coupled.score(added, z / scale, picks, how, depth=0)),
        one_sample=mean(lambda z, added: one_sample.score(added, z / scale, picks, how, depth=0)),
        by_draft=mean(lambda z, _: log_probs_of(z / scale, picks)),
        eagle2=mean(lambda z, _: log_probs_of(z, picks)),
        error_scale=float(np.exp(best.x)),
        fitted=-float(best.fun),
    )
