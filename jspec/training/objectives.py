"""What a training step lowers: cross-entropy, or how far a draft is from its target.

Student and teacher run through the same model code that decodes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
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
    make_targets,
)
from jspec.training.means import LOSS, Mean, Means
from jspec.training.ttt import training_time_test, ttt_weights

LOGITS_CHUNK = 128  # tokens of a row whose logits exist at the same time, if its length allows
NOISE_LENGTH = 512  # tokens of a row whose feature noise is as wide as the recipe says


class Objective(Protocol):
    """A loss of parameters on a batch."""

    def __call__(self, params: Params, frozen: Any, batch: Batch) -> tuple[Array, Means]:
        """The loss on `batch`, to be differentiated, and the means that are logged (`read_means`).

        Args:
          frozen: parameters that are read and not trained.
        """
        ...


def language_model_loss(
    params: Params, frozen: Any, batch: Batch, *, model: Model, chunk_size: int = 0
) -> tuple[Array, Means]:
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
    mean = Mean(total, batch.weight.sum(), 1.0)
    return mean.value, {LOSS: mean}


def distillation_loss(
    params: Params,
    frozen: Params,
    batch: Batch,
    *,
    model: Model,
    teacher: Model,
    loss: Loss,
    chunk_size: int = 0,
) -> tuple[Array, Means]:
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
        found = make_targets(theirs, temperature)
        return jnp.stack(loss_and_rejection_rate(loss, found, ours, weight))

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
    total, rejected, _ = chunked_loss(compare, 3)(params, frozen, hidden, tuple(targets))
    count = batch.weight.sum()
    mean = Mean(total, count, 1.0)
    return mean.value, {LOSS: mean, "acceptance_rate": Mean(count - rejected, count)}


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
) -> tuple[Array, Means]:
    """The mean loss of what a head predicts: the next feature, and the next-token distribution.

    With `feature_weight` 1 and `logits_weight` 0.1 it is EAGLE's (arXiv 2401.15077) and FSPAD's
    (arXiv 2408.15562): smooth L1 of the feature, and `loss` of the distributions at the batch's
    temperatures. With `feature_weight` 0 and several steps it is EAGLE-3's (arXiv 2503.01840). A
    head with a smaller vocabulary learns the distribution over its own tokens, at those targets
    whose most likely token is one of them; the others have gradient 0. The teacher runs in the same
    step.

    Args:
      frozen: the teacher's parameters, without the head's.
      ttt_steps: steps of the training-time test; 1 reads the target's features alone.
      ttt_decay: the weight of each step relative to the one before.
      feature_noise: the width of uniform noise on the target's features, in rows of 512 tokens; in
        longer rows it is narrower in proportion.
      chunk_size: as in `language_model_loss`.

    The metric `acceptance_rate` is that of `distillation_loss` for the first step,
    `acceptance_rate_2` and so on for the others, and so are `logits_loss` and, where it has a
    weight, `feature_loss`.
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
    counts = weight.sum(axis=(0, 1))
    decay = ttt_decay ** np.arange(ttt_steps)
    shares = decay / decay.sum()
    share = jnp.asarray(shares, jnp.float32) / jnp.maximum(counts, 1.0)
    hidden, *targets = (
        in_chunks(x, size) for x in (jnp.moveaxis(hidden, 0, 2), following, weight, temperature)
    )
    compare = chunked_loss(_compare_steps(head, teacher, loss), 1 + 3 * ttt_steps)
    logits_loss, *sums = compare(params, (frozen, share), hidden, tuple(targets))
    losses, rejected, known = jnp.stack(sums).reshape(3, ttt_steps)
    means: dict[str, Mean] = {}
    for step, part in enumerate(shares.tolist()):
        name = f"_{step + 1}" if step else ""
        means[f"logits_loss{name}"] = Mean(losses[step], known[step], logits_weight * part)
        means[f"acceptance_rate{name}"] = Mean(counts[step] - rejected[step], counts[step])
    if not feature_weight:
        return logits_weight * logits_loss, means
    apart = optax.huber_loss(predicted, following[None]).mean(axis=-1)
    apart = (apart * jnp.moveaxis(weight, -1, 0)).sum(axis=(1, 2))
    for step, part in enumerate(shares.tolist()):
        name = f"_{step + 1}" if step else ""
        means[f"feature_loss{name}"] = Mean(apart[step], counts[step], feature_weight * part)
    return feature_weight * (apart @ share) + logits_weight * logits_loss, means


def in_dtype(objective: Objective, dtype: str) -> Objective:
    """The objective, computed with parameters that are cast to `dtype`."""

    def cast(params: Params, frozen: Any, batch: Batch) -> tuple[Array, Means]:
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
    """Of a chunk, the loss of all steps by their shares; then of each step its loss, what
    token-level rejection rejects, and the weight of what the loss counts."""

    def compare(
        params: Params, frozen: tuple[HeadParams, Array], hidden: Array, targets: tuple[Array, ...]
    ) -> Array:
        given, share = frozen
        teacher_hidden, weight, temperature = targets
        own = given._replace(head=params)
        found = make_targets(
            teacher.logits(given.target, teacher_hidden), temperature, given.tokens
        )
        steps = [
            loss_and_rejection_rate(
                loss, found, head.own_logits(own, hidden, target=teacher), weight
            )
            for hidden, weight in zip(
                jnp.unstack(hidden, axis=2), jnp.unstack(weight, axis=2), strict=True
            )
        ]
        losses, rejected, known = map(jnp.stack, zip(*steps, strict=True))
        return jnp.concatenate([(share @ losses)[None], losses, rejected, known])

    return compare


def _add_noise(batch: Batch, features: Array, width: float, seed: int) -> Array:
    """`[B, T, E]` features with uniform noise, each row with its own."""
    if not width:
        return features

    def one(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.uniform(key, features.shape[1:], features.dtype, -0.5, 0.5)

    return features + width * NOISE_LENGTH / features.shape[1] * jax.vmap(one)(batch.number)
