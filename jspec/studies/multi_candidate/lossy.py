"""The improved multi-candidate method as its authors' code has it (arXiv 2409.10644): LOSSY, and
the drafter whose trees begin with tokens sampled from the target.

The text does not follow the target's distribution. The rule is here to be compared with the exact
ones, is not offered by `jspec.verify`, and works with `TargetStartedDrafter` alone.

The first level of a tree holds W roots, drawn without replacement from the distribution R of the
next token, and below each the draft continues. The longest path on which every draft token passes
its own test is emitted, root included. A tree of W chains is the method's fork, any other its
static tree. What departs from an exact scheme:

1. The root whose path is the longest is emitted, so roots do not follow R; at temperature 0 it need
   not be the target's best token.
2. Where no draft token passes, the first root is emitted, and the next R is the target's
   distribution after it, though it was sampled from already and lost: a residual is due.
3. Where a fork rejects, the residual is of the draft's distribution one level too high.
4. Siblings drawn without replacement are tested each by itself, against distributions that ignore
   the siblings before.
5. The first R after a prompt ignores the temperature.
6. At temperature 0 the next R of a fork is the target's distribution at temperature 1, of which the
   W likeliest tokens are roots.

One detail is ours: a root of probability 0 is not valid. Of a static tree at temperature 0 R has
one token alone, beside which the published code takes any W - 1 others.

Other drafters continue a token that the target has chosen; `TargetStartedDrafter` lets it choose W
at once and drafts below each. The exact form is a draft's own drafter: the one root of its trees is
the token that the target chose when it verified the tree before. Chosen so, whatever was drafted,
more roots than that one cannot help.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.candidates import Candidates, Randomness, Rule, Verification
from jspec.core.sampling import SamplingParams, process_logits
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.draft import Draft, ModelDraft
from jspec.draft.early_stopping import EarlyDrafter
from jspec.draft.protocol import DraftContext, Drafter, DrafterState
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.stopping import RunningAcceptance
from jspec.models.protocol import Model, Output, Params, one_token
from jspec.verify.recursive import WithoutReplacement
from jspec.verify.registry import register
from jspec.verify.rejection import RejectionNoise, inner_index, residual, to_probs

LOSS = (
    "the lossy rule generates another text than the target's: at temperature 0 its tokens need not "
    "be the target's best, and above, the first three were off its distribution by a total "
    "variation of .16, .30 and .46 (forks of 1, 2 and 4 chains) and .39 (static trees) on a model "
    "of few tokens, where an exact rule shows .02 by chance; use it for comparison alone"
)
TARGET_STARTED = (
    "below roots that the target has yet to sample (an exact rule takes the draft's own drafter, "
    "whose one root is sampled already)"
)
"""Where the candidates of `TargetStartedDrafter` come from."""


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


@dataclass(frozen=True, repr=False)
class Lossy(WithoutReplacement):
    """The published rule, whose text is another than the target's. Candidates are sampled without
    replacement, roots too."""

    name = "lossy"
    exact = False
    sources = (TARGET_STARTED,)
    why_not = (
        "it takes roots that the target samples, and these tokens follow one that is emitted "
        "already; give TargetStartedDrafter, or an exact rule"
    )

    def check_compatible(self, tree: Tree | DynamicTree, source: str) -> None:
        """Raises `ValueError` for another drafter's candidates, or a tree that the method lacks."""
        super().check_compatible(tree, source)
        widths = [tree.children(depth) for depth in range(tree.path_length - 1)]
        if tree != Tree.branching(widths) or len(widths) < 2:
            raise ValueError(
                f"tree of {tree.size} nodes: rule={self.name!r} follows roots below which every "
                "node of a level has as many children: give fork:2x4, 2x4x4x1, or chain:5"
            )

    def verify(
        self,
        noise: RejectionNoise,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """Emits the longest path that passes, its root included; the first of those that are as
        long.

        The last node of the path is the `bonus_token`, so that it is the node at `num_accepted`.
        With no root at all nothing is emitted, and the path is node 0 again.
        """
        assert isinstance(tree, Tree)
        depths, above = jnp.asarray(tree.depths), np.maximum(tree.parents, 0)
        paths = jnp.asarray(_paths(tree))

        def one(
            noise: RejectionNoise, candidates: Candidates, logits: Array, temperature: Array
        ) -> Verification:
            assert candidates.draft_logits is not None
            tokens = candidates.tokens
            p = jax.vmap(to_probs, (0, None))(logits, temperature)[above, tokens]
            q = jax.nn.softmax(candidates.draft_logits)[inner_index(tree, above), tokens]
            passes = (depths < 2) | (noise.uniforms[: tree.size] * q < p)
            passed = candidates.valid & passes
            whole = ~jnp.any(jnp.asarray(tree.mask) & ~passed[None], axis=1)
            last = jnp.argmax(jnp.where(whole, depths, 0))
            return Verification(paths[last], depths[last], tokens[last])

        return jax.vmap(one)(noise, candidates, logits, sampling.temperature)

    def root_logits(
        self, logits: Array, state: TargetStartedState, sampling: SamplingParams, *, tree: Tree
    ) -> Array:
        """Log-probabilities `[B, V]` of R, from which the next round's roots are drawn.

        `logits` `[B, V]` are the target's, processed, after the token that was emitted last.
        """
        fork, parents = is_fork(tree), jnp.asarray(tree.parents)
        rows = jnp.asarray(inner_index(tree, np.arange(tree.size)))

        def one(logits: Array, state: TargetStartedState, temperature: Array) -> Array:
            count, soft = state.count, jax.nn.softmax(logits)
            last, above = state.path[count], state.path[jnp.maximum(count - 1, 0)]
            p = soft if fork else jnp.where(state.rounds < 2, soft, to_probs(logits, temperature))
            q = jax.nn.softmax(state.logits[rows[above if fork else last]])
            rejected = (state.valid & (parents == last)).any() & (count > 1) & (temperature > 0)
            return jnp.log(jnp.where(rejected, residual(p, q), p))

        return jax.vmap(one)(logits, replace(state, drafter=None), sampling.temperature)


LOSSY = register(Lossy())


def is_fork(tree: Tree) -> bool:
    """Whether it branches nowhere but into its roots."""
    return all(tree.children(depth) == 1 for depth in range(1, tree.depth))


def _paths(tree: Tree) -> np.ndarray:
    """`[N, A]` the nodes from node 0 to each, which is repeated."""
    lines = (np.flatnonzero(row) for row in tree.mask)
    return np.stack([np.pad(x, (0, tree.path_length - len(x)), mode="edge") for x in lines])


class LossyWarning(UserWarning):
    """The text will not follow the target's distribution."""


class TargetStartedParams(NamedTuple):
    """The draft's parameters, and the target's, which make the distribution of the roots."""

    draft: Params
    target: Params


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

    # As `Drafter.source` and `Drafter.undrafted_levels`; no fields.
    source = TARGET_STARTED
    undrafted_levels = 1

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

    def read_hidden_states(self, output: Output) -> Array | None:
        """As `Drafter.read_hidden_states`."""
        return self.drafter.read_hidden_states(output)

    def start(
        self, params: TargetStartedParams, tokens: Array, length: Array, *rest: Any, **sizes: Any
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
            drafter=self.drafter.start(params.draft, tokens, length, *rest, **sizes),
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
        # No other rule and no other tree is compatible with its `source`.
        assert isinstance(rule, Lossy) and isinstance(self.tree, Tree)
        # Published so: the first token is drawn at temperature 1 whatever is asked for.
        as_asked = (sampling.temperature == 0) | (state.rounds > 1)
        first = replace(sampling, temperature=jnp.where(as_asked, sampling.temperature, 1.0))
        logits = self.target.logits(params.target, state.hidden[:, None])
        logits = process_logits(logits, first, context.counts)[:, 0]
        rooted = _RootsFrom(rule.root_logits(logits, state, first, tree=self.tree))
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
