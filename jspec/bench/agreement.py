"""Whether two methods write the same text, and if not, how far they diverge and whether by a
near-tie."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jspec.bench.suite import Workload
from jspec.bench.timing import PLAIN, Sample
from jspec.core.penalties import init_counts
from jspec.core.sampling import process_logits, sample_noise
from jspec.decode import GenerationOutput
from jspec.models.protocol import Model, Params

NEAR_TIE = 1e-3
BUCKET = 64


@dataclass(frozen=True)
class Difference:
    """Where a text first differs from plain decoding's: the row, the token, and the gap.

    `gap` is the difference of the two tokens' scores (processed logit and noise) under the target;
    below `NEAR_TIE` it is within what float32 sums in another order differ by.

    >>> Difference("tree", 1.0, prompt=0, token=3, gap=2e-5).near_tie
    True
    """

    method: str
    temperature: float
    prompt: int
    token: int
    gap: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains the difference."""
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


@dataclass(frozen=True)
class Divergence:
    """How far a batch of texts diverges from plain decoding's.

    It says something where plain decoding's text is the only right one: at temperature 0, or under
    a rule that preserves the text.

    Attributes:
      texts: how many.
      equal: the share of texts that are plain decoding's.
      shared: the share of all tokens before a text's first difference.
    """

    texts: int
    equal: float
    shared: float


def divergence(plain: GenerationOutput, other: GenerationOutput) -> Divergence:
    """Compares two batches of texts after the same prompts, with the same keys."""
    lengths = np.asarray(plain.length), np.asarray(other.length)
    order = np.arange(plain.tokens.shape[1])
    both = order < np.minimum(*lengths)[:, None]
    same = (np.asarray(plain.tokens) == np.asarray(other.tokens)) & both
    shared = np.cumprod(same, axis=1).sum(axis=1)
    equal = (shared == lengths[0]) & (lengths[0] == lengths[1])
    return Divergence(len(shared), float(equal.mean()), float(shared.sum() / lengths[0].sum()))


def differences(
    samples: Sequence[Sample], target: Model, params: Params, work: Workload
) -> list[Difference]:
    """Every text of the first repetition that is not plain decoding's, token for token."""
    first = {(s.method, s.temperature, s.batch): s.run.tokens for s in samples if not s.repetition}
    found = []
    for (method, temperature, batch), tokens in first.items():
        plain = first[PLAIN, temperature, batch]
        for row, token in _first_differences(plain, tokens):
            before = plain[row, :token]
            pair = jnp.array([plain[row, token], tokens[row, token]])
            gap = _gap(target, params, work, batch, row, before, pair, temperature)
            prompt = batch * work.rows + row
            found.append(Difference(method, temperature, prompt, token, gap))
    return found


def _first_differences(plain: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """The rows that differ, and the first token at which each does."""
    unequal = plain != other
    return [(int(row), int(unequal[row].argmax())) for row in np.flatnonzero(unequal.any(axis=1))]


def _gap(
    target: Model,
    params: Params,
    work: Workload,
    batch: int,
    row: int,
    before: np.ndarray,
    pair: jax.Array,
    temperature: float,
) -> float:
    """How far apart the two tokens of `pair` score after a prompt and the tokens `before`."""
    prompts = work.batches[batch]
    prompt = np.asarray(prompts.tokens)[row, : int(prompts.length[row])]
    text = np.concatenate([prompt, before]).astype(np.int32)
    padded = np.pad(text, (0, -len(text) % BUCKET))[None]
    logits = _logits_at(params, padded, len(text) - 1, target=target)
    how = jax.tree.map(lambda x: x[:1], work.sampling(temperature))
    key = work.keys[batch][row][None]
    place = jnp.full((1, 1), len(text), jnp.int32)
    added = sample_noise(key, place, logits.shape[-1], how)
    counts = init_counts(
        padded,
        prompts.length[row][None],
        np.array([len(text)], np.int32),
        vocab_size=logits.shape[-1],
    )
    scores = (process_logits(logits, how, counts) + added)[0, 0, pair]
    return float(jnp.abs(scores[0] - scores[1]))


@functools.partial(jax.jit, static_argnames=("target",))
def _logits_at(params: Params, tokens: jax.Array, place: int, *, target: Model) -> jax.Array:
    """`[1, 1, V]` at one place of `tokens` `[1, P]`, in one pass without a cache."""
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    places = jnp.arange(length, dtype=jnp.int32)[None]
    hidden = target.forward(params, tokens, places, causal).hidden
    return target.logits(params, jax.lax.dynamic_slice_in_dim(hidden, place, 1, axis=1))
