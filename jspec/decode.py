"""Decoding: plain and speculative, each one compiled program without a host round trip.

The loop's carry, what it returns, the two ways to generate, and the round that they are made of:
draft a tree, run the target on it once, accept a path, commit its rows.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec import verify
from jspec.core.cache import Block, Cache, commit
from jspec.core.candidates import Candidates, Rule, Verification, num_drafted_levels, tree_shape
from jspec.core.penalties import TokenCounts, TreeContext, init_counts, update_counts
from jspec.core.prompts import PREFILL_CHUNK, PaddedPrompts
from jspec.core.sampling import (
    NO_TOKEN,
    SamplingParams,
    are_finite,
    pick_token,
    process_logits,
    sample_noise,
)
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.protocol import DraftContext, Drafter, DrafterState
from jspec.models.prefill import prefill_with_hidden_states
from jspec.models.protocol import Model, Output, Params
from jspec.parallel.sharding import constrain
from jspec.verify.target_pass import run_smallest_bucket, verify_finite

# Why a row ended; 0 while it is running.
RUNNING, STOP, LENGTH, NONFINITE = 0, 1, 2, 3
FINISH_REASONS = {STOP: "stop", LENGTH: "length", NONFINITE: "nonfinite"}
# What is said of a row that ended so.
WHY_NONFINITE = (
    "the target's logits are not finite (NaN or infinite), so the text ends there: float16 "
    "overflows where bfloat16 and float32 do not, so try another dtype"
)
# One compiled program serves every `max_new_tokens` up to a multiple of this.
NEW_TOKENS_BUCKET = 64


@struct.dataclass
class DecodeState:
    """The loop's carry.

    >>> prompts = pad_prompts([[5, 3, 9]], context_length=512, max_new_tokens=16)
    >>> state = start_plain(target.params, prompts, np.array([16]), target=target.model, room=64)
    >>> state.length.tolist(), state.max_length.tolist()
    ([3], [19])

    Attributes:
      tokens: `[B, M]` prompts and generated tokens, `length` `[B]` of them valid; the last valid
        one is the root, which is in no cache yet.
      counts: how often each token occurs, the root included.
      max_length: `[B]` the length at which a row ends.
      is_draft_token: `[B, M]` bool, whether a token was a candidate of the drafter.
      finish_reason: `[B]`, `RUNNING`, or why the row ended.
      cache, drafter: committed rows of the target, and whatever the drafter keeps.
      num_rounds, accepted_by_rank, num_draft_tokens, num_draft_levels, wasted_draft_levels: as in
        `GenerationOutput`.
    """

    tokens: Array
    length: Array
    counts: TokenCounts
    max_length: Array
    is_draft_token: Array
    finish_reason: Array
    cache: Cache
    drafter: DrafterState
    num_rounds: Array
    accepted_by_rank: Array
    num_draft_tokens: Array
    num_draft_levels: Array
    wasted_draft_levels: Array


@struct.dataclass
class GenerationOutput:
    """The generated tokens, and what their rounds did.

    >>> output = engine.generate("import os\\n", max_new_tokens=16).output
    >>> output.tokens.shape, output.length.tolist()
    ((1, 64), [16])

    Attributes:
      tokens: `[B, T]`, `length` `[B]` of them valid and the rest 0; T is `max_new_tokens` rounded
        up to a bucket.
      is_draft_token: `[B, T]` bool, whether a token was a draft token that the target accepted.
      finish_reason: `[B]`, `STOP` for a stop token (the last valid one), `LENGTH` for the most new
        tokens, `NONFINITE` where the target's logits for the next one are not finite.
      num_rounds: `[B]` forward passes of the target.
      accepted_by_rank: `[B, A, W]` rounds that accepted, at each position after the root, the child
        of each rank; the root's first, which counts the rounds that emitted something. Where a
        drafter has levels that are not its draft's there are as many fewer positions.
      num_draft_tokens: `[B]` nodes drafted; num_draft_levels: `[B]` levels of them, all rounds
        added up; wasted_draft_levels: `[B]` levels drafted for other rows after this one stopped.
    """

    tokens: Array
    length: Array
    is_draft_token: Array
    finish_reason: Array
    num_rounds: Array
    accepted_by_rank: Array
    num_draft_tokens: Array
    num_draft_levels: Array
    wasted_draft_levels: Array

    @property
    def accepted_by_position(self) -> Array:
        """`[B, A]` rounds that accepted a node at each position, the root's first."""
        return self.accepted_by_rank.sum(axis=-1)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per forward pass of the target, the bonus token included."""
        return float(self.length.sum() / self.num_rounds.sum())


def generate(
    params: Params,
    draft_params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule | str = "coupled",
    max_new_tokens: int | Sequence[int] | np.ndarray,
) -> GenerationOutput:
    """Speculative decoding of up to `max_new_tokens` a row, one round at a time.

    Under the coupled rule the text is that of `autoregress` with the same keys, whatever the draft.

    Args:
      keys: `[B]` typed keys, one a sequence.
      rule: which candidates are accepted: a name or an object of `jspec.verify`. Under any rule but
        the coupled one and those that share its verification, the text has the same distribution
        and is another one.
      max_new_tokens: one for all rows, or one for each; another value in the same bucket of
        `NEW_TOKENS_BUCKET` compiles nothing.

    Raises `ValueError` for a rule that is not exact for the drafter's candidates.
    """
    check_rows(prompts, keys, sampling)
    most, room = budget(max_new_tokens, prompts, target)
    models = {"target": target, "drafter": drafter, "rule": verify.get(rule)}
    return generate_program(
        params, draft_params, prompts, keys, sampling, most, **models, room=room
    )


def autoregress(
    params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    max_new_tokens: int | Sequence[int] | np.ndarray,
) -> GenerationOutput:
    """Plain decoding, one token a forward pass: what `generate` is compared with."""
    check_rows(prompts, keys, sampling)
    most, room = budget(max_new_tokens, prompts, target)
    return autoregress_program(params, prompts, keys, sampling, most, target=target, room=room)


def budget(
    max_new_tokens: int | Sequence[int] | np.ndarray, prompts: PaddedPrompts, target: Model
) -> tuple[np.ndarray, int]:
    """`max_new_tokens` of every row `[B]`, and the static room for them: the bucket's size."""
    given, count = np.asarray(max_new_tokens), len(prompts.length)
    if given.ndim and given.shape != (count,):
        raise ValueError(f"max_new_tokens={max_new_tokens}: one number, or {count}, one a prompt")
    most = target.config.max_position_embeddings
    whole = np.issubdtype(given.dtype, np.integer)
    if not whole or not 1 <= given.min() <= given.max() <= most:
        raise ValueError(
            f"max_new_tokens={given.tolist()}: must be in 1..{most}, the target's context"
        )
    return np.broadcast_to(given, (count,)).astype(np.int32), room_for(int(given.max()))


def room_for(max_new_tokens: int) -> int:
    """`max_new_tokens` rounded up to a multiple of `NEW_TOKENS_BUCKET`."""
    return -(-max_new_tokens // NEW_TOKENS_BUCKET) * NEW_TOKENS_BUCKET


def check_rows(prompts: PaddedPrompts, keys: Array, sampling: SamplingParams) -> None:
    """Raises `ValueError` if not every prompt has a key and a row of `sampling` of its own."""
    count = len(prompts.length)
    for name, given in (("keys", keys), ("sampling", sampling)):
        for array in jax.tree.leaves(given):
            if array.shape[:1] != (count,):
                rows = array.shape[0] if array.shape else "no"
                raise ValueError(f"{name} of {rows} rows for {count} prompts: give one for each")


@functools.partial(jax.jit, static_argnames=("target", "drafter", "rule", "room"))
def generate_program(
    params: Params,
    draft_params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    max_new_tokens: Array,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule,
    room: int,
) -> GenerationOutput:
    """The jitted program of `generate`, for those who compile or lower it themselves.

    Args:
      max_new_tokens: `[B]`, at most `room`.
    """
    models = {"target": target, "drafter": drafter, "rule": rule}
    state = start_decoding(params, draft_params, prompts, max_new_tokens, **models, room=room)

    def advance(state: DecodeState) -> DecodeState:
        return speculate(params, draft_params, state, keys, sampling, **models)

    return collect_output(jax.lax.while_loop(unfinished, advance, state), prompts, room)


@functools.partial(jax.jit, static_argnames=("target", "room"))
def autoregress_program(
    params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    sampling: SamplingParams,
    max_new_tokens: Array,
    *,
    target: Model,
    room: int,
) -> GenerationOutput:
    """The jitted program of `autoregress`."""
    state = start_plain(params, prompts, max_new_tokens, target=target, room=room)

    def advance(state: DecodeState) -> DecodeState:
        return decode_one_token(params, state, keys, sampling, target=target)

    return collect_output(jax.lax.while_loop(unfinished, advance, state), prompts, room)


@functools.partial(jax.jit, static_argnames=("target", "drafter", "rule", "room"))
def start_decoding(
    params: Params,
    draft_params: Params,
    prompts: PaddedPrompts,
    max_new_tokens: Array,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule,
    room: int,
) -> DecodeState:
    """The state before the first round: all of a prompt but its last token, the root, is committed.

    Args:
      max_new_tokens: `[B]`, at most `room`, the static number of tokens that the state can take.
    """
    tree = drafter.tree
    if tree.depth == 0 or tree.size > target.config.max_position_embeddings:
        raise ValueError(
            f"tree of {tree.size} nodes: a tree has at least one candidate and no more nodes than "
            f"the target's context of {target.config.max_position_embeddings}"
        )
    rule.check_compatible(tree, drafter.source)
    state, features = _prefill_state(
        params,
        prompts,
        max_new_tokens,
        target=target,
        room=room,
        path_length=tree.path_length,
        positions=tree.path_length - drafter.undrafted_levels,
        ranks=tree.width,
        read=drafter.read_hidden_states,
    )
    drafter_state = drafter.start(
        draft_params,
        prompts.tokens,
        prompts.length,
        features,
        capacity=state.tokens.shape[1],
        chunk=PREFILL_CHUNK,
    )
    return replace(state, drafter=drafter_state)


@functools.partial(jax.jit, static_argnames=("target", "room"))
def start_plain(
    params: Params, prompts: PaddedPrompts, max_new_tokens: Array, *, target: Model, room: int
) -> DecodeState:
    """The same, for plain decoding."""
    sizes = {"room": room, "path_length": 1, "positions": 1, "ranks": 1}
    return _prefill_state(
        params, prompts, max_new_tokens, target=target, **sizes, read=lambda _: None
    )[0]


def speculate(
    params: Params,
    draft_params: Params,
    state: DecodeState,
    keys: Array,
    sampling: SamplingParams,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule,
) -> DecodeState:
    """One round: draft a tree, run the target on it once, accept a path by the rule, commit it."""
    tree = drafter.tree
    noise = rule.sample_noise(
        keys, state.length, sampling, tree=tree, vocab_size=target.config.vocab_size
    )
    context = DraftContext(state.tokens, state.length, state.counts, state.finish_reason == RUNNING)
    candidates, drafter_state = drafter.propose(
        draft_params, state.drafter, context, noise, sampling, rule=rule
    )

    def verify_tree(
        candidates: Candidates, tree: Tree | DynamicTree
    ) -> tuple[Verification, Output]:
        depth, mask = tree_shape(candidates, tree)
        positions = (state.length - 1)[:, None] + depth
        output = target.forward(params, candidates.tokens, positions, mask, state.cache)
        above = TreeContext(candidates.tokens[:, 1:], mask[..., 1:])
        raw = target.logits(params, output.hidden)
        logits = process_logits(raw, sampling, state.counts, above)
        return verify_finite(rule, noise, candidates, raw, logits, sampling, tree=tree), output

    verification, output = run_smallest_bucket(verify_tree, candidates, tree)
    state = count_draft_tokens(state, candidates, tree)
    state, num_emitted = emit_tokens(
        state, candidates, output.block, verification, sampling.stop_token_ids
    )
    path = verification.accepted_path
    return replace(state, drafter=drafter.commit(drafter_state, path, num_emitted, output))


def decode_one_token(
    params: Params, state: DecodeState, keys: Array, sampling: SamplingParams, *, target: Model
) -> DecodeState:
    """One token of plain decoding."""
    position = state.length[:, None]
    root = jnp.take_along_axis(state.tokens, position - 1, axis=1)
    output = target.forward(params, root, position - 1, jnp.ones((1, 1), bool), state.cache)
    raw = target.logits(params, output.hidden)
    logits = process_logits(raw, sampling, state.counts)
    token = pick_token(logits, sample_noise(keys, position, logits.shape[-1], sampling))
    token = jnp.where(are_finite(raw, logits), token, NO_TOKEN)
    alone = jnp.zeros_like(position)
    verification = Verification(alone, num_accepted=alone[:, 0] + 1, bonus_token=token[:, 0])
    candidates = Candidates(root, alone - 1, alone == 0)
    return emit_tokens(state, candidates, output.block, verification, sampling.stop_token_ids)[0]


def unfinished(state: DecodeState) -> Array:
    """Whether any row is still running."""
    return jnp.any(state.finish_reason == RUNNING)


@functools.partial(jax.jit, static_argnames=("room",))
def collect_output(state: DecodeState, prompts: PaddedPrompts, room: int) -> GenerationOutput:
    """What a state holds after its prompts, finished or not."""
    length = state.length - prompts.length
    valid = jnp.arange(room, dtype=jnp.int32)[None] < length[:, None]

    def take(rows: Array) -> Array:
        slices = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, room))
        return jnp.where(valid, slices(rows, prompts.length), jnp.zeros((), rows.dtype))

    output = GenerationOutput(
        tokens=take(state.tokens),
        length=length,
        is_draft_token=take(state.is_draft_token),
        finish_reason=state.finish_reason,
        num_rounds=state.num_rounds,
        accepted_by_rank=state.accepted_by_rank,
        num_draft_tokens=state.num_draft_tokens,
        num_draft_levels=state.num_draft_levels,
        wasted_draft_levels=state.wasted_draft_levels,
    )
    # On every device, so that each process of a launch can read all of it.
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), output)


def count_draft_tokens(
    state: DecodeState, candidates: Candidates, tree: Tree | DynamicTree
) -> DecodeState:
    """Adds up what was drafted for the rows that are running."""
    running = state.finish_reason == RUNNING
    undrafted = tree.path_length - state.accepted_by_rank.shape[1]
    nodes = candidates.valid & (tree_shape(candidates, tree)[0] > undrafted)
    nodes = nodes.sum(axis=-1, dtype=jnp.int32)
    levels = jnp.maximum(num_drafted_levels(candidates, tree) - undrafted, 0)
    most = candidates.num_levels
    most = levels if most is None else jnp.maximum(most - undrafted, 0)
    return replace(
        state,
        num_draft_tokens=state.num_draft_tokens + jnp.where(running, nodes, 0),
        num_draft_levels=state.num_draft_levels + jnp.where(running, levels, 0),
        wasted_draft_levels=state.wasted_draft_levels + jnp.where(running, most - levels, 0),
    )


def emit_tokens(
    state: DecodeState,
    candidates: Candidates,
    block: Block,
    verification: Verification,
    stop_token_ids: Array,
) -> tuple[DecodeState, Array]:
    """Writes the accepted tokens up to a stop token, the last new one, or where there is none, and
    commits their rows.

    Returns the new state and `[B]` how many tokens each row emitted; a finished row emits none. The
    token emitted last is the new root, so as many rows are committed as tokens are emitted.

    Args:
      stop_token_ids: `[B, E]` tokens that end a text.
    """
    path, num_accepted = verification.accepted_path, verification.num_accepted
    running = state.finish_reason == RUNNING
    order = jnp.arange(path.shape[1], dtype=jnp.int32)[None]
    below = jnp.roll(jnp.take_along_axis(candidates.tokens, path, axis=1), -1, axis=1)
    is_draft_token = order < num_accepted[:, None] - 1
    tokens = jnp.where(is_draft_token, below, verification.bonus_token[:, None])
    finite = verification.bonus_token != NO_TOKEN
    count = jnp.where(finite, num_accepted, jnp.maximum(num_accepted - 1, 0))
    count = jnp.where(running, jnp.minimum(count, state.max_length - state.length), 0)
    stops = (tokens[..., None] == stop_token_ids[:, None]).any(axis=-1) & (order < count[:, None])
    stopped = stops.any(axis=-1)
    count = jnp.where(stopped, jnp.argmax(stops, axis=-1).astype(jnp.int32) + 1, count)
    length = state.length + count
    reason = jnp.where(finite, RUNNING, NONFINITE)
    reason = jnp.where(stopped, STOP, jnp.where(length >= state.max_length, LENGTH, reason))
    put = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))
    accepted = _count_by_rank(candidates, path, count, state.accepted_by_rank)
    state = replace(
        state,
        tokens=put(state.tokens, tokens, state.length, 0),
        is_draft_token=put(state.is_draft_token, is_draft_token, state.length, 0),
        length=length,
        counts=update_counts(state.counts, tokens, count),
        finish_reason=jnp.where(running, reason, state.finish_reason),
        cache=commit(state.cache, block, path, count),
        num_rounds=state.num_rounds + running.astype(jnp.int32),
        accepted_by_rank=state.accepted_by_rank + accepted,
    )
    return state, count


def _count_by_rank(candidates: Candidates, path: Array, count: Array, like: Array) -> Array:
    """`[B, A, W]` 1 for each of the first `count` `[B]` nodes of a path, by its rank; where `like`
    is shorter than the path, from as much further down."""
    path = path[:, path.shape[1] - like.shape[1] :]
    accepted = jnp.arange(path.shape[1], dtype=jnp.int32)[None] < count[:, None]
    parent = jnp.take_along_axis(candidates.parent, path, axis=1)
    nodes = jnp.arange(candidates.parent.shape[1], dtype=jnp.int32)
    older = (candidates.parent[:, None] == parent[..., None]) & (
        nodes[None, None] < path[..., None]
    )
    rank = older.sum(axis=-1, dtype=jnp.int32)
    counted = accepted.astype(like.dtype)[..., None]
    return jax.nn.one_hot(rank, like.shape[-1], dtype=like.dtype) * counted


def _prefill_state(
    params: Params,
    prompts: PaddedPrompts,
    max_new_tokens: Array,
    *,
    target: Model,
    room: int,
    path_length: int,
    positions: int,
    ranks: int,
    read: Callable[[Output], Any],
) -> tuple[DecodeState, Any]:
    """The state, and what the drafter reads of the target's passes over the prompts."""
    if not jax.tree.leaves(params):
        raise ValueError("params hold no array: give the target's parameters")
    batch, width = prompts.tokens.shape
    capacity = width + room + path_length
    cache, features = prefill_with_hidden_states(
        params,
        prompts.tokens,
        prompts.length - 1,
        model=target,
        capacity=capacity,
        chunk=PREFILL_CHUNK,
        read=read,
    )
    none = jnp.zeros((batch,), jnp.int32)
    length = jnp.asarray(prompts.length)
    vocab_size = target.config.vocab_size
    state = DecodeState(
        tokens=jnp.pad(prompts.tokens, ((0, 0), (0, capacity - width))),
        length=length,
        counts=init_counts(prompts.tokens, length, length, vocab_size=vocab_size),
        max_length=length + max_new_tokens,
        is_draft_token=jnp.zeros((batch, capacity), bool),
        finish_reason=none,
        cache=cache,
        drafter=(),
        num_rounds=none,
        accepted_by_rank=jnp.zeros((batch, positions, ranks), jnp.int32),
        num_draft_tokens=none,
        num_draft_levels=none,
        wasted_draft_levels=none,
    )
    return state, features
