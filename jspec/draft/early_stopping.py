"""A drafter that stops early: level by level something decides whether another is worth drafting.

What decides is asked before a level is drawn, and what was drawn is kept, so the text keeps its law
under every rule. Under the coupled rule it is the same text.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.candidates import Candidates, Dice, Draws, Rule, drafted
from jspec.core.sampling import Sampling
from jspec.core.tree import Tree
from jspec.decode import check_slices, usual_slices
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.protocol import DrafterState, Text
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.static_tree import (
    NO_ROW,
    Carry,
    Drawn,
    Run,
    draw_level,
    gathered,
    inner_levels,
    root_of,
    rows_of,
)
from jspec.draft.stopping import Memory, Seen, Stop
from jspec.models.protocol import Output, Params


class EarlyParams(NamedTuple):
    """Parameters of the draft, and of what decides, which may have none."""

    draft: Params
    stop: Params = ()


@struct.dataclass
class EarlyState:
    """The drafter's own state, what is remembered of earlier rounds, and how many levels `[B]` each
    row was given in the last one."""

    drafter: DrafterState
    memory: Memory
    levels: Array


@dataclass(frozen=True)
class EarlyDrafter:
    """A small model or a head that drafts no further than seems worth it.

    Attributes:
      stop: what decides.
      slices: depths at which the target's pass may be cut off, the last of them the tree's; by
        default every doubling.
    """

    drafter: SmallModelDrafter | FeatureDrafter
    stop: Stop
    slices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.drafter, SmallModelDrafter | FeatureDrafter):
            raise ValueError(
                f"drafter={type(self.drafter).__name__}: what decides reads a model's guesses, so "
                "give a small model or a head"
            )
        if not isinstance(self.tree, Tree):
            raise ValueError(
                f"tree of {self.tree.size} nodes grows, and is cut to one size whatever was made: "
                "drafting stops early along static trees, such as chain:8"
            )
        if not self.slices:
            object.__setattr__(self, "slices", usual_slices(self.tree.depth))
        check_slices(self.slices, self.tree)

    @property
    def tree(self) -> Tree:
        return self.drafter.tree

    @property
    def draws(self) -> Draws:
        return self.drafter.draws

    def read(self, output: Output) -> Array | None:
        return self.drafter.read(output)

    def start(
        self, params: EarlyParams, tokens: Array, length: Array, *rest: Any, **sizes: int
    ) -> EarlyState:
        if not isinstance(params, EarlyParams):
            raise ValueError(
                f"params={type(params).__name__}: a drafter that stops early has EarlyParams, the "
                "draft's and those of what decides"
            )
        self.stop.check(params.stop)
        started = self.drafter.start(params.draft, tokens, length, *rest, **sizes)
        return EarlyState(started, self.stop.start(len(length)), jnp.zeros_like(length))

    def propose(
        self,
        params: EarlyParams,
        state: EarlyState,
        text: Text,
        dice: Dice,
        sampling: Sampling,
        *,
        rule: Rule,
    ) -> tuple[Candidates, EarlyState]:
        self.stop.admit(rule)
        guess = functools.partial(
            grow_until, stop=self.stop, weights=params.stop, memory=state.memory
        )
        candidates, drafter = self.drafter.propose(
            params.draft, state.drafter, text, dice, sampling, rule=rule, guess=guess
        )
        state = state.replace(drafter=drafter, levels=drafted(candidates, self.tree))
        return candidates.replace(slices=self.slices), state

    def commit(self, state: EarlyState, path: Array, count: Array, output: Output) -> EarlyState:
        return state.replace(
            drafter=self.drafter.commit(state.drafter, path, count, output),
            memory=self.stop.learn(state.memory, jnp.maximum(count - 1, 0), state.levels),
        )


def grow_until(
    carry: Carry,
    text: Text,
    dice: Dice,
    sampling: Sampling,
    *,
    tree: Tree,
    rule: Rule,
    run: Run,
    stop: Stop,
    weights: Params,
    memory: Memory,
) -> tuple[Candidates, Array, Carry]:
    """Guesses as `growing.grow` does it, to the first level that is not worth it.

    A row that stops has no nodes below, whatever other rows do; the draft runs on for as long as
    any row goes on.
    """
    guesses, levels, ran = root_of(text), [], []
    # Dice by which a guess is then refused must not sway whether there is a guess.
    shared = dice if hasattr(rule, "score") else None
    going, worth = text.running, jnp.ones(text.length.shape)
    for new, level in inner_levels(tree):

        def draw(
            carry: Carry, new=new, level=level, guesses=guesses, worth=worth
        ) -> tuple[Drawn, Array, Carry]:
            drawn, carry = draw_level(
                new, level, guesses, carry, text, dice, sampling, tree=tree, rule=rule, run=run
            )
            seen = Seen(rule, shared, sampling, level.depth, *drawn[:3])
            return drawn, stop.judge(weights, memory, worth, seen), carry

        def nothing(carry: Carry, draw=draw) -> tuple[Drawn, Array, Carry]:
            shapes = jax.eval_shape(draw, carry)[:2]
            return *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), carry

        ran.append(jnp.any(going))
        drawn, worth, carry = jax.lax.cond(ran[-1], draw, nothing, carry)
        drawn = drawn._replace(there=drawn.there & going[:, None])
        guesses = jnp.concatenate([guesses, drawn.tokens], axis=1)
        levels.append(drawn)
        going &= worth > stop.threshold
    ran = jnp.stack(ran)
    rows = jnp.asarray(rows_of(tree))
    # The last level has leaves alone.
    run_there = jnp.append(ran, False)[jnp.asarray(tree.depths)]
    rows = jnp.broadcast_to(jnp.where(run_there, rows, NO_ROW), guesses.shape)
    candidates = gathered(guesses, levels, tree=tree, rule=rule)
    return candidates.replace(levels=ran.sum()), rows, carry
