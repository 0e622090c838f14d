"""Whether two methods wrote the same text, and if not, whether by a hair."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jspec.bench.suite import PLAIN, Workload
from jspec.bench.timing import Sample
from jspec.core.penalties import recall
from jspec.core.sampling import noise, warp
from jspec.models.protocol import Model, Params

NEAR_TIE = 1e-3
BUCKET = 64


@dataclass(frozen=True)
class Difference:
    """Where a text first leaves the plain one: the row, the token, and by how much it lost.

    `gap` is the difference of the two tokens' scores (warped logit and noise) under the target;
    below `NEAR_TIE` it lies within what float32 sums in another order differ by.
    """

    method: str
    temperature: float
    prompt: int
    token: int
    gap: float

    @property
    def near_tie(self) -> bool:
        return self.gap < NEAR_TIE

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "near_tie": self.near_tie}

    def __str__(self) -> str:
        why = "near-tie" if self.near_tie else "NOT a near-tie"
        return (
            f"{self.method} at T={self.temperature:g} differs from plain in prompt {self.prompt} "
            f"from token {self.token} on ({why}: the scores differ by {self.gap:.1e})"
        )


def differences(
    samples: Sequence[Sample], target: Model, params: Params, work: Workload
) -> list[Difference]:
    """Every text of the first repetition that is not plain decoding's, token for token."""
    first = {(s.method, s.temperature, s.batch): s.run.tokens for s in samples if not s.repetition}
    found = []
    for (method, temperature, batch), tokens in first.items():
        plain = first[PLAIN, temperature, batch]
        for row, token in _leave(plain, tokens):
            written = plain[row, :token]
            pair = jnp.array([plain[row, token], tokens[row, token]])
            gap = _gap(target, params, work, batch, row, written, pair, temperature)
            prompt = batch * work.rows + row
            found.append(Difference(method, temperature, prompt, token, gap))
    return found


def _leave(plain: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """The rows that differ, and where each first does."""
    unequal = plain != other
    return [(int(row), int(unequal[row].argmax())) for row in np.flatnonzero(unequal.any(axis=1))]


def _gap(
    target: Model,
    params: Params,
    work: Workload,
    batch: int,
    row: int,
    written: np.ndarray,
    pair: jax.Array,
    temperature: float,
) -> float:
    """How far apart the two tokens of `pair` score after what is written."""
    prompts = work.batches[batch]
    prompt = np.asarray(prompts.tokens)[row, : int(prompts.length[row])]
    text = np.concatenate([prompt, written]).astype(np.int32)
    padded = np.pad(text, (0, -len(text) % BUCKET))[None]
    logits = logits_at(params, padded, len(text) - 1, target=target)
    law = jax.tree.map(lambda x: x[:1], work.sampling(temperature))
    key = work.keys[batch][row][None]
    dice = noise(key, jnp.full((1, 1), len(text)), logits.shape[-1], law)
    history = recall(
        padded, prompts.length[row][None], np.array([len(text)]), vocabulary=logits.shape[-1]
    )
    scores = (warp(logits, law, history) + dice)[0, 0, pair]
    return float(jnp.abs(scores[0] - scores[1]))


@functools.partial(jax.jit, static_argnames=("target",))
def logits_at(params: Params, tokens: jax.Array, place: int, *, target: Model) -> jax.Array:
    """`[1, 1, V]` at one place of `tokens` `[1, P]`, computed in one pass, without a cache."""
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    hidden = target.forward(params, tokens, jnp.arange(length)[None], causal).hidden
    return target.logits(params, jax.lax.dynamic_slice_in_dim(hidden, place, 1, axis=1))
