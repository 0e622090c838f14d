"""What can guess for a target: a model of its own, or a head that reads the target's features."""

import functools
import warnings
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.tree import Growth, Tree
from jspec.draft.early_stopping import EarlyDrafter
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.target_started import LossyWarning, TargetStartedDrafter, TargetStartedParams
from jspec.formats.heads import HeadCheckpoint
from jspec.formats.huggingface import Checkpoint
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import EmbeddingModel, LinenModel, Model, Params
from jspec.models.transformer import observed


class Draft(Protocol):
    """A draft that was read, beside its target."""

    checkpoint: Checkpoint | HeadCheckpoint
    params: Params
    """Of its drafters."""
    vocabulary: int
    """How many tokens it may guess."""
    context: int
    """How long the texts are that it was made for."""
    width: int
    """Of its hidden states."""

    def reading(self, target: LinenModel) -> LinenModel:
        """The target to run, which shows what the draft reads of it."""

    def knows(self, tokens: np.ndarray) -> np.ndarray:
        """Which of the target's tokens it may guess."""

    def drafter(self, tree: Tree | Growth) -> Drafter:
        """Guesses over `tree`."""

    def logits(self, tokens: Array) -> Array:
        """Of what follows each of `tokens` `[B, T]`: `[B, T, V]`, given the target's text."""

    def states(self, tokens: Array) -> tuple[Array, Array]:
        """The hidden states `[B, T, D]` that the logits are made of, and these."""


@dataclass(frozen=True, eq=False)
class ModelDraft:
    """A language model: a `Draft`."""

    checkpoint: Checkpoint

    @property
    def params(self) -> Params:
        return self.checkpoint.params

    @property
    def vocabulary(self) -> int:
        return self.checkpoint.model.config.vocabulary

    @property
    def context(self) -> int:
        return self.checkpoint.model.config.context

    @property
    def width(self) -> int:
        return self.checkpoint.model.config.width

    def reading(self, target: LinenModel) -> LinenModel:
        return target

    def knows(self, tokens: np.ndarray) -> np.ndarray:
        return tokens < self.vocabulary

    def drafter(self, tree: Tree | Growth) -> SmallModelDrafter:
        return SmallModelDrafter(self.checkpoint.model, tree)

    def logits(self, tokens: Array) -> Array:
        return self.states(tokens)[1]

    def states(self, tokens: Array) -> tuple[Array, Array]:
        return model_states(self.checkpoint.params, tokens, model=self.checkpoint.model)


@dataclass(frozen=True, eq=False)
class HeadDraft:
    """A head with its target: a `Draft`. Of what follows the first token it knows nothing."""

    checkpoint: HeadCheckpoint
    target: Checkpoint

    @property
    def params(self) -> HeadParams:
        return self.checkpoint.params_for(self.target.params)

    @property
    def vocabulary(self) -> int:
        return self.checkpoint.head.draft_vocabulary

    @property
    def context(self) -> int:
        return self.checkpoint.head.config.context

    @property
    def width(self) -> int:
        return self.checkpoint.head.config.width

    def reading(self, target: LinenModel) -> LinenModel:
        return observed(target, self.checkpoint.head.layers)

    def knows(self, tokens: np.ndarray) -> np.ndarray:
        own = self.params.tokens
        return tokens < self.vocabulary if own is None else np.isin(tokens, own)

    def drafter(self, tree: Tree | Growth) -> FeatureDrafter:
        return FeatureDrafter(self.checkpoint.head, self.target.model, tree)

    def logits(self, tokens: Array) -> Array:
        return self.states(tokens)[1]

    def states(self, tokens: Array) -> tuple[Array, Array]:
        head, target = self.checkpoint.head, self.target.model
        seen = seen_by(self.target.params, tokens, head=head, model=self.reading(target))
        return head_states(self.params, tokens, seen, head=head, target=target)


def model_logits(params: Params, tokens: Array, *, model: Model) -> Array:
    """A model's logits after each of `tokens` `[B, T]`: `[B, T, V]`."""
    return model_states(params, tokens, model=model)[1]


@dataclass(frozen=True, eq=False)
class StartedDraft(ModelDraft):
    """A language model below roots of its target's law: a `Draft` for the lossy rule alone. Whoever
    makes one tells the user what that does to the text."""

    target: Checkpoint

    @property
    def params(self) -> TargetStartedParams:
        return TargetStartedParams(self.checkpoint.params, self.target.params)

    def drafter(self, tree: Tree | Growth) -> TargetStartedDrafter:
        return target_started(super().drafter(tree), self.target.model)


def target_started(
    drafter: SmallModelDrafter | EarlyDrafter, target: Model
) -> TargetStartedDrafter:
    """For a caller who tells the user what it does to the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyWarning)
        return TargetStartedDrafter(drafter, target)


@functools.partial(jax.jit, static_argnames=("model",))
def model_states(params: Params, tokens: Array, *, model: Model) -> tuple[Array, Array]:
    """A model's hidden states `[B, T, D]` at `tokens` `[B, T]`, and its logits `[B, T, V]`."""
    hidden = model.forward(params, tokens, *_whole(tokens)).hidden
    return hidden, model.logits(params, hidden)


@functools.partial(jax.jit, static_argnames=("head", "model"))
def seen_by(params: Params, tokens: Array, *, head: Head, model: Model) -> Array:
    """What a head reads of a model at each of `tokens` `[B, T]`: `[B, T, E]`."""
    return head.read(model.forward(params, tokens, *_whole(tokens)))


def head_logits(
    params: HeadParams, tokens: Array, seen: Array, *, head: Head, target: EmbeddingModel
) -> Array:
    """A head's logits after each of `tokens` `[B, T]`, all alike after the first: `[B, T, V]`.

    Args:
      seen: `[B, T, E]` what it read at those tokens.
    """
    return head_states(params, tokens, seen, head=head, target=target)[1]


@functools.partial(jax.jit, static_argnames=("head", "target"))
def head_states(
    params: HeadParams, tokens: Array, seen: Array, *, head: Head, target: EmbeddingModel
) -> tuple[Array, Array]:
    """The hidden states `[B, T, D]` beside them; none at the first token."""
    following = tokens[:, 1:]
    embedded = head.embed(params, following, target=target)
    features = head.fuse(params.head, seen[:, :-1])
    guess = head.forward(params.head, embedded, features, *_whole(following))
    logits = head.logits(params, guess.hidden, target=target)
    return tuple(jnp.pad(x, ((0, 0), (1, 0), (0, 0))) for x in (guess.hidden, logits))


@functools.partial(jax.jit, static_argnames=("head", "target"))
def second_logits(
    params: HeadParams, tokens: Array, seen: Array, *, head: Head, target: EmbeddingModel
) -> Array:
    """The same where it reads, for the last token alone, the feature that it guessed itself, as it
    does one level below the root; all alike after the first two."""
    following, length = tokens[:, 1:], tokens.shape[1] - 1
    embedded = head.embed(params, following, target=target)
    features = head.fuse(params.head, seen[:, :-1])
    positions, mask = _whole(following)
    guess = head.forward(params.head, embedded, features, positions, mask)
    room = ((0, 0), (0, 0), (0, length), (0, 0))
    block = jax.tree.map(lambda x: jnp.pad(x, room), guess.block)
    # Of the first pass a row sees what is before it, and of the second itself.
    before = jnp.tril(jnp.ones((length, length), bool), -1)
    mask = jnp.concatenate([before, jnp.eye(length, dtype=bool)], axis=1)
    features = jnp.roll(guess.features, 1, axis=1)
    again = head.forward(params.head, embedded, features, positions, mask, None, block, length)
    logits = head.logits(params, again.hidden, target=target)
    return jnp.pad(logits, ((0, 0), (1, 0), (0, 0)))


def _whole(tokens: Array) -> tuple[Array, Array]:
    """Positions and mask of texts in one pass."""
    length = tokens.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
    return positions, jnp.tril(jnp.ones((length, length), bool))
