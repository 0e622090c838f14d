"""How well a draft knows its target, and why it may not."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jspec.bench.drafts import Draft, ModelDraft
from jspec.formats.huggingface import Checkpoint

WORTHLESS = 1.2
"""Tokens a round below which a draft is not worth its time."""
CHANCE = 0.5
"""Nats by which a trained model must beat the uniform law."""


@dataclass(frozen=True)
class Health:
    """On a text of the target: how often both have the same best token, and the mean nats that each
    gives the next one; `uniform` is what guessing blindly costs the draft."""

    agreement: float
    target_loss: float
    draft_loss: float
    uniform: float
    beyond: float
    """The share of the text's tokens that the draft's vocabulary does not have."""
    length: int
    """Tokens of the text."""

    def record(self) -> dict[str, Any]:
        """For JSON, where there is no infinity."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


def examine(target: Checkpoint, draft: Draft, tokens: np.ndarray, first: int) -> Health:
    """Runs both over `tokens` `[B, M]` and compares them from the place `first` on."""
    first = max(first, 2)  # of what follows the first token no head knows anything
    written = tokens[:, first:]
    known = draft.knows(written)
    (ours, target_loss), (theirs, draft_loss) = (
        _guesses(guesser.logits(tokens[:, :-1]), tokens[:, 1:])
        for guesser in (ModelDraft(target), draft)
    )
    place = slice(first - 1, None)
    nats = np.asarray(draft_loss)[:, place][known]
    return Health(
        agreement=float(np.mean(np.asarray(ours == theirs)[:, place])),
        target_loss=float(np.mean(np.asarray(target_loss)[:, place])),
        draft_loss=float(np.mean(nats)) if known.any() else math.inf,
        uniform=math.log(draft.vocabulary),
        beyond=float(np.mean(~known)),
        length=tokens.shape[1],
    )


def causes(target: Checkpoint, draft: Draft, health: Health, *, dtype: str) -> Iterator[str]:
    """What is likely to be wrong with a draft that guesses badly, the likeliest first."""
    if isinstance(draft, ModelDraft):
        yield from _of_text(target, draft.checkpoint)
    if health.beyond > 0.01:
        yield (
            f"vocabulary: {health.beyond:.0%} of the text are tokens that the draft does not have"
        )
    if health.length > draft.context:
        yield (
            f"context: the text has {health.length} tokens, and the draft was made for "
            f"{draft.context} (its max_position_embeddings)"
        )
    chance = math.log(target.model.config.vocabulary)
    if not health.target_loss < chance - CHANCE:
        yield (
            f"target: it gives its own text {health.target_loss:.2f} nats a token where chance is "
            f"{chance:.2f}, so the target itself is untrained or loaded wrongly"
        )
    if not health.draft_loss < health.uniform - CHANCE:
        yield (
            f"weights: the draft gives the text {health.draft_loss:.2f} nats a token where chance "
            f"is {health.uniform:.2f}, so it is untrained or loaded wrongly"
        )
    if dtype != "float32":
        yield f"dtype: {dtype} rounds close scores together; try float32"
    yield (
        f"training: the draft has the target's best token in {health.agreement:.0%} of places; "
        "train it on text of the target"
    )


def _of_text(target: Checkpoint, draft: Checkpoint) -> Iterator[str]:
    """What may be wrong with how a model came to its tokens."""
    if draft.tokenizer is None:
        yield "tokenizer: the draft's folder has none, so its tokens may not be the target's"
    elif _template(target) != _template(draft) and _template(draft):
        yield "chat template: the draft's is another, so it learned other turns than it reads now"


def _template(model: Checkpoint) -> Any:
    return getattr(model.tokenizer, "chat_template", None)


@jax.jit
def _guesses(logits: jax.Array, following: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of `[B, T, V]`: the best tokens `[B, T]`, and the nats that the true ones are given."""
    true = jnp.minimum(following[:, :, None], logits.shape[-1] - 1)
    likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), true, axis=-1)[..., 0]
    return jnp.argmax(logits, axis=-1), -likelihood
