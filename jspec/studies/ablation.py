"""The heads of FSPAD's ablation, and EAGLE's head with as many parameters as FSPAD's."""

from dataclasses import replace

import jax

from jspec.config import ModelConfig
from jspec.distill.recipe import FeatureHead
from jspec.distill.student import head_of
from jspec.studies.recipe import WIDE


def head_for(kind: str, like: FeatureHead, target: ModelConfig) -> FeatureHead:
    """The head of one of `KINDS`, with the sizes and the losses of `like`."""
    if kind == WIDE:
        return widened(replace(like, kind="eagle"), replace(like, kind="fspad"), target)
    return replace(like, kind=kind)


def widened(head: FeatureHead, like: FeatureHead, target: ModelConfig) -> FeatureHead:
    """`head` with a feed-forward of the width, to the nearest, that gives it as many parameters as
    `like` has."""
    width = head.feedforward or target.feedforward
    ours, more, wanted = (
        parameters(one, target)
        for one in (head, replace(head, feedforward=width + 1), replace(like, feedforward=width))
    )
    return replace(head, feedforward=width + round((wanted - ours) / (more - ours)))


def parameters(head: FeatureHead, target: ModelConfig) -> int:
    """How many numbers are taught."""
    shapes = jax.eval_shape(head_of(head, target).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))
