"""What a training step lowers: cross-entropy, or how far a draft is from its target.

Student and teacher run through the same model code that decodes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jspec.core.cache import empty_block
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import EmbeddingModel, Model, Output, Params, row_dtype
from jspec.training.data import Batch
from jspec.training.losses import (
    ChunkLoss,
    Loss,
    chunk_length,
    chunked_loss,
    in_chunks,
    loss_and_rejection_rate,
)
from jspec.training.ttt import training_time_test, ttt_weights

Metrics = dict[str, Array]

LOGITS_CHUNK = 128  # tokens of a row whose logits exist at the same time, if its length allows
NOISE_LENGTH = 512  # tokens of a row whose feature noise is as wide as the recipe says


class Objective(Protocol):
    """A loss of parameters on a batch."""

    def __call__(self, params: Params, frozen: Any, batch: Batch) -> tuple[Array, Metrics]:
        """The loss on `batch`, and metrics to log beside it.

        Args:
          frozen: parameters that are read and not trained.
        """
        ...


def language_model_loss(
    params: Params, frozen: Any, batch: Batch, *, model: Model, chunk_size: int = 0
) -> tuple[Array, Metrics]:
    """Mean cross-entropy (nats per token) of each token given those before it.

    Args:
      frozen: not used.
      chunk_size: tokens to read at a time, a divisor of T, or 0 for all. Attention skips what is
        beyond a chunk, which makes a step of 512 tokens a seventh faster on CPU.
    """
    del frozen
    total = jnp.float32(0)
    for places, output in forward_in_chunks(params, batch, model=model, chunk_size=chunk_size):
        logits, targets = model.logits(params, output.hidden), batch.tokens[:, 1:][:, places]
        per_token = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        total += (per_token * batch.weight[:, places]).sum()
    return total / jnp.maximum(batch.weight.sum(), 1.0), {}


def distillation_loss(
    params: Params,
    frozen: Params,
    batch: Batch,
    *,
    model: Model,
    teacher: Model,
    loss: Loss,
    chunk_size: int = 0,
) -> tuple[Array, Metrics]:
    """The mean loss of the student's next-token distribution against the teacher's.

    Both are taken at the temperatures of the batch; where that is 0, the teacher is its most likely
    token and the student is at temperature 1. Logits exist for one chunk of every row at a time.

    Args:
      frozen: the teacher's parameters.
      chunk_size: as in `language_model_loss`.

    The metric `acceptance_rate` is the probability that token-level rejection accepts a draft
    token.
    """

    # Where one vocabulary is longer than the other, the rest of it is padding.
    vocabulary = min(model.config.vocab_size, teacher.config.vocab_size)

    def compare(params: Params, frozen: Params, hidden: Array, targets: tuple[Array, ...]) -> Array:
        teacher_hidden, weight, temperature = targets
        ours = model.logits(params, hidden)[..., :vocabulary]
        theirs = teacher.logits(frozen, teacher_hidden)[..., :vocabulary]
        return jnp.stack(loss_and_rejection_rate(loss, theirs, ours, weight, temperature))

    hidden, teacher_hidden = (
        concatenate(
            forward_in_chunks(weights, batch, model=reader, chunk_size=chunk_size),
            lambda output: output.hidden,
        )
        for weights, reader in ((params, model), (frozen, teacher))
    )
    hidden, *targets = (
        in_chunks(x, chunk_size or LOGITS_CHUNK)
        for x in (hidden, teacher_hidden, batch.weight, batch.temperature)
    )
    sums = chunked_loss(compare, 2)(params, frozen, hidden, tuple(targets))
    value, rejection_rate = sums / jnp.maximum(batch.weight.sum(), 1.0)
    return value, {"acceptance_rate": 1 - rejection_rate}


def head_distillation_loss(
    params: Params,
    frozen: HeadParams,
    batch: Batch,
    *,
    head: Head,
    teacher: EmbeddingModel,
    loss: Loss,
    feature_weight: float,
    logits_weight: float,
    ttt_steps: int = 1,
    ttt_decay: float = 1.0,
    feature_noise: float = 0.0,
    seed: int = 0,
    chunk_size: int = 0,
) -> tuple[Array, Metrics]:
    """The mean loss of what a head predicts: the next feature, and the next-token distribution.

    With `feature_weight` 1 and `logits_weight` 0.1 it is EAGLE's (arXiv 2401.15077) and FSPAD's
    (arXiv 2408.15562): smooth L1 of the feature, and `loss` of the distributions at the batch's
    temperatures. With `feature_weight` 0 and several steps it is EAGLE-3's (arXiv 2503.01840). A
    head with a smaller vocabulary learns the distribution over its own tokens, at those targets
    whose most likely token is one of them. The teacher runs in the same step.

    Args:
      frozen: the teacher's parameters, without the head's.
      ttt_steps: steps of the training-time test; 1 reads the target's features alone.
      ttt_decay: the weight of each step relative to the one before.
      feature_noise: the width of uniform noise on the target's features, in rows of 512 tokens; in
        longer rows it is narrower in proportion.
      chunk_size: as in `language_model_loss`.

    The metric `acceptance_rate` is that of `distillation_loss` for the first step,
    `acceptance_rate_2` and so on for the others; `feature_loss` is there where it has a weight.
    """
    size = chunk_length(batch.weight.shape[1], chunk_size or LOGITS_CHUNK)
    outputs = list(forward_in_chunks(frozen.target, batch, model=teacher, chunk_size=chunk_size))
    read, following = (
        concatenate(outputs, head.read_hidden_states),
        concatenate(outputs, lambda x: x.hidden),
    )
    hidden, predicted = training_time_test(
        params,
        head.embed(frozen._replace(head=params), batch.tokens[:, 1:], target=teacher),
        head.fuse(params, _add_noise(batch, read, feature_noise, seed)),
        batch,
        head=head,
        ttt_steps=ttt_steps,
        chunk=size,
    )
    following, temperature = (jnp.roll(x, -1, axis=1) for x in (following, batch.temperature))
    weight = ttt_weights(batch, ttt_steps)
    counts = jnp.maximum(weight.sum(axis=(0, 1)), 1.0)
    share = ttt_decay ** jnp.arange(ttt_steps)
    share = share / share.sum() / counts
    hidden, *targets = (
        in_chunks(x, size) for x in (jnp.moveaxis(hidden, 0, 2), following, weight, temperature)
    )
    sums = chunked_loss(_compare_steps(head, teacher, loss), 1 + ttt_steps)
    logits_loss, *rejected = sums(params, (frozen, share), hidden, tuple(targets))
    names = ["acceptance_rate", *(f"acceptance_rate_{step}" for step in range(2, ttt_steps + 1))]
    accepted = dict(zip(names, 1 - jnp.stack(rejected) / counts, strict=True))
    if not feature_weight:
        return logits_weight * logits_loss, accepted
    apart = optax.huber_loss(predicted, following[None]).mean(axis=-1)
    feature_loss = (apart * jnp.moveaxis(weight, -1, 0)).sum(axis=(1, 2)) @ share
    value = feature_weight * feature_loss + logits_weight * logits_loss
    return value, {"feature_loss": feature_loss, **accepted}


def in_dtype(objective: Objective, dtype: str) -> Objective:
    """The objective, computed with parameters that are cast to `dtype`."""

    def cast(params: Params, frozen: Any, batch: Batch) -> tuple[Array, Metrics]:
        return objective(jax.tree.map(lambda x: x.astype(dtype), params), frozen, batch)

    return cast


def forward_in_chunks(
    params: Params, batch: Batch, *, model: Model, chunk_size: int = 0
) -> Iterator[tuple[slice, Output]]:
    """One causal pass over a batch, in chunks: the places of each chunk, and its output."""
    tokens, document = batch.tokens[:, :-1], batch.document[:, :-1]
    rows, length = tokens.shape
    chunk_size, positions = chunk_size or length, batch.positions
    causal = jnp.tril(jnp.ones((length, length), bool))
    block = empty_block(model.config, rows, length, row_dtype(params, model=model))
    for first in range(0, length, chunk_size):
        places, past = slice(first, first + chunk_size), slice(0, first + chunk_size)
        same_document = document[:, places, None] == document[:, None, past]
        output = model.forward(
            params,
            tokens[:, places],
            positions[:, places],
            causal[None, places, past] & same_document,
            block=block,
            start=first,
        )
        block = output.block
        yield places, output


def concatenate(outputs: Iterable[tuple[slice, Output]], take: Callable[[Output], Array]) -> Array:
    """`take` of every chunk of a pass, as `[B, T, ...]`."""
    return jnp.concatenate([take(output) for _, output in outputs], axis=1)


def _compare_steps(head: Head, teacher: EmbeddingModel, loss: Loss) -> ChunkLoss:
    """Of a chunk, the loss of all steps by their shares, and what token-level rejection rejects in
    each step."""

    def compare(
        params: Params, frozen: tuple[HeadParams, Array], hidden: Array, targets: tuple[Array, ...]
    ) -> Array:
        given, share = frozen
        teacher_hidden, weight, temperature = targets
        own = given._replace(head=params)
        theirs, known = _over_tokens(teacher.logits(given.target, teacher_hidden), given.tokens)
        weights = jnp.unstack(weight * known[..., None], axis=2)
        steps = [
            loss_and_rejection_rate(
                loss, theirs, head.own_logits(own, hidden, target=teacher), weight, temperature
            )
            for hidden, weight in zip(jnp.unstack(hidden, axis=2), weights, strict=True)
        ]
        losses, rejected = zip(*steps, strict=True)
        return jnp.stack([share @ jnp.stack(losses), *rejected])

    return compare


def _over_tokens(logits: Array, tokens: Array | None) -> tuple[Array, Array]:
    """Logits `[..., V]` of some tokens only, and whether the most likely token is one of them."""
    if tokens is None:
        return logits, jnp.ones(logits.shape[:-1])
    chosen = logits[..., tokens]
    return chosen, (chosen.max(axis=-1) == logits.max(axis=-1)).astype(jnp.float32)


def _add_noise(batch: Batch, features: Array, width: float, seed: int) -> Array:
    """`[B, T, E]` features with uniform noise, each row with its own."""
    if not width:
        return features

    def one(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.uniform(key, features.shape[1:], features.dtype, -0.5, 0.5)

    return features + width * NOISE_LENGTH / features.shape[1] * jax.vmap(one)(batch.number)
