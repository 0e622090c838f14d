"""What a step lowers for heads: how far they are from the target's features, and from its law."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jspec.distill.batch import Batch
from jspec.distill.losses import Loss
from jspec.distill.objective import PIECE, Measures, against, piece, pieces, read, summed
from jspec.distill.self_feeding import fed, self_fed
from jspec.models.heads import Head
from jspec.models.protocol import EmbeddingModel, Params

NOISE_LENGTH = 512  # tokens of a row whose noise is as wide as is asked for


def feature_distillation(
    params: Params,
    frozen: Params,
    batch: Batch,
    *,
    head: Head,
    teacher: EmbeddingModel,
    loss: Loss,
    features: float,
    logits: float,
    passes: int = 1,
    decay: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
    chunk: int = 0,
) -> tuple[Array, Measures]:
    """The mean loss of a head's guesses: of the next feature, and of the law of the next token.

    With `features` 1 and `logits` 0.1 it is EAGLE's (arXiv 2401.15077) and FSPAD's (arXiv
    2408.15562): smooth L1 of the feature, and `loss` of the laws at the batch's temperatures. The
    target's features are made in the same step.

    Args:
      frozen: the teacher's parameters.
      passes: how often the head reads the text, each time but the first what it guessed itself.
      decay: how much each pass counts against the one before.
      noise: the width of uniform noise on the target's features that are read, in rows of 512
        tokens; in longer ones it is narrower in proportion.
      chunk: as of `distillation`.

    Measures `acceptance`, as `distillation` does, of the first pass, `acceptance_2` and so on of
    the others, and `feature_loss`.
    """
    size = piece(batch.weight.shape[1], chunk or PIECE)
    told = [x for _, x in read(frozen, batch, model=teacher, chunk=chunk)]
    seen = jnp.concatenate(told, axis=1)
    embedded = teacher.embed(frozen, batch.tokens[:, 1:])
    hidden, guessed = self_fed(
        params,
        embedded,
        seen + _noise(batch, seen, noise, seed),
        batch,
        head=head,
        passes=passes,
        chunk=size,
    )
    weight = fed(batch, passes)
    counted = jnp.maximum(weight.sum(axis=(0, 1)), 1.0)
    share = decay ** jnp.arange(passes)
    share = share / share.sum() / counted

    def compare(params: Params, frozen: Params, ours: Array, told: tuple[Array, ...]) -> Array:
        frozen, share = frozen
        theirs, weight, temperature = told
        target = teacher.logits(frozen, theirs)
        found = [
            against(loss, target, teacher.logits(frozen, hidden), one, temperature)
            for hidden, one in zip(*(jnp.unstack(x, axis=2) for x in (ours, weight)), strict=True)
        ]
        lost, refused = zip(*found, strict=True)
        return jnp.stack([share @ jnp.stack(lost), *refused])

    following, temperature = (jnp.roll(x, -1, axis=1) for x in (seen, batch.temperature))
    ours = jnp.moveaxis(hidden, 0, 2)
    ours, *told = (pieces(x, size) for x in (ours, following, weight, temperature))
    law, *refused = summed(compare, 1 + passes)(params, (frozen, share), ours, tuple(told))
    apart = optax.huber_loss(guessed, following[None]).mean(axis=-1)
    feature = (apart * jnp.moveaxis(weight, -1, 0)).sum(axis=(1, 2)) @ share
    accepted = 1 - jnp.stack(refused) / counted
    names = ["acceptance", *(f"acceptance_{number}" for number in range(2, passes + 1))]
    measures = dict(zip(names, accepted, strict=True))
    return features * feature + logits * law, {"feature_loss": feature, **measures}


def _noise(batch: Batch, features: Array, width: float, seed: int) -> Array:
    """Uniform noise on features `[B, T, D]`, of each row its own."""

    def one(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.uniform(key, features.shape[1:], features.dtype, -0.5, 0.5)

    return width * NOISE_LENGTH / features.shape[1] * jax.vmap(one)(batch.number)
