"""Ways to run a head: as what it may have been made for, where it was taken for something else."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jspec.config import ModelConfig, RopeScaling
from jspec.models.eagle3 import Eagle3
from jspec.models.heads import FeatureLayer, Guess, Head, HeadParams
from jspec.models.protocol import LinenModel, Params
from jspec.models.transformer import observed, transformer

# What is assumed where a configuration is silent.
USUAL_THETA = 10_000.0


class Way(NamedTuple):
    """A way to run a head: what is `said` of it, the head and its parameters, the target to run,
    and whether it shows in the head's `second` guesses alone."""

    said: str
    head: Head
    params: HeadParams
    model: LinenModel
    second: bool = False


def ways(own: Way, target: LinenModel) -> Iterator[Way]:
    """What a head that is run as `own` is made for by mistake."""
    if isinstance(own.head, Eagle3):
        yield from _of_eagle3(own, target)
    elif isinstance(own.head.module, FeatureLayer):
        yield from _of_eagle(own, target)
    config = own.head.config
    turned = {
        "the target's": (target.config.rope_theta, target.config.rope_scaling),
        "the usual": (USUAL_THETA, None),
    }
    for whose, rope in turned.items():
        if rope != (config.rope_theta, config.rope_scaling):
            yield own._replace(
                said=f"rope_theta={config.rope_theta:g}: it was taught with {whose}, {rope[0]:g}",
                head=_turning(own.head, *rope),
            )


def _of_eagle(own: Way, target: LinenModel) -> Iterator[Way]:
    """Those of EAGLE and FSPAD."""
    params = own.params.head
    if target.config.final_norm:
        said = "it was taught those before the target's last norm, and is given those after"
        yield own._replace(said=f"features: {said}", model=_bare(target.config))
    yield own._replace(
        said="fc: it takes the feature first, where the embedding is",
        params=own.params._replace(head=_swapped(params, ("fuse", "weight"), axis=1)),
    )
    if own.head.module.partial:
        halves = _swapped(params, ("feedforward", "down", "weight"), axis=0)
        yield own._replace(
            said="down_proj: its halves stand the other way round, the next feature's first",
            params=own.params._replace(head=halves),
        )


def _of_eagle3(own: Way, target: LinenModel) -> Iterator[Way]:
    """Those of EAGLE-3."""
    layers = own.head.layers
    for offset, where in ((1, "above"), (-1, "below")):
        shifted = tuple(layer + offset for layer in layers)
        if all(0 <= layer <= target.config.layers for layer in shifted):
            yield own._replace(
                said=f"eagle_aux_hidden_state_layer_ids={list(layers)}: it was taught with those "
                f"one {where}, {list(shifted)}",
                head=_changed(own.head, layers=shifted),
                model=observed(target, shifted),
            )
    for name in ("norm_before_residual", "norm_output"):
        is_so = getattr(own.head.module, name)
        yield own._replace(
            said=f"{name}={str(is_so).lower()}: it was taught with {str(not is_so).lower()}",
            head=_changed(own.head, **{name: not is_so}),
            # What is handed on is not read before.
            second=name == "norm_output",
        )
    if _are_tokens(own.params.d2t, target.config.vocabulary):
        d2t = own.params.d2t - jnp.arange(len(own.params.d2t))
        yield own._replace(
            said="d2t: it holds the tokens themselves, and is to hold token - index",
            params=own.params._replace(d2t=d2t),
        )
    yield own._replace(
        said="norm: it was taught with none before lm_head",
        head=Bare(own.head.module.clone(norm_output=False), own.head.config),
    )


class Bare(Eagle3):
    """EAGLE-3's head without its last norm, whose parameters stand idle."""

    def forward(self, *inputs: Any, **others: Any) -> Guess:
        guess = super().forward(*inputs, **others)
        return guess._replace(hidden=guess.features)


def _changed(head: Head, **attributes: Any) -> Head:
    return replace(head, module=head.module.clone(**attributes))


def _turning(head: Head, theta: float, scaling: RopeScaling | None) -> Head:
    config = replace(head.config, rope_theta=theta, rope_scaling=scaling)
    return replace(head, module=head.module.clone(config=config), config=config)


def _are_tokens(d2t: Array | None, vocabulary: int) -> bool:
    """Whether a table of offsets may hold tokens in their place."""
    if d2t is None:
        return False
    found = np.unique(d2t)
    return len(found) == len(d2t) and 0 <= found[0] and found[-1] < vocabulary


def _bare(config: ModelConfig) -> LinenModel:
    """The model without its last norm, whose parameters stand idle."""
    return transformer(replace(config, final_norm=False))


def _swapped(params: Mapping[str, Array], path: tuple[str, ...], *, axis: int) -> Params:
    """Parameters with the halves of one matrix exchanged."""
    flat = flatten_dict(params)
    flat[path] = jnp.roll(flat[path], flat[path].shape[axis] // 2, axis=axis)
    return unflatten_dict(flat)
