"""A drafter whose trees begin with tokens of the target's own law (arXiv 2409.10644): LOSSY.

Other drafters guess what follows a token that the target has chosen. This one lets the target
choose W at once and guesses on below each; which of them is written, the lossy rule decides, and
`jspec.verify.lossy` says what is wrong with that. The exact form is a draft's own drafter: the one
root of its trees is the token that the target chose when it verified the tree before. Chosen so,
whatever was drafted, more roots than that one cannot help.
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.candidates import Candidates, Dice, Draws, Rule
from jspec.core.sampling import Sampling, warp
from jspec.core.tree import Growth, Tree
from jspec.draft.early_stopping import EarlyDrafter
from jspec.draft.protocol import DrafterState, Text
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.stopping import Running
from jspec.models.protocol import Model, Output, Params, one_token

LOSS = (
    "the lossy rule writes another text than the target's: at temperature 0 its tokens need not be "
    "the target's best, and above, the first three were off its law by a total variation of .16, "
    ".30 and .46 (forks of 1, 2 and 4 chains) and .39 (static trees) on a model of few tokens, "
    "where an exact rule shows .02 by chance; use it to compare, and another rule to write"
)


class LossyWarning(UserWarning):
    """What is written will not follow the target's law."""


class TargetStartedParams(NamedTuple):
    """What the draft guesses with, and the target's parameters, which make its law."""

    draft: Params
    target: Params


@struct.dataclass
class StartedState:
    """The draft's own state, and of the last round what the law of the next roots is made of.

    Attributes:
      rounds: `[B]` how many there were; before the first the law is not known.
      hidden: `[B, D]` the target's, at the token that was written last.
      path, count: `[B, A]` and `[B]`, what was kept of the candidates.
      valid: `[B, N]`, and logits: `[B, I, V]`, of the candidates.
    """

    drafter: DrafterState
    rounds: Array
    hidden: Array
    path: Array
    count: Array
    valid: Array
    logits: Array


class _FromLaw(NamedTuple):
    """A rule that draws the first level from the log-probabilities `law` `[B, V]`."""

    rule: Rule
    law: Array
    WEIGHS: bool = True

    def draw(
        self, dice: Dice, logits: Array, *, tree: Tree, depth: int, nodes: np.ndarray
    ) -> tuple[Array, Array]:
        logits = logits if depth else self.law[:, None]
        return self.rule.draw(dice, logits, tree=tree, depth=depth, nodes=nodes)


@dataclass(frozen=True)
class TargetStartedDrafter:
    """Guesses below roots of the target's law, as `drafter` does below the last token.

    The first round of a text writes nothing: it asks the target for the law after the prompt. Of
    what a round writes the root is no guess, and the others are, which `Generation` counts; in
    `guessed` it is the last of them that is marked as none.
    """

    drafter: SmallModelDrafter | EarlyDrafter
    target: Model
    draws: ClassVar[Draws] = Draws.TARGET

    def __post_init__(self) -> None:
        draft = getattr(self.drafter, "drafter", self.drafter)
        if not isinstance(draft, SmallModelDrafter):
            raise ValueError(
                f"drafter={type(draft).__name__}: only a small model guesses below roots of the "
                "target's law, so give SmallModelDrafter"
            )
        if isinstance(getattr(self.drafter, "stop", None), Running):
            raise ValueError(
                "stop=running takes every level that was drafted for a guess, and here the first "
                "is the target's own: use confidence, entropy or a network"
            )
        warnings.warn(LOSS, LossyWarning, stacklevel=3)

    @property
    def tree(self) -> Tree | Growth:
        return self.drafter.tree

    def read(self, output: Output) -> Array | None:
        return self.drafter.read(output)

    def start(
        self, params: TargetStartedParams, tokens: Array, length: Array, *rest: Any, **sizes: int
    ) -> StartedState:
        if not isinstance(params, TargetStartedParams):
            raise ValueError(
                f"params={type(params).__name__}: roots are drawn by the target's law, so give "
                "TargetStartedParams, the draft's parameters and the target's"
            )
        batch, tree = len(length), self.tree
        hidden = jax.eval_shape(self.target.forward, params.target, *one_token()).hidden
        return StartedState(
            drafter=self.drafter.start(params.draft, tokens, length, *rest, **sizes),
            rounds=jnp.zeros((batch,), jnp.int32),
            hidden=jnp.zeros((batch, hidden.shape[-1]), hidden.dtype),
            path=jnp.zeros((batch, tree.path_length), jnp.int32),
            count=jnp.zeros((batch,), jnp.int32),
            valid=jnp.zeros((batch, tree.size), bool),
            logits=jnp.zeros((batch, tree.rows, self.target.config.vocabulary), jnp.float32),
        )

    def propose(
        self,
        params: TargetStartedParams,
        state: StartedState,
        text: Text,
        dice: Dice,
        sampling: Sampling,
        *,
        rule: Rule,
    ) -> tuple[Candidates, StartedState]:
        started = _FromLaw(rule, self._law(params, state, text, sampling, rule))
        candidates, drafter = self.drafter.propose(
            params.draft, state.drafter, text, dice, sampling, rule=started
        )
        root, asked = jnp.arange(self.tree.size)[None] == 0, state.rounds > 0
        valid = candidates.valid & (root | asked[:, None])
        state = state.replace(drafter=drafter, valid=valid, logits=candidates.logits)
        levels = candidates.levels
        if levels is not None:
            levels = jnp.where(jnp.any(asked & text.running), levels, 0)
        return candidates.replace(valid=valid, levels=levels), state

    def commit(
        self, state: StartedState, path: Array, count: Array, output: Output
    ) -> StartedState:
        rows = jnp.arange(len(count))
        return state.replace(
            drafter=self.drafter.commit(state.drafter, path, count, output),
            rounds=state.rounds + 1,
            hidden=output.hidden[rows, path[rows, count]],
            path=path,
            count=count,
        )

    def _law(
        self,
        params: TargetStartedParams,
        state: StartedState,
        text: Text,
        sampling: Sampling,
        rule: Rule,
    ) -> Array:
        """Log-probabilities `[B, V]` of the roots."""
        first = state.rounds < 2
        # Published so: the first token is drawn at temperature 1 whatever is asked for.
        as_asked = (sampling.temperature == 0) | ~first
        sampling = sampling.replace(temperature=jnp.where(as_asked, sampling.temperature, 1.0))
        logits = self.target.logits(params.target, state.hidden[:, None])
        return rule.following(
            warp(logits, sampling, text.history)[:, 0],
            state.logits,
            state.path,
            state.count,
            state.valid,
            first,
            sampling,
            tree=self.tree,
        )
