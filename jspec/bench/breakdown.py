"""Where the time of a round goes: whole rounds, drafting alone, and forward passes alone.

Compiled loops are timed in turns. One runs whole rounds of speculation, one nothing but `propose`,
from the noise to the candidates, and one nothing but the forward passes that a round makes, of the
same shapes: the draft's, level by level over the growing block, its pending token's in as many
rounds as the first loop had one or a head's over the tokens that wait, and the target's over the
tree, each with its logits. What whole rounds take longer than these passes is drafting's top-k,
noise, verification, commit and bookkeeping. Each pass takes its tokens from the logits before it,
and a barrier preserves every result, so that the compiler can neither drop nor merge the passes.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jspec.bench.suite import Method, Workload
from jspec.core.cache import Block, Cache, empty_block
from jspec.core.candidates import Rule
from jspec.core.tree import DynamicTree, Tree
from jspec.decode import DecodeState, budget, speculate, start_decoding
from jspec.draft.feature_head import FeatureDrafter, FeatureState
from jspec.draft.protocol import DraftContext
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.static_tree import inner_levels
from jspec.models.heads import HeadOutput, HeadParams
from jspec.models.protocol import Model, Params

ROUNDS = 32


@dataclass(frozen=True)
class Breakdown:
    """Milliseconds of a round, medians over repetitions.

    Attributes:
      draft_ms: of drafting, the choice of candidates included.
      forwards_ms: of the forward passes of both models; None where they were not timed.
      overhead: the share of a round outside of forward passes; None where they were not timed.
    """

    method: str
    temperature: float
    round_ms: float
    draft_ms: float
    forwards_ms: float | None = None
    overhead: float | None = None

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
    """Times the three loops on the first batch of a workload, `repetitions` times each."""
    compiled = loops(method, target, params, work, temperature)
    passes = functools.partial(
        _passes,
        params,
        method.draft,
        compiled.state,
        compiled.pending,
        target=method.reading(target),
        drafter=method.drafter,
    )
    jax.block_until_ready(passes())
    timed = compiled.rounds, compiled.drafts, passes
    times = [tuple(map(seconds, timed)) for _ in range(repetitions)]
    whole, drafts, models = (median(column) * 1e3 / ROUNDS for column in zip(*times, strict=True))
    overhead = median(1 - passes / rounds for rounds, _, passes in times)
    return Breakdown(method.name, temperature, whole, drafts, models, overhead)


def latencies(
    methods: Sequence[Method],
    target: Model,
    params: Params,
    work: Workload,
    *,
    temperature: float,
    repetitions: int,
    tick: Callable[[], Any],
) -> list[Breakdown]:
    """Rounds and drafting of several methods, timed in turns on the first batch of a workload: what
    makes drafts of several kinds comparable.

    Args:
      tick: called for every method that is compiled.
    """
    pairs = []
    for method in methods:
        compiled = loops(method, target, params, work, temperature)
        pairs.append((compiled.rounds, compiled.drafts))
        tick()
    times = [[tuple(map(seconds, pair)) for pair in pairs] for _ in range(repetitions)]
    found = []
    for method, runs in zip(methods, zip(*times, strict=True), strict=True):
        whole, drafts = (median(column) * 1e3 / ROUNDS for column in zip(*runs, strict=True))
        found.append(Breakdown(method.name, temperature, whole, drafts))
    return found


class Loops(NamedTuple):
    """The loops of a method, which have run once.

    Attributes:
      state: with which they begin; pending: `[ROUNDS]` bool, in which rounds of `drafts` a token is
        pending.
      rounds: whole rounds; drafts: drafting alone.
    """

    state: DecodeState
    pending: Array
    rounds: Callable[[], Any]
    drafts: Callable[[], Any]


def loops(
    method: Method, target: Model, params: Params, work: Workload, temperature: float
) -> Loops:
    """Compiles the loops for the first batch of a workload.

    Args:
      target: the model itself, not as the method reads it.
    """
    state, inputs, names = _begun(method, target, params, work, temperature)
    rounds = functools.partial(
        whole_rounds, params, method.draft, *inputs, target=method.reading(target), **names
    )
    pending = pending_rounds(rounds())
    return Loops(state, pending, rounds, _drafting(method, target, inputs, pending, names))


def drafting_alone(
    method: Method, target: Model, params: Params, work: Workload, temperature: float
) -> Callable[[], Any]:
    """The loop of drafting, which has run once, where no token is pending."""
    _, inputs, names = _begun(method, target, params, work, temperature)
    return _drafting(method, target, inputs, jnp.zeros(ROUNDS, bool), names)


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes, results included."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def pending_rounds(result: tuple[DecodeState, Array]) -> Array:
    """`[ROUNDS]` bool: as many true as rounds had a pending token, spread evenly."""
    share = int(result[1]) / ROUNDS
    steps = jnp.floor(jnp.arange(ROUNDS + 1, dtype=jnp.float32) * share + 1e-6)
    return steps[1:] > steps[:-1]


@functools.partial(jax.jit, static_argnames=("target", "drafter", "rule"))
def whole_rounds(
    params: Params,
    draft: Params,
    state: DecodeState,
    keys: Array,
    how: Any,
    *,
    target: Model,
    drafter: Any,
    rule: Rule,
) -> tuple[DecodeState, Array]:
    """The state after `ROUNDS` rounds, and how many of them began with a pending token.

    A row that ends takes part in the remaining rounds: a round's work does not depend on it.
    """

    def advance(_: int, carry: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
        state, count = carry
        pending = jnp.any(getattr(state.drafter, "pending", jnp.array(False)))
        state = speculate(
            params, draft, state, keys, how, target=target, drafter=drafter, rule=rule
        )
        return state, count + pending.astype(jnp.int32)

    return jax.lax.fori_loop(0, ROUNDS, advance, (state, jnp.int32(0)))


@functools.partial(jax.jit, static_argnames=("vocabulary", "drafter", "rule"))
def draft_rounds(
    draft: Params,
    state: DecodeState,
    keys: Array,
    how: Any,
    pending: Array,
    *,
    vocabulary: int,
    drafter: Any,
    rule: Rule,
) -> Array:
    """`ROUNDS` proposals, each for a root that the one before drafted: `[B]` the last of these."""
    noise = rule.sample_noise(keys, state.length, how, tree=drafter.tree, vocab_size=vocabulary)
    row = jnp.arange(len(state.length), dtype=jnp.int32)

    def advance(number: int, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        root, memory = carry
        tokens = state.tokens.at[row, state.length - 1].set(root)
        text = DraftContext(tokens, state.length, state.counts, state.finish_reason == 0)
        if hasattr(memory, "pending"):
            memory = replace(memory, pending=jnp.broadcast_to(pending[number], root.shape))
        found = drafter.propose(draft, memory, text, noise, how, rule=rule)
        candidates, memory = jax.lax.optimization_barrier(found)
        return candidates.tokens[:, -1], memory

    root = state.tokens[row, state.length - 1]
    return jax.lax.fori_loop(0, ROUNDS, advance, (root, state.drafter))[0]


def _begun(
    method: Method, target: Model, params: Params, work: Workload, temperature: float
) -> tuple[DecodeState, tuple, dict[str, Any]]:
    """The state of the first batch after its prompts, all that a loop reads of it, and statics."""
    names = {"drafter": method.drafter, "rule": method.rule}
    most, room = budget(work.tokens, work.batches[0], target)
    state = start_decoding(
        params, method.draft, work.batches[0], most,
        target=method.reading(target), room=room, **names,
    )  # fmt: skip
    return state, (state, work.keys[0], work.sampling(temperature)), names


def _drafting(
    method: Method, target: Model, inputs: tuple, pending: Array, names: dict[str, Any]
) -> Callable[[], Any]:
    """The loop of drafting, run once."""
    vocabulary = target.config.vocab_size
    run = functools.partial(
        draft_rounds, method.draft, *inputs, pending, vocabulary=vocabulary, **names
    )
    jax.block_until_ready(run())
    return run


@functools.partial(jax.jit, static_argnames=("target", "drafter"))
def _passes(
    params: Params,
    draft: Params,
    state: DecodeState,
    pending: Array,
    *,
    target: Model,
    drafter: Any,
) -> Array:
    """`ROUNDS` times the forward passes of a round: `[B]`, a number that depends on all of them."""

    drafted, tree = _static_trees(drafter.tree)

    def advance(number: Array, token: Array) -> Array:
        if isinstance(drafter, SmallModelDrafter):
            memory = state.drafter
            token, block = _pending_pass(
                draft, memory.cache, memory.block, token, pending[number], model=drafter.model
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


def _static_trees(tree: Tree | DynamicTree) -> tuple[Tree, Tree]:
    """Static trees whose passes are as large: the draft's over the first, the target's over the
    second."""
    if isinstance(tree, Tree):
        return tree, tree
    return Tree.fork(tree.width, tree.depth), Tree.chain(tree.size - 1)


def _pending_pass(
    draft: Params, cache: Cache, block: Block, token: Array, pending: Array, *, model: Model
) -> tuple[Array, Block]:
    """The pass over a pending token, whose logits nobody needs."""

    def run() -> tuple[Array, Block]:
        positions = cache.length[:, None]
        output = model.forward(draft, token[:, None], positions, jnp.ones((1, 1), bool), cache)
        row = jax.lax.optimization_barrier(output.block)
        return token, jax.tree.map(lambda x, new: x.at[:, :, :1].set(new), block, row)

    return jax.lax.cond(pending, run, lambda: (token, block))


def _draft_passes(
    draft: Params, cache: Cache, block: Block, token: Array, *, model: Model, tree: Tree
) -> Array:
    """The draft's passes over the levels of a tree: `[B]` from the last one's logits."""
    for new, level in inner_levels(tree):
        nodes = jnp.broadcast_to(token[:, None], (len(token), len(new)))
        mask = jnp.pad(jnp.asarray(level.mask), ((0, 0), (1, 0)))
        token, block = _pass(draft, nodes, mask, cache, block, 1 + level.start, model=model)
    return token


def _head_passes(
    draft: HeadParams, memory: FeatureState, token: Array, *, drafter: FeatureDrafter, tree: Tree
) -> Array:
    """A head's passes over the tokens that wait, and over the levels below the root: `[B]`."""
    head, target = drafter.head, drafter.target

    def run(
        token: Array, features: Array, mask: Array, block: Block | None, start: int
    ) -> HeadOutput:
        nodes = jnp.broadcast_to(token[:, None], features.shape[:2])
        positions = jnp.broadcast_to(memory.cache.length[:, None], nodes.shape)
        inputs = head.embed(draft, nodes, target=target), features, positions, mask
        output = head.forward(draft.head, *inputs, memory.cache, block, start)
        return jax.lax.optimization_barrier(output)

    def next_token(hidden: Array) -> Array:
        logits = jax.lax.optimization_barrier(head.logits(draft, hidden, target=target))
        return (logits[:, 0, 0] > 0).astype(jnp.int32)

    waiting = jnp.tril(jnp.ones((tree.path_length, tree.path_length), bool))
    output = run(token, head.fuse(draft.head, memory.hidden_states), waiting, None, 0)
    token, rows = next_token(output.hidden[:, :1]), output.block.k[0].dtype
    block = empty_block(head.config, len(token), max(tree.rows - 1, 1), rows)
    for new, level in list(inner_levels(tree))[1:]:
        shape = (len(token), len(new), output.features.shape[-1])
        features = jnp.broadcast_to(output.features[:, :1], shape)
        output = run(token, features, jnp.asarray(level.mask[:, 1:]), block, level.start - 1)
        token, block = next_token(output.hidden), output.block
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
    """One forward pass with its logits: `[B]` tokens that depend on them, and the block."""
    positions = jnp.broadcast_to(cache.length[:, None], nodes.shape)
    output = model.forward(params, nodes, positions, mask, cache, block, start=start)
    logits = model.logits(params, output.hidden)
    logits, block = jax.lax.optimization_barrier((logits, output.block))
    return (logits[:, 0, 0] > 0).astype(jnp.int32), block
