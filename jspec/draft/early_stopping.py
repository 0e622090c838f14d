"""Early stopping: level by level a stop decides whether another one is worth drafting.

The stop is asked before a level is drawn, and what was drawn is kept, so the text keeps its
distribution under every rule. Under the coupled rule it is the same text.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.candidates import (
    Candidates,
    Randomness,
    Rule,
    check_buckets,
    default_buckets,
    num_drafted_levels,
)
from jspec.core.sampling import SamplingParams
from jspec.core.tree import Tree
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.protocol import DraftContext, Drafter, DrafterState
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.static_tree import (
    NO_ROW,
    Carry,
    DraftedLevel,
    RunDraft,
    draft_level,
    inner_levels,
    rows_of,
    to_candidates,
)
from jspec.draft.stopping import Stop, StopInputs, StopState
from jspec.models.protocol import Output, Params


class EarlyParams(NamedTuple):
    """Parameters of the draft, and of the stop, which may have none.

    >>> EarlyParams(draft.params).stop
    ()
    """

    draft: Params
    stop: Params = ()


@struct.dataclass
class EarlyState:
    """The drafter's own state, the stop's state over rounds, and how many levels `[B]` each row had
    in the last one."""

    drafter: DrafterState
    stop: StopState
    levels: Array


@dataclass(frozen=True)
class EarlyDrafter:
    """A small model or a head that drafts no further than its stop finds worth it.

    >>> EarlyDrafter(SmallModelDrafter(draft.model, Tree.chain(8)), Confidence(0.3))

    Attributes:
      stop: decides after each level.
      buckets: depths at which the target's pass may be cut off, the last of them the tree's; by
        default every power of two.

    Raises `ValueError` for another drafter, a dynamic tree, or buckets that do not fit.
    """

    drafter: SmallModelDrafter | FeatureDrafter
    stop: Stop
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.drafter, SmallModelDrafter | FeatureDrafter):
            raise ValueError(
                f"drafter={type(self.drafter).__name__}: a stop reads a model's draft logits, so "
                "give a small model or a head"
            )
        tree = self.drafter.tree
        if not isinstance(tree, Tree):
            raise ValueError(
                f"tree of {tree.size} nodes is dynamic, and has one size whatever was drafted: "
                "drafting stops early along static trees, such as chain:8"
            )
        if not self.buckets:
            object.__setattr__(self, "buckets", default_buckets(tree.depth))
        check_buckets(self.buckets, tree)

    @property
    def tree(self) -> Tree:
        """As `Drafter.tree`."""
        tree = self.drafter.tree
        assert isinstance(tree, Tree)
        return tree

    @property
    def source(self) -> str:
        """As `Drafter.source`."""
        return self.drafter.source

    @property
    def undrafted_levels(self) -> int:
        """As `Drafter.undrafted_levels`."""
        return 0

    def read_hidden_states(self, output: Output) -> Array | None:
        """As `Drafter.read_hidden_states`."""
        return self.drafter.read_hidden_states(output)

    def start(
        self, params: EarlyParams, tokens: Array, length: Array, *rest: Any, **sizes: int
    ) -> EarlyState:
        """As `Drafter.start`."""
        if not isinstance(params, EarlyParams):
            raise ValueError(
                f"params={type(params).__name__}: a drafter that stops early takes EarlyParams, "
                "the draft's and the stop's"
            )
        self.stop.check_params(params.stop)
        started = self.drafter.start(params.draft, tokens, length, *rest, **sizes)
        return EarlyState(started, self.stop.start(len(length)), jnp.zeros_like(length))

    def propose(
        self,
        params: EarlyParams,
        state: EarlyState,
        context: DraftContext,
        noise: Randomness,
        sampling: SamplingParams,
        *,
        rule: Rule,
    ) -> tuple[Candidates, EarlyState]:
        """As `Drafter.propose`."""
        self.stop.check_compatible(rule)
        draft_tree = functools.partial(
            draft_until_stopped, stop=self.stop, stop_params=params.stop, stop_state=state.stop
        )
        candidates, drafter = self.drafter.propose(
            params.draft, state.drafter, context, noise, sampling, rule=rule, draft_tree=draft_tree
        )
        state = replace(state, drafter=drafter, levels=num_drafted_levels(candidates, self.tree))
        return replace(candidates, buckets=self.buckets), state

    def commit(self, state: EarlyState, path: Array, count: Array, output: Output) -> EarlyState:
        """As `Drafter.commit`."""
        accepted = jnp.maximum(count - 1, 0)
        return replace(
            state,
            drafter=self.drafter.commit(state.drafter, path, count, output),
            stop=self.stop.update(state.stop, accepted, state.levels),
        )


def check_drafter(rule: Rule, drafter: Drafter) -> None:
    """Raises `ValueError` if the rule is not exact for the drafter's candidates, or if its stop can
    decide nothing under the rule."""
    rule.check_compatible(drafter.tree, drafter.source)
    early = early_drafter_of(drafter)
    if early is not None:
        early.stop.check_compatible(rule)


def early_drafter_of(drafter: Drafter) -> EarlyDrafter | None:
    """The part of a drafter that stops early, if there is one."""
    inner = getattr(drafter, "drafter", None)
    return next((one for one in (drafter, inner) if isinstance(one, EarlyDrafter)), None)


def draft_until_stopped(
    carry: Carry,
    context: DraftContext,
    noise: Randomness,
    sampling: SamplingParams,
    *,
    tree: Tree,
    rule: Rule,
    run: RunDraft,
    stop: Stop,
    stop_params: Params,
    stop_state: StopState,
) -> tuple[Candidates, Array, Carry]:
    """Drafts as `draft_static_tree` does, down to the first level that is not worth it.

    A row that stops has no nodes below, whatever other rows do; the draft runs on for as long as
    any row continues.
    """
    tokens, levels, ran = context.root, [], []
    # Noise by which a draft token is then rejected must not decide whether there is one.
    shared_noise = noise if rule.drafter_invariant else None
    going, confidence = context.running, jnp.ones(context.length.shape, jnp.float32)
    for nodes, level in inner_levels(tree):

        def draft(
            carry: Carry, nodes=nodes, level=level, tokens=tokens, confidence=confidence
        ) -> tuple[DraftedLevel, Array, Carry]:
            drafted, carry = draft_level(
                nodes, level, tokens, carry, context, noise, sampling, tree=tree, rule=rule, run=run
            )
            inputs = StopInputs(rule, shared_noise, sampling, level.depth, *drafted[:3])
            return drafted, stop.score(stop_params, stop_state, confidence, inputs), carry

        def skip(carry: Carry, draft=draft) -> tuple[DraftedLevel, Array, Carry]:
            shapes = jax.eval_shape(draft, carry)[:2]
            return *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), carry

        ran.append(jnp.any(going))
        drafted, confidence, carry = jax.lax.cond(ran[-1], draft, skip, carry)
        drafted = drafted._replace(valid=drafted.valid & going[:, None])
        tokens = jnp.concatenate([tokens, drafted.tokens], axis=1)
        levels.append(drafted)
        going &= confidence > stop.threshold
    ran = jnp.stack(ran)
    # The last level has leaves alone, which a draft does not run.
    node_ran = jnp.append(ran, False)[jnp.asarray(tree.depths)]
    rows = jnp.where(node_ran, jnp.asarray(rows_of(tree)), NO_ROW)
    rows = jnp.broadcast_to(rows, tokens.shape)
    candidates = to_candidates(tokens, levels, tree=tree, rule=rule)
    return replace(candidates, num_levels=ran.sum(dtype=jnp.int32)), rows, carry
