"""How well a draft knows its target, and why it may not: what is likely wrong with any draft, and
what a head was made for instead, which is found by running it as something else."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jspec.config import ModelConfig, RopeScaling
from jspec.core.sampling import are_finite
from jspec.draft.draft import Draft, HeadDraft
from jspec.formats.huggingface import Checkpoint
from jspec.models.eagle3 import Eagle3
from jspec.models.heads import FeatureLayer, Head, HeadOutput, HeadParams
from jspec.models.protocol import Params
from jspec.models.teacher_forcing import (
    head_logits,
    head_second_logits,
    model_logits,
    target_hidden_states,
)
from jspec.models.transformer import TransformerModel, transformer, with_hidden_states

MIN_ACCEPTANCE_LENGTH = 1.2
"""Tokens per target pass below which a draft is not worth its time."""
MARGIN = 0.5
"""Nats by which a trained model must beat the uniform distribution."""
CLEARLY = 0.1
"""Share of a text's places by which a head must agree better with its target when it runs as
something else; over four standard deviations of the difference on 512 places."""
# What is assumed where a configuration says nothing.
USUAL_THETA = 10_000.0


@dataclass(frozen=True)
class Health:
    """A draft on a text of its target.

    Attributes:
      agreement: the share of places at which both have the same best token.
      target_loss, draft_loss: mean nats per token.
      uniform_loss: what the uniform distribution costs the draft.
      out_of_vocabulary: the share of the text's tokens that the draft does not have.
      target_nonfinite, draft_nonfinite: the share of places at which logits are NaN or infinite.
      length: tokens of the text.
    """

    agreement: float
    target_loss: float
    draft_loss: float
    uniform_loss: float
    out_of_vocabulary: float
    target_nonfinite: float
    draft_nonfinite: float
    length: int

    @property
    def faults(self) -> list[str]:
        """What no pair may have, by name."""
        shares = {"target": self.target_nonfinite, "draft": self.draft_nonfinite}
        return [
            f"{name}: its logits are NaN or infinite in {share:.0%} of places"
            for name, share in shares.items()
            if share
        ]

    def record(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


def examine(target: Checkpoint, draft: Draft, tokens: np.ndarray, first: int) -> Health:
    """Runs both over `tokens` `[B, M]` and compares them from the place `first` on."""
    first = max(first, 2)  # a head knows nothing of what follows the first token
    compared = tokens[:, first:]
    known = draft.can_draft(compared)
    text, following = tokens[:, :-1], tokens[:, 1:]
    ours, target_loss, target_finite = _best_and_loss(
        model_logits(target.params, text, model=target.model), following
    )
    theirs, draft_loss, draft_finite = _best_and_loss(draft.hidden_and_logits(text)[1], following)
    place = slice(first - 1, None)
    target_finite, draft_finite = (np.asarray(x)[:, place] for x in (target_finite, draft_finite))
    nats = np.asarray(draft_loss)[:, place][known]
    return Health(
        agreement=float(np.mean(np.asarray(ours == theirs)[:, place])),
        target_loss=float(np.mean(np.asarray(target_loss)[:, place])),
        draft_loss=float(np.mean(nats)) if known.any() else math.inf,
        uniform_loss=math.log(draft.vocab_size),
        out_of_vocabulary=float(np.mean(~known)),
        target_nonfinite=float(np.mean(~target_finite)),
        draft_nonfinite=float(np.mean(~draft_finite)),
        length=tokens.shape[1],
    )


def causes(target: Checkpoint, draft: Draft, health: Health, *, dtype: str) -> Iterator[str]:
    """What is likely wrong with a draft that drafts badly, the likeliest first."""
    if health.faults:
        yield f"dtype: {dtype} may overflow; load the pair in bfloat16 or float32"
        return
    if draft.kind == "model":
        yield from _text_causes(target, draft.checkpoint)
    if health.out_of_vocabulary > 0.01:
        yield (
            f"vocabulary: {health.out_of_vocabulary:.0%} of the text are tokens that the draft "
            "does not have"
        )
    if health.length > draft.max_position_embeddings:
        yield (
            f"context: the text has {health.length} tokens, and the draft was made for "
            f"{draft.max_position_embeddings} (its max_position_embeddings)"
        )
    uniform = math.log(target.model.config.vocab_size)
    if not health.target_loss < uniform - MARGIN:
        yield (
            f"target: its own text costs it {health.target_loss:.2f} nats per token where the "
            f"uniform distribution costs {uniform:.2f}: the target is untrained or loaded wrongly"
        )
    if not health.draft_loss < health.uniform_loss - MARGIN:
        yield (
            f"weights: the text costs the draft {health.draft_loss:.2f} nats per token where the "
            f"uniform distribution costs {health.uniform_loss:.2f}: it is untrained or loaded "
            "wrongly"
        )
    if dtype != "float32":
        yield f"dtype: {dtype} rounds close scores together; try float32"
    yield (
        f"training: the draft has the target's best token in {health.agreement:.0%} of places; "
        "train it on text of the target"
    )


def diagnose(draft: HeadDraft, tokens: np.ndarray, first: int) -> list[str]:
    """Variants as which a head agrees clearly better with its target, the best first; mostly none.

    Args:
      tokens: `[B, M]` a text that the head was not trained on.
      first: the place from which both are compared.
    """
    target, text = draft.target, jnp.asarray(tokens[:, :-1])
    best = jnp.argmax(model_logits(target.params, text, model=target.model), axis=-1)

    def agreement(one: HeadVariant) -> float:
        read = target_hidden_states(target.params, text, head=one.head, model=one.model)
        logits_of = head_second_logits if one.second_level else head_logits
        logits = logits_of(one.params, text, read, head=one.head, target=target.model)
        # It knows nothing of what follows the first token, and its second level starts one later.
        return float(jnp.mean((jnp.argmax(logits, axis=-1) == best)[:, max(first, 3) - 1 :]))

    own = HeadVariant("", draft.checkpoint.head, draft.params, draft.reading(target.model))
    baseline: dict[bool, float] = {}
    better: dict[str, tuple[float, float]] = {}
    for one in head_variants(own, target.model):
        if one.second_level not in baseline:
            baseline[one.second_level] = agreement(own._replace(second_level=one.second_level))
        share = agreement(one)
        if share > baseline[one.second_level] + CLEARLY:
            better[one.message] = share, baseline[one.second_level]
    return [
        f"{message}: run like that it has the target's best token in {share:.0%} of places, and as "
        f"it is declared in {without:.0%}"
        for message, (share, without) in sorted(better.items(), key=lambda item: -item[1][0])
    ]


class HeadVariant(NamedTuple):
    """A head, run as what it may have been made for.

    Attributes:
      message: what is declared wrongly, in words.
      model: the target, which returns the hidden states that the head reads.
      second_level: whether it shows one level below the root alone.
    """

    message: str
    head: Head
    params: HeadParams
    model: TransformerModel
    second_level: bool = False


def head_variants(own: HeadVariant, target: TransformerModel) -> Iterator[HeadVariant]:
    """What a head that is declared as `own` may have been made for."""
    if isinstance(own.head, Eagle3):
        yield from _eagle3_variants(own, target)
    elif isinstance(own.head.module, FeatureLayer):
        yield from _eagle_variants(own, target)
    config = own.head.config
    others = {
        "the target's": (target.config.rope_theta, target.config.rope_scaling),
        "the usual": (USUAL_THETA, None),
    }
    for whose, rope in others.items():
        if rope != (config.rope_theta, config.rope_scaling):
            yield own._replace(
                message=f"rope_theta={config.rope_theta:g}: it was trained with {whose}, "
                f"{rope[0]:g}",
                head=with_rope(own.head, *rope),
            )


class HeadWithoutNorm(Eagle3):
    """EAGLE-3's head without its last norm, whose parameters are unused."""

    def forward(self, *inputs: Any, **others: Any) -> HeadOutput:
        """`Head.forward`."""
        output = super().forward(*inputs, **others)
        return output._replace(hidden=output.features)


def with_rope(head: Head, theta: float, scaling: RopeScaling | None) -> Head:
    """The head with other rotary angles."""
    config = replace(head.config, rope_theta=theta, rope_scaling=scaling)
    return replace(head, module=head.module.clone(config=config), config=config)


def without_norm(config: ModelConfig) -> TransformerModel:
    """The model without its last norm, whose parameters are unused."""
    return transformer(replace(config, final_norm=False))


def swap_halves(params: Mapping[str, Array], path: tuple[str, ...], *, axis: int) -> Params:
    """Parameters with the halves of one matrix exchanged."""
    flat = flatten_dict(params)
    flat[path] = jnp.roll(flat[path], flat[path].shape[axis] // 2, axis=axis)
    return unflatten_dict(flat)


def _eagle_variants(own: HeadVariant, target: TransformerModel) -> Iterator[HeadVariant]:
    """Those of EAGLE and FSPAD."""
    params = own.params.head
    if target.config.final_norm:
        message = "it was trained on those before the target's last norm, and reads those after"
        yield own._replace(message=f"features: {message}", model=without_norm(target.config))
    yield own._replace(
        message="fc: it takes the feature first, where the embedding is",
        params=own.params._replace(head=swap_halves(params, ("fuse", "weight"), axis=1)),
    )
    if own.head.module.partial:
        halves = swap_halves(params, ("feedforward", "down", "weight"), axis=0)
        yield own._replace(
            message="down_proj: its halves are in the other order, the next feature's first",
            params=own.params._replace(head=halves),
        )


def _eagle3_variants(own: HeadVariant, target: TransformerModel) -> Iterator[HeadVariant]:
    """Those of EAGLE-3."""
    layers = own.head.layers
    for offset, where in ((1, "above"), (-1, "below")):
        shifted = tuple(layer + offset for layer in layers)
        if all(0 <= layer <= target.config.num_hidden_layers for layer in shifted):
            yield own._replace(
                message=f"eagle_aux_hidden_state_layer_ids={list(layers)}: it was trained with "
                f"those one {where}, {list(shifted)}",
                head=_changed(own.head, layers=shifted),
                model=with_hidden_states(target, shifted),
            )
    for name in ("norm_before_residual", "norm_output"):
        is_so = getattr(own.head.module, name)
        yield own._replace(
            message=f"{name}={str(is_so).lower()}: it was trained with {str(not is_so).lower()}",
            head=_changed(own.head, **{name: not is_so}),
            # What is passed on to the next level is first read there.
            second_level=name == "norm_output",
        )
    if _are_tokens(own.params.d2t, target.config.vocab_size):
        d2t = own.params.d2t - jnp.arange(len(own.params.d2t), dtype=jnp.int32)
        yield own._replace(
            message="d2t: it holds the tokens themselves, and should hold token - index",
            params=own.params._replace(d2t=d2t),
        )
    yield own._replace(
        message="norm: it was trained with none before lm_head",
        head=HeadWithoutNorm(own.head.module.clone(norm_output=False), own.head.config),
    )


def _changed(head: Head, **attributes: Any) -> Head:
    return replace(head, module=head.module.clone(**attributes))


def _are_tokens(d2t: Array | None, vocabulary: int) -> bool:
    """Whether a table of offsets may hold tokens in their place."""
    if d2t is None:
        return False
    found = np.unique(d2t)
    return len(found) == len(d2t) and 0 <= found[0] and found[-1] < vocabulary


def _text_causes(target: Checkpoint, draft: Checkpoint) -> Iterator[str]:
    """What may be wrong with the tokens that a model was trained on."""
    if draft.tokenizer is None:
        yield "tokenizer: the draft's folder has none, so its tokens may not be the target's"
    elif _template(target) != _template(draft) and _template(draft):
        yield "chat template: the draft's differs, so it was trained on other turns"


def _template(model: Checkpoint) -> Any:
    return getattr(model.tokenizer, "chat_template", None)


@jax.jit
def _best_and_loss(logits: Array, following: Array) -> tuple[Array, Array, Array]:
    """Of `[B, T, V]`: the best tokens `[B, T]`, the nats that the true ones cost, and where the
    logits are finite."""
    true = jnp.minimum(following[:, :, None], logits.shape[-1] - 1)
    likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), true, axis=-1)[..., 0]
    return jnp.argmax(logits, axis=-1), -likelihood, are_finite(logits)
