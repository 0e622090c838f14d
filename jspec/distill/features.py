"""What a step lowers for heads: how far they are from the target's features, and from its law."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jspec.distill.batch import Batch
from jspec.distill.losses import Loss
from jspec.distill.objective import PIECE, Measures, against, piece, pieces, read, summed, whole
from jspec.distill.self_feeding import fed, self_fed
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import EmbeddingModel, Params

NOISE_LENGTH = 512  # tokens of a row whose noise is as wide as is asked for


def feature_distillation(
    params: Params,
    frozen: HeadParams,
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
    2408.15562): smooth L1 of the feature, and `loss` of the laws at the batch's temperatures. With
    `features` 0 and several passes it is EAGLE-3's (arXiv 2503.01840); where the head has fewer
    tokens than the target, the laws are those of its tokens, learned where the target's likeliest
    is one of them. What is read of the target is made in the same step.

    Args:
      frozen: with the teacher's parameters, and without the head's.
      passes: how often the head reads the text, each time but the first what it guessed itself.
      decay: how much each pass counts against the one before.
      noise: the width of uniform noise on what is read of the target, in rows of 512 tokens; in
        longer ones it is narrower in proportion.
      chunk: as of `distillation`.

    Measures `acceptance`, as `distillation` does, of the first pass, `acceptance_2` and so on of
    the others, and `feature_loss` where it counts.
    """
    size = piece(batch.weight.shape[1], chunk or PIECE)
    outputs = list(read(frozen.target, batch, model=teacher, chunk=chunk))
    seen, following = whole(outputs, head.read), whole(outputs, lambda output: output.hidden)
    hidden, guessed = self_fed(
        params,
        head.embed(frozen._replace(head=params), batch.tokens[:, 1:], target=teacher),
        head.fuse(params, _noisy(batch, seen, noise, seed)),
        batch,
        head=head,
        passes=passes,
        chunk=size,
    )
    following, temperature = (jnp.roll(x, -1, axis=1) for x in (following, batch.temperature))
    weight = fed(batch, passes)
    counted = jnp.maximum(weight.sum(axis=(0, 1)), 1.0)
    share = decay ** jnp.arange(passes)
    share = share / share.sum() / counted
    told = jnp.moveaxis(hidden, 0, 2), following, weight, temperature
    ours, *told = (pieces(x, size) for x in told)
    compare = summed(_comparison(head, teacher, loss), 1 + passes)
    law, *refused = compare(params, (frozen, share), ours, tuple(told))
    names = ["acceptance", *(f"acceptance_{number}" for number in range(2, passes + 1))]
    accepted = dict(zip(names, 1 - jnp.stack(refused) / counted, strict=True))
    if not features:
        return logits * law, accepted
    apart = optax.huber_loss(guessed, following[None]).mean(axis=-1)
    feature = (apart * jnp.moveaxis(weight, -1, 0)).sum(axis=(1, 2)) @ share
    return features * feature + logits * law, {"feature_loss": feature, **accepted}


def _comparison(
    head: Head, teacher: EmbeddingModel, loss: Loss
) -> Callable[[Params, tuple[HeadParams, Array], Array, tuple[Array, ...]], Array]:
    """What `summed` adds up, of a piece: the loss of all passes by their shares, and what
    token-level rejection refuses in each."""

    def compare(
        params: Params, given: tuple[HeadParams, Array], ours: Array, told: tuple[Array, ...]
    ) -> Array:
        frozen, share = given
        theirs, weight, temperature = told
        own = frozen._replace(head=params)
        target, known = _of_tokens(teacher.logits(frozen.target, theirs), frozen.tokens)
        counts = jnp.unstack(weight * known[..., None], axis=2)
        found = [
            against(loss, target, head.own_logits(own, hidden, target=teacher), count, temperature)
            for hidden, count in zip(jnp.unstack(ours, axis=2), counts, strict=True)
        ]
        lost, refused = zip(*found, strict=True)
        return jnp.stack([share @ jnp.stack(lost), *refused])

    return compare


def _of_tokens(logits: Array, tokens: Array | None) -> tuple[Array, Array]:
    """Logits `[..., V]` of some tokens alone, and whether the likeliest of all is one of them."""
    if tokens is None:
        return logits, jnp.ones(logits.shape[:-1])
    chosen = logits[..., tokens]
    return chosen, (chosen.max(axis=-1) == logits.max(axis=-1)).astype(jnp.float32)


def _noisy(batch: Batch, seen: Array, width: float, seed: int) -> Array:
    """`[B, T, E]` with uniform noise, of each row its own."""
    if not width:
        return seen

    def one(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.uniform(key, seen.shape[1:], seen.dtype, -0.5, 0.5)

    return seen + width * NOISE_LENGTH / seen.shape[1] * jax.vmap(one)(batch.number)
