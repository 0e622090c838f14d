"""What a head that guesses badly was made for instead, found by running it so."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jspec.bench.drafts import HeadDraft, head_logits, model_logits, seen_by
from jspec.config import ModelConfig, RopeScaling
from jspec.models.heads import FeatureLayer, Head, HeadParams
from jspec.models.protocol import LinenModel, Params
from jspec.models.transformer import transformer

CLEARLY = 0.1
"""Share of the text's places by which a head must agree better with its target when it is run in
another way; over four standard deviations of the difference on 512 places."""
# What is assumed where a configuration is silent.
USUAL_THETA = 10_000.0


@dataclass(frozen=True, eq=False)
class Way:
    """A way to run a head: `said` of it, the head and its parameters, and whether the features are
    those before the target's last norm."""

    said: str
    head: Head
    params: Params
    bare: bool = False


def diagnose(draft: HeadDraft, tokens: np.ndarray, first: int) -> list[str]:
    """Ways in which a head agrees clearly better with its target, the best first; mostly none.

    Args:
      tokens: `[B, M]` a text that the head was not taught; `first`: the place it is compared from.
    """
    target, text = draft.target, jnp.asarray(tokens[:, :-1])
    best = jnp.argmax(model_logits(target.params, text, model=target.model), axis=-1)
    own = draft.checkpoint

    def agreement(way: Way) -> float:
        model = _bare(target.model.config) if way.bare else target.model
        logits = head_logits(
            HeadParams(way.params, target.params),
            text,
            seen_by(target.params, text, head=way.head, model=model),
            head=way.head,
            target=target.model,
        )
        same = (jnp.argmax(logits, axis=-1) == best)[:, max(first, 2) - 1 :]
        return float(jnp.mean(same))

    usual = agreement(Way("", own.head, own.params))
    found = {way.said: agreement(way) for way in _ways(own.head, own.params, target.model.config)}
    better = {said: share for said, share in found.items() if share > usual + CLEARLY}
    return [
        f"{said}: run so it has the target's best token in {share:.0%} of places, and as it is in "
        f"{usual:.0%}"
        for said, share in sorted(better.items(), key=lambda item: -item[1])
    ]


def _ways(head: Head, params: Params, target: ModelConfig) -> Iterator[Way]:
    """What heads of EAGLE and FSPAD are made for by mistake."""
    if not isinstance(head.module, FeatureLayer):
        return
    if target.final_norm:
        yield Way(
            "features: it was taught those before the target's last norm, and is given those after",
            head,
            params,
            bare=True,
        )
    yield Way(
        "fc: it takes the feature first, where the embedding is",
        head,
        _swapped(params, ("fuse", "weight"), axis=1),
    )
    if head.module.partial:
        yield Way(
            "down_proj: its halves stand the other way round, the next feature's first",
            head,
            _swapped(params, ("feedforward", "down", "weight"), axis=0),
        )
    turned = {
        "the target's": (target.rope_theta, target.rope_scaling),
        "the usual": (USUAL_THETA, None),
    }
    for whose, rope in turned.items():
        if rope != (head.config.rope_theta, head.config.rope_scaling):
            yield Way(
                f"rope_theta={head.config.rope_theta:g}: it was taught with {whose}, {rope[0]:g}",
                _turning(head, *rope),
                params,
            )


def _turning(head: Head, theta: float, scaling: RopeScaling | None) -> Head:
    config = replace(head.config, rope_theta=theta, rope_scaling=scaling)
    return Head(head.module.clone(config=config), config)


def _bare(config: ModelConfig) -> LinenModel:
    """The model without its last norm, whose parameters stand idle."""
    return transformer(replace(config, final_norm=False))


def _swapped(params: Mapping[str, Array], path: tuple[str, ...], *, axis: int) -> Params:
    """Parameters with the halves of one matrix exchanged."""
    flat = flatten_dict(params)
    flat[path] = jnp.roll(flat[path], flat[path].shape[axis] // 2, axis=axis)
    return unflatten_dict(flat)
