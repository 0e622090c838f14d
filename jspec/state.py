"""What is written, and what is counted of the rounds that wrote it."""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.cache import Block, Cache, commit
from jspec.candidates import Candidates, Verdict, drafted, shape
from jspec.draft.protocol import DrafterState
from jspec.growth import Growth
from jspec.penalties import History, remember
from jspec.ragged import Prompts
from jspec.sharding import constrain
from jspec.tree import Tree

STOPPED, EXHAUSTED = 1, 2


@struct.dataclass
class State:
    """The loop's carry.

    Attributes:
      tokens: `[B, M]` prompts and what was written so far, `length` `[B]` of them valid; the last
        valid one is the root, which is in no cache yet.
      history: how often each token was said, the root included.
      budget: `[B]` the length at which a row ends.
      guessed: `[B, M]` bool, whether a token was a candidate of the drafter.
      done: `[B]`, 0 while a row is being written, then why it ended.
      cache, drafter: committed rows of the target, and whatever the drafter keeps.
      rounds, kept, drafted, levels, waited: what `Generation` says of them.
    """

    tokens: Array
    length: Array
    history: History
    budget: Array
    guessed: Array
    done: Array
    cache: Cache
    drafter: DrafterState
    rounds: Array
    kept: Array
    drafted: Array
    levels: Array
    waited: Array


@struct.dataclass
class Generation:
    """What was written.

    Attributes:
      tokens: `[B, T]`, `length` `[B]` of them valid.
      guessed: `[B, T]` bool, whether the drafter had guessed a token.
      reason: `[B]`, `STOPPED` by an end of text (the last valid token) or `EXHAUSTED` its budget.
      rounds: `[B]` forward passes of the target.
      kept: `[B, A, W]` rounds that kept, at each depth, the child of each rank; the root's first,
        which counts the rounds that wrote something. Below roots of the target's own the first
        level is that of the roots, and there is a level less.
      drafted: `[B]` nodes guessed; levels: `[B]` levels of them, all rounds added; waited: `[B]`
        levels that were drafted for other rows after this one had stopped.
    """

    tokens: Array
    length: Array
    guessed: Array
    reason: Array
    rounds: Array
    kept: Array
    drafted: Array
    levels: Array
    waited: Array

    @property
    def kept_by_depth(self) -> Array:
        """`[B, A]` rounds that kept a node at each depth, the root's first."""
        return self.kept.sum(axis=-1)

    @property
    def tokens_per_round(self) -> float:
        """Emitted tokens per forward pass of the target, the bonus token included."""
        return float(self.length.sum() / self.rounds.sum())


def unfinished(state: State) -> Array:
    """Whether any row is still being written."""
    return jnp.any(state.done == 0)


@functools.partial(jax.jit, static_argnames=("tokens",))
def written(state: State, prompts: Prompts, tokens: int) -> Generation:
    """What a state holds behind its prompts, finished or not."""
    take = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, tokens))
    generation = Generation(
        tokens=take(state.tokens, prompts.length),
        length=state.length - prompts.length,
        guessed=take(state.guessed, prompts.length),
        reason=state.done,
        rounds=state.rounds,
        kept=state.kept,
        drafted=state.drafted,
        levels=state.levels,
        waited=state.waited,
    )
    # On every device, so that each process of a launch can read all of it.
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), generation)


def count_guesses(state: State, candidates: Candidates, tree: Tree | Growth) -> State:
    """Adds up what was drafted for the rows that are being written."""
    running, given = state.done == 0, tree.path_length - state.kept.shape[1]
    guesses = candidates.valid & (shape(candidates, tree)[0] > given)
    depths = jnp.maximum(drafted(candidates, tree) - given, 0)
    most = depths if candidates.levels is None else jnp.maximum(candidates.levels - given, 0)
    return state.replace(
        drafted=state.drafted + jnp.where(running, guesses.sum(axis=-1), 0),
        levels=state.levels + jnp.where(running, depths, 0),
        waited=state.waited + jnp.where(running, most - depths, 0),
    )


def emit(
    state: State, candidates: Candidates, block: Block, verdict: Verdict, stops: Array
) -> tuple[State, Array]:
    """Writes a verdict's tokens up to an end of text or the budget, and commits their rows.

    Returns the new state and `[B]` how many tokens each row wrote; a row that is done writes none.
    The token written last is the new root, so as many rows are committed as tokens are written.

    Args:
      stops: `[B, E]` tokens that end a text.
    """
    running = state.done == 0
    order = jnp.arange(verdict.path.shape[1])[None]
    below = jnp.roll(jnp.take_along_axis(candidates.tokens, verdict.path, axis=1), -1, axis=1)
    guessed = order < verdict.count[:, None] - 1
    written = jnp.where(guessed, below, verdict.next[:, None])
    count = jnp.where(running, jnp.minimum(verdict.count, state.budget - state.length), 0)
    ends = (written[..., None] == stops[:, None]).any(axis=-1) & (order < count[:, None])
    stopped = ends.any(axis=-1)
    count = jnp.where(stopped, jnp.argmax(ends, axis=-1) + 1, count)
    length = state.length + count
    done = jnp.where(stopped, STOPPED, jnp.where(length >= state.budget, EXHAUSTED, 0))
    put = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))
    state = state.replace(
        tokens=put(state.tokens, written, state.length, 0),
        guessed=put(state.guessed, guessed, state.length, 0),
        length=length,
        history=remember(state.history, written, count),
        done=jnp.where(running, done, state.done),
        cache=commit(state.cache, block, verdict.path, count),
        rounds=state.rounds + running,
        kept=state.kept + _by_rank(candidates, verdict.path, count, state.kept),
    )
    return state, count


def _by_rank(candidates: Candidates, path: Array, count: Array, like: Array) -> Array:
    """`[B, A, W]` 1 for each of the first `count` `[B]` nodes of a path, by its rank; where `like`
    is shorter than the path, from as much further down."""
    path = path[:, path.shape[1] - like.shape[1] :]
    kept = jnp.arange(path.shape[1])[None] < count[:, None]
    parent = jnp.take_along_axis(candidates.parent, path, axis=1)
    before = jnp.arange(candidates.parent.shape[1])[None, None] < path[..., None]
    rank = ((candidates.parent[:, None] == parent[..., None]) & before).sum(axis=-1)
    return jax.nn.one_hot(rank, like.shape[-1], dtype=like.dtype) * kept[..., None]
