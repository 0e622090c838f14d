"""Who is taught: a small model that writes alone, or a head that reads the target's features."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from jax import Array

from jspec.config import ModelConfig
from jspec.core.tree import Growth, Tree
from jspec.distill.features import feature_distillation
from jspec.distill.losses import mixture
from jspec.distill.objective import Objective, distillation
from jspec.distill.recipe import Distillation, FeatureHead
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.models.eagle3 import eagle3, usual_layers
from jspec.models.heads import Head, HeadParams, alignment_alone, eagle, fspad, sampling_alone
from jspec.models.protocol import LinenModel, Model, Params
from jspec.models.transformer import check_layers, observed

FEATURE_HEADS: Mapping[str, Callable[[ModelConfig], Head]] = {
    "eagle": eagle,
    "fspad": fspad,
    "sampling_alone": sampling_alone,
    "alignment_alone": alignment_alone,
}


class Student(Protocol):
    """A draft as it is taught, and the `params` that it starts from."""

    params: Params
    d2t: Array | None
    """As `HeadParams` has it."""

    @property
    def context(self) -> int:
        """Tokens of the longest text that it reads."""

    def reading(self, target: LinenModel) -> LinenModel:
        """The target, which shows what the student reads of it."""

    def objective(self, recipe: Distillation, target: LinenModel) -> Objective:
        """What a step lowers."""

    def frozen(self, target: Params) -> Params:
        """What the objective is given beside the student's parameters."""

    def drafter(self, target: LinenModel, tree: Tree | Growth) -> Drafter:
        """The student at work."""

    def drafting(self, params: Params, target: Params) -> Params:
        """What the drafter is given, once the student has these parameters."""


@dataclass(frozen=True, eq=False)
class ModelStudent:
    """A model of the target's tokens."""

    model: Model
    params: Params
    d2t: ClassVar[None] = None

    @property
    def context(self) -> int:
        return self.model.config.context

    def reading(self, target: LinenModel) -> LinenModel:
        return target

    def objective(self, recipe: Distillation, target: LinenModel) -> Objective:
        return functools.partial(
            distillation,
            model=self.model,
            teacher=target,
            loss=mixture(recipe.losses.weights(), beta=recipe.losses.beta),
            chunk=recipe.chunk,
        )

    def frozen(self, target: Params) -> Params:
        return target

    def drafter(self, target: LinenModel, tree: Tree | Growth) -> Drafter:
        return SmallModelDrafter(self.model, tree)

    def drafting(self, params: Params, target: Params) -> Params:
        return params


@dataclass(frozen=True, eq=False)
class HeadStudent:
    """A head, and the table of its tokens where it has fewer than the target."""

    head: Head
    params: Params
    d2t: Array | None = None

    @property
    def context(self) -> int:
        return self.head.config.context

    def reading(self, target: LinenModel) -> LinenModel:
        return observed(target, self.head.layers)

    def objective(self, recipe: Distillation, target: LinenModel) -> Objective:
        how = recipe.head
        return functools.partial(
            feature_distillation,
            head=self.head,
            teacher=target,
            loss=mixture(recipe.losses.weights(), beta=recipe.losses.beta),
            features=how.features,
            logits=how.logits,
            passes=how.passes,
            decay=how.decay,
            noise=how.noise,
            seed=recipe.seed,
            chunk=recipe.chunk,
        )

    def frozen(self, target: Params) -> Params:
        return HeadParams((), target, self.d2t)

    def drafter(self, target: LinenModel, tree: Tree | Growth) -> Drafter:
        return FeatureDrafter(self.head, target, tree)

    def drafting(self, params: Params, target: Params) -> Params:
        return HeadParams(params, target, self.d2t)


def head_of(wanted: FeatureHead, target: ModelConfig) -> Head:
    """The head that a recipe asks for: a layer of Llama's kind, as wide as the target."""
    config = ModelConfig(
        vocabulary=target.vocabulary,
        width=target.width,
        feedforward=wanted.feedforward or target.feedforward,
        layers=1,
        heads=wanted.heads or target.heads,
        kv_heads=wanted.kv_heads or (wanted.heads or target.kv_heads),
        channels=wanted.channels or target.channels,
        context=target.context,
        rope_theta=target.rope_theta,
        rope_scaling=target.rope_scaling,
        epsilon=target.epsilon,
    )
    if wanted.kind != "eagle3":
        return FEATURE_HEADS[wanted.kind](config)
    if wanted.tokens > target.vocabulary:
        raise ValueError(
            f"head.tokens={wanted.tokens}: the target has {target.vocabulary}; 0 is for all"
        )
    try:
        layers = wanted.layers or usual_layers(target.layers)
        check_layers(layers, target.layers)
        return eagle3(config, layers=layers, draft_vocabulary=wanted.tokens or None)
    except ValueError as error:
        raise ValueError(f"head.layers={wanted.layers}: {error}") from error


def check_said(wanted: FeatureHead, head: Head) -> None:
    """Raises `ValueError` where what a recipe says of a head that is there is not so."""
    sizes = ("feedforward", "heads", "kv_heads", "channels")
    there = {
        "kind": head.kind,
        **{name: getattr(head.config, name) for name in sizes},
        "layers": head.layers,
        "tokens": head.draft_vocabulary,
    }
    for name, has in there.items():
        said = getattr(wanted, name)
        if said and said != has:
            raise ValueError(f"head.{name}={said!r}, and it has {has!r}: say what the draft is")
