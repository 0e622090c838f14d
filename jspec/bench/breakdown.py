"""What a round costs beside the forward passes of its models.

Compiled loops are timed in turns: of whole rounds of speculation and of the draft's guesses alone
(`rounds.py`), and one of nothing but the forward passes that a round makes, of the same shapes: the
draft's, level by level over the growing block, its late token's in as many rounds as the first loop
had one or a head's over the tokens that wait, and the target's over the tree, each with its logits.
What whole rounds take longer than these is drafting's top-k, noise, verification, commit and
bookkeeping. Each pass takes its tokens from the logits before it, and a barrier keeps every result
whole, so that the compiler can neither drop nor merge the passes.
"""

import functools
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jspec.bench.rounds import ROUNDS, loops, seconds
from jspec.bench.suite import Method, Workload
from jspec.core.cache import Block, Cache, empty_block
from jspec.core.tree import Growth, Tree
from jspec.decode import State
from jspec.draft.feature_head import FeatureDrafter, FeatureState
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.static_tree import inner_levels
from jspec.models.heads import Guess, HeadParams
from jspec.models.protocol import Model, Params


@dataclass(frozen=True)
class Breakdown:
    """Milliseconds a round, medians, of which the draft's guesses take `guesses_ms`, what chooses
    them included; `outside` is the share that is not forward passes."""

    method: str
    temperature: float
    round_ms: float
    forwards_ms: float
    guesses_ms: float
    outside: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def breakdown(
    method: Method,
    target: Model,
    params: Params,
    work: Workload,
    *,
    temperature: float,
    repetitions: int,
) -> Breakdown:
    """Times the loops on the first batch of a workload, `repetitions` times each, in turns."""
    compiled = loops(method, target, params, work, temperature)
    passes = functools.partial(
        _passes,
        params,
        method.draft,
        compiled.state,
        compiled.late,
        target=method.reading(target),
        drafter=method.drafter,
    )
    jax.block_until_ready(passes())
    timed = compiled.rounds, passes, compiled.guesses
    times = [tuple(map(seconds, timed)) for _ in range(repetitions)]
    whole, models, drafts = (median(column) * 1e3 / ROUNDS for column in zip(*times, strict=True))
    outside = median(1 - passes / rounds for rounds, passes, _ in times)
    return Breakdown(method.name, temperature, whole, models, drafts, outside)


@functools.partial(jax.jit, static_argnames=("target", "drafter"))
def _passes(
    params: Params, draft: Params, state: State, late: Array, *, target: Model, drafter: Any
) -> Array:
    """`ROUNDS` times the forward passes of a round: `[B]`, a number that hangs on all of them."""

    drafted, tree = _alike(drafter.tree)

    def advance(number: Array, token: Array) -> Array:
        if isinstance(drafter, SmallModelDrafter):
            memory = state.drafter
            token, block = _late_pass(
                draft, memory.cache, memory.block, token, late[number], model=drafter.model
            )
            token = _draft_passes(
                draft, memory.cache, block, token, model=drafter.model, tree=drafted
            )
        elif isinstance(drafter, FeatureDrafter):
            token = _head_passes(draft, state.drafter, token, drafter=drafter, tree=drafted)
        nodes = jnp.broadcast_to(token[:, None], (len(token), tree.size))
        mask = jnp.asarray(tree.mask)
        return _pass(params, nodes, mask, state.cache, None, 0, model=target)[0]

    return jax.lax.fori_loop(0, ROUNDS, advance, state.tokens[:, 0])


def _alike(tree: Tree | Growth) -> tuple[Tree, Tree]:
    """Static trees whose passes are as large: the draft's over the one, the target's over the
    other."""
    if isinstance(tree, Tree):
        return tree, tree
    return Tree.fork(tree.width, tree.depth), Tree.chain(tree.size - 1)


def _late_pass(
    draft: Params, cache: Cache, block: Block, token: Array, late: Array, *, model: Model
) -> tuple[Array, Block]:
    """The pass over a late token, whose logits nobody asks for."""

    def run() -> tuple[Array, Block]:
        positions = cache.length[:, None]
        output = model.forward(draft, token[:, None], positions, jnp.ones((1, 1), bool), cache)
        row = jax.lax.optimization_barrier(output.block)
        return token, jax.tree.map(lambda x, new: x.at[:, :, :1].set(new), block, row)

    return jax.lax.cond(late, run, lambda: (token, block))


def _draft_passes(
    draft: Params, cache: Cache, block: Block, token: Array, *, model: Model, tree: Tree
) -> Array:
    """The draft's passes over the levels of a tree: `[B]` from the last one's logits."""
    for new, level in inner_levels(tree):
        nodes = jnp.broadcast_to(token[:, None], (len(token), len(new)))
        seen = jnp.pad(jnp.asarray(level.mask), ((0, 0), (1, 0)))
        token, block = _pass(draft, nodes, seen, cache, block, 1 + level.start, model=model)
    return token


def _head_passes(
    draft: HeadParams, memory: FeatureState, token: Array, *, drafter: FeatureDrafter, tree: Tree
) -> Array:
    """A head's passes over the tokens that wait, and over the levels below the root: `[B]`."""
    head, target = drafter.head, drafter.target

    def run(token: Array, features: Array, mask: Array, block: Block | None, start: int) -> Guess:
        nodes = jnp.broadcast_to(token[:, None], features.shape[:2])
        positions = jnp.broadcast_to(memory.cache.length[:, None], nodes.shape)
        inputs = head.embed(draft, nodes, target=target), features, positions, mask
        guess = head.forward(draft.head, *inputs, memory.cache, block, start)
        return jax.lax.optimization_barrier(guess)

    def read(hidden: Array) -> Array:
        logits = jax.lax.optimization_barrier(head.logits(draft, hidden, target=target))
        return (logits[:, 0, 0] > 0).astype(jnp.int32)

    waiting = jnp.tril(jnp.ones((tree.path_length, tree.path_length), bool))
    guess = run(token, head.fuse(draft.head, memory.features), waiting, None, 0)
    token, rows = read(guess.hidden[:, :1]), guess.block.k[0].dtype
    block = empty_block(head.config, len(token), max(tree.rows - 1, 1), rows)
    for new, level in list(inner_levels(tree))[1:]:
        shape = (len(token), len(new), guess.features.shape[-1])
        features = jnp.broadcast_to(guess.features[:, :1], shape)
        guess = run(token, features, jnp.asarray(level.mask[:, 1:]), block, level.start - 1)
        token, block = read(guess.hidden), guess.block
    return token


def _pass(
    params: Params,
    nodes: Array,
    mask: Array,
    cache: Cache,
    block: Block | None,
    start: int,
    *,
    model: Model,
) -> tuple[Array, Block]:
    """One forward pass with its logits; `[B]` tokens that hang on them, and the block."""
    positions = jnp.broadcast_to(cache.length[:, None], nodes.shape)
    output = model.forward(params, nodes, positions, mask, cache, block, start=start)
    logits = model.logits(params, output.hidden)
    logits, block = jax.lax.optimization_barrier((logits, output.block))
    return (logits[:, 0, 0] > 0).astype(jnp.int32), block
