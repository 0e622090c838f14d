"""A drafter whose trees begin with tokens sampled from the target (arXiv 2409.10644): LOSSY.

Other drafters continue a token that the target has chosen. This one lets the target choose W at
once and drafts below each; which of them is emitted is decided by the lossy rule, and its module
says what is wrong with that. The exact form is a draft's own drafter: the one root of its trees is
the token that the target chose when it verified the tree before. Chosen so, whatever was drafted,
more roots than that one cannot help.
"""

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.candidates import Candidates, Randomness, Rule
from jspec.core.sampling import SamplingParams, process_logits
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.draft import Draft, ModelDraft
from jspec.draft.early_stopping import EarlyDrafter
from jspec.draft.protocol import DraftContext, Drafter, DrafterState
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.stopping import RunningAcceptance
from jspec.models.protocol import Model, Output, Params, one_token
from jspec.studies.multi_candidate.lossy import TARGET_STARTED, Lossy
from jspec.verify.rejection import RejectionNoise

LOSS = (
    "the lossy rule generates another text than the target's: at temperature 0 its tokens need not "
    "be the target's best, and above, the first three were off its distribution by a total "
    "variation of .16, .30 and .46 (forks of 1, 2 and 4 chains) and .39 (static trees) on a model "
    "of few tokens, where an exact rule shows .02 by chance; use it for comparison alone"
)


class LossyWarning(UserWarning):
    """The text will not follow the target's distribution."""


class TargetStartedParams(NamedTuple):
    """The draft's parameters, and the target's, which make the distribution of the roots."""

    draft: Params
    target: Params


@struct.dataclass
class TargetStartedState:
    """The draft's own state, and what the distribution of the next roots is made of.

    Attributes:
      rounds: `[B]` how many there were; before the first the distribution is not known.
      hidden: `[B, D]` the target's, at the token that was emitted last.
      path, count: `[B, A]` and `[B]`, what was accepted of the candidates.
      valid: `[B, N]`, and logits: `[B, I, V]`, of the candidates.
    """

    drafter: DrafterState
    rounds: Array
    hidden: Array
    path: Array
    count: Array
    valid: Array
    logits: Array


@dataclass(frozen=True, eq=False, repr=False)
class _RootsFrom(Lossy):
    """The lossy rule with roots drawn from the log-probabilities `roots` `[B, V]`."""

    roots: Array

    def draw(
        self,
        noise: RejectionNoise,
        logits: Array,
        *,
        tree: Tree | DynamicTree,
        depth: int,
        nodes: np.ndarray,
    ) -> tuple[Array, Array]:
        """As `Rule.draw`."""
        logits = logits if depth else self.roots[:, None]
        return super().draw(noise, logits, tree=tree, depth=depth, nodes=nodes)


@dataclass(frozen=True)
class TargetStartedDrafter:
    """Drafts below roots that the target samples, as `drafter` does below the last token.

    The first round of a text emits nothing: it asks the target for the distribution after the
    prompt. Of the tokens that a round emits the root is not a draft token, and the others are,
    which `GenerationOutput` counts; in `is_draft_token` the last of them is marked as none.
    """

    drafter: SmallModelDrafter | EarlyDrafter
    target: Model

    def __post_init__(self) -> None:
        draft = getattr(self.drafter, "drafter", self.drafter)
        if not isinstance(draft, SmallModelDrafter):
            raise ValueError(
                f"drafter={type(draft).__name__}: only a small model drafts below roots that the "
                "target samples, so give SmallModelDrafter"
            )
        if isinstance(getattr(self.drafter, "stop", None), RunningAcceptance):
            raise ValueError(
                "stop_drafting=running takes every level of a tree for draft tokens, and here the "
                "first is the target's own: use confidence, entropy or a network"
            )
        warnings.warn(LOSS, LossyWarning, stacklevel=3)

    @property
    def tree(self) -> Tree | DynamicTree:
        """As `Drafter.tree`."""
        return self.drafter.tree

    @property
    def source(self) -> str:
        """As `Drafter.source`."""
        return TARGET_STARTED

    @property
    def undrafted_levels(self) -> int:
        """As `Drafter.undrafted_levels`."""
        return 1

    def read_hidden_states(self, output: Output) -> Array | None:
        """As `Drafter.read_hidden_states`."""
        return self.drafter.read_hidden_states(output)

    def start(
        self,
        params: TargetStartedParams,
        tokens: Array,
        length: Array,
        hidden_states: Array | None,
        *,
        capacity: int,
        chunk: int,
    ) -> TargetStartedState:
        """As `Drafter.start`."""
        if not isinstance(params, TargetStartedParams):
            raise ValueError(
                f"params={type(params).__name__}: the target's parameters make the distribution of "
                "the roots, so give TargetStartedParams, the draft's parameters and the target's"
            )
        batch, tree = len(length), self.tree
        hidden = jax.eval_shape(self.target.forward, params.target, *one_token()).hidden
        return TargetStartedState(
            drafter=self.drafter.start(
                params.draft, tokens, length, hidden_states, capacity=capacity, chunk=chunk
            ),
            rounds=jnp.zeros((batch,), jnp.int32),
            hidden=jnp.zeros((batch, hidden.shape[-1]), hidden.dtype),
            path=jnp.zeros((batch, tree.path_length), jnp.int32),
            count=jnp.zeros((batch,), jnp.int32),
            valid=jnp.zeros((batch, tree.size), bool),
            logits=jnp.zeros((batch, tree.rows, self.target.config.vocab_size), jnp.float32),
        )

    def propose(
        self,
        params: TargetStartedParams,
        state: TargetStartedState,
        context: DraftContext,
        noise: Randomness,
        sampling: SamplingParams,
        *,
        rule: Rule,
    ) -> tuple[Candidates, TargetStartedState]:
        """As `Drafter.propose`."""
        assert isinstance(rule, Lossy)  # no other is compatible with its `source`
        rooted = _RootsFrom(self._roots(params, state, context, sampling, rule))
        candidates, drafter = self.drafter.propose(
            params.draft, state.drafter, context, noise, sampling, rule=rooted
        )
        root, asked = jnp.arange(self.tree.size)[None] == 0, state.rounds > 0
        valid = candidates.valid & (root | asked[:, None])
        state = replace(state, drafter=drafter, valid=valid, logits=candidates.draft_logits)
        levels = candidates.num_levels
        if levels is not None:
            levels = jnp.where(jnp.any(asked & context.running), levels, 0)
        return replace(candidates, valid=valid, num_levels=levels), state

    def commit(
        self, state: TargetStartedState, path: Array, count: Array, output: Output
    ) -> TargetStartedState:
        """As `Drafter.commit`."""
        rows = jnp.arange(len(count))
        return replace(
            state,
            drafter=self.drafter.commit(state.drafter, path, count, output),
            rounds=state.rounds + 1,
            hidden=output.hidden[rows, path[rows, count]],
            path=path,
            count=count,
        )

    def _roots(
        self,
        params: TargetStartedParams,
        state: TargetStartedState,
        context: DraftContext,
        sampling: SamplingParams,
        rule: Lossy,
    ) -> Array:
        """Log-probabilities `[B, V]` of the roots."""
        assert isinstance(self.tree, Tree)
        first = state.rounds < 2
        # Published so: the first token is drawn at temperature 1 whatever is asked for.
        as_asked = (sampling.temperature == 0) | ~first
        sampling = replace(sampling, temperature=jnp.where(as_asked, sampling.temperature, 1.0))
        logits = self.target.logits(params.target, state.hidden[:, None])
        return rule.root_logits(
            process_logits(logits, sampling, context.counts)[:, 0],
            state.logits,
            state.path,
            state.count,
            state.valid,
            first,
            sampling,
            tree=self.tree,
        )


@dataclass(frozen=True, eq=False)
class TargetStartedDraft(ModelDraft):
    """A language model below roots of its target: a `Draft` for the lossy rule alone. Whoever makes
    one tells the user what that does to the text."""

    @property
    def params(self) -> TargetStartedParams:
        """As `Draft.params`."""
        return TargetStartedParams(self.checkpoint.params, self.target.params)

    def drafter(self, tree: Tree | DynamicTree) -> TargetStartedDrafter:  # type: ignore[override]
        """As `Draft.drafter`."""
        return target_started(super().drafter(tree), self.target.model)

    def stopping_drafter(
        self, tree: Tree | DynamicTree, stop_drafting: str | None
    ) -> tuple[TargetStartedDrafter, TargetStartedParams]:
        """As `Draft.stopping_drafter`."""
        plain = ModelDraft(self.target, self.name, self.checkpoint)
        drafter, params = plain.stopping_drafter(tree, stop_drafting)
        params = TargetStartedParams(params, self.target.params)
        try:
            return target_started(drafter, self.target.model), params
        except ValueError as error:
            raise ValueError(f"stop_drafting={stop_drafting!r}: {error}") from None


def below_roots(draft: Draft) -> TargetStartedDraft:
    """The draft as it drafts under the lossy rule; raises `ValueError` if it is no small model."""
    if not isinstance(draft, ModelDraft):
        raise ValueError(
            f"draft={draft.name!r}: rule='lossy' has small models draft below roots that the "
            "target samples: give a small model, such as zoo:distilled, or another rule"
        )
    return TargetStartedDraft(draft.target, draft.name, draft.checkpoint)


def target_started(drafter: Drafter, target: Model) -> TargetStartedDrafter:
    """For a caller who tells the user what it does to the text."""
    assert isinstance(drafter, SmallModelDrafter | EarlyDrafter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyWarning)
        return TargetStartedDrafter(drafter, target)
