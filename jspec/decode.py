"""Decoding: plain and speculative, each one compiled program without a host round trip."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.cache import Block, Cache, commit
from jspec.candidates import Rule, Verdict, shape
from jspec.draft.protocol import Drafter, DrafterState, Text
from jspec.models.prefill import prefill_with_features
from jspec.models.protocol import Model, Output, Params
from jspec.penalties import Ahead, History, recall, remember
from jspec.ragged import CHUNK, Prompts
from jspec.sampling import Sampling, noise, pick, warp
from jspec.sharding import constrain
from jspec.verify import coupled

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
      rounds: `[B]`; kept: `[B, A]` rounds that kept a node at each depth, the root's included.
      drafted: `[B]` valid candidates, roots not counted.
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


@struct.dataclass
class Generation:
    """What was written.

    Attributes:
      tokens: `[B, T]`, `length` `[B]` of them valid.
      guessed: `[B, T]` bool, whether the drafter had guessed a token.
      reason: `[B]`, `STOPPED` by an end of text (the last valid token) or `EXHAUSTED` its budget.
      rounds: `[B]` forward passes of the target.
      kept: `[B, A]` rounds that kept a node at each depth; drafted: `[B]` nodes guessed.
    """

    tokens: Array
    length: Array
    guessed: Array
    reason: Array
    rounds: Array
    kept: Array
    drafted: Array

    @property
    def tokens_per_round(self) -> float:
        """Emitted tokens per forward pass of the target, the bonus token included."""
        return float(self.length.sum() / self.rounds.sum())


@functools.partial(jax.jit, static_argnames=("target", "drafter", "rule", "tokens"))
def generate(
    params: Params,
    draft: Params,
    prompts: Prompts,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule = coupled,
    tokens: int,
) -> Generation:
    """Writes up to `tokens` tokens a row, a round of guesses at a time.

    Under the coupled rule the text is that of `autoregress` with the same keys, whatever the draft.

    Args:
      params, draft: the target's parameters and the drafter's.
      keys: `[B]` typed keys, one a sequence.
      rule: which candidates are kept: coupled, or another module of `jspec.verify`, under which
        the text follows the same law but is another.
    """
    check_rows(prompts, keys, sampling)
    state = begin(params, draft, prompts, target=target, drafter=drafter, rule=rule, tokens=tokens)

    def advance(state: State) -> State:
        return speculate(
            params, draft, state, keys, sampling, target=target, drafter=drafter, rule=rule
        )

    return written(jax.lax.while_loop(unfinished, advance, state), prompts, tokens)


@functools.partial(jax.jit, static_argnames=("target", "tokens"))
def autoregress(
    params: Params,
    prompts: Prompts,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    tokens: int,
) -> Generation:
    """Plain decoding, one token a forward pass: what `generate` is held against."""
    check_rows(prompts, keys, sampling)
    state = begin_plain(params, prompts, target=target, tokens=tokens)

    def advance(state: State) -> State:
        return extend(params, state, keys, sampling, target=target)

    return written(jax.lax.while_loop(unfinished, advance, state), prompts, tokens)


def check_rows(prompts: Prompts, keys: Array, sampling: Sampling) -> None:
    """Raises `ValueError` if not every prompt has a key and a row of `sampling` of its own."""
    count = len(prompts.length)
    for name, given in (("keys", keys), ("sampling", sampling)):
        for array in jax.tree.leaves(given):
            if array.shape[:1] != (count,):
                rows = array.shape[0] if array.shape else "no"
                raise ValueError(f"{name} of {rows} rows for {count} prompts: give one for each")


@functools.partial(jax.jit, static_argnames=("target", "drafter", "rule", "tokens"))
def begin(
    params: Params,
    draft: Params,
    prompts: Prompts,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule = coupled,
    tokens: int,
) -> State:
    """The state before the first round: all of a prompt but its last token, the root, committed."""
    tree = drafter.tree
    if tree.depth == 0 or tree.size > target.config.context:
        raise ValueError(
            f"tree of {tree.size} nodes: a tree has at least one candidate and no more nodes than "
            f"the target's context of {target.config.context}"
        )
    rule.admit(tree, drafter.draws)
    state, features = _commit_prompts(
        params,
        prompts,
        target=target,
        tokens=tokens,
        path_length=tree.path_length,
        read=drafter.read,
    )
    memory = drafter.start(
        draft,
        prompts.tokens,
        prompts.length,
        features,
        capacity=state.tokens.shape[1],
        chunk=CHUNK,
    )
    return state.replace(drafter=memory)


@functools.partial(jax.jit, static_argnames=("target", "tokens"))
def begin_plain(params: Params, prompts: Prompts, *, target: Model, tokens: int) -> State:
    """The same, for plain decoding."""
    sizes = {"target": target, "tokens": tokens, "path_length": 1}
    return _commit_prompts(params, prompts, **sizes, read=lambda output: None)[0]


def extend(
    params: Params, state: State, keys: Array, sampling: Sampling, *, target: Model
) -> State:
    """One token of plain decoding."""
    position = state.length[:, None]
    root = jnp.take_along_axis(state.tokens, position - 1, axis=1)
    output = target.forward(params, root, position - 1, jnp.ones((1, 1), bool), state.cache)
    logits = warp(target.logits(params, output.hidden), sampling, state.history)
    token = pick(logits, noise(keys, position, logits.shape[-1], sampling))
    alone = jnp.zeros_like(position)
    verdict = Verdict(path=alone, count=alone[:, 0] + 1, next=token[:, 0])
    return _emit(state, root, output.block, verdict, sampling.stops)[0]


def speculate(
    params: Params,
    draft: Params,
    state: State,
    keys: Array,
    sampling: Sampling,
    *,
    target: Model,
    drafter: Drafter,
    rule: Rule = coupled,
) -> State:
    """One round: guess a tree, run the target on it once, keep the path that the rule picks."""
    tree = drafter.tree
    dice = rule.roll(keys, state.length, sampling, tree=tree, vocabulary=target.config.vocabulary)
    text = Text(state.tokens, state.length, state.history)
    candidates, memory = drafter.propose(draft, state.drafter, text, dice, sampling, rule=rule)
    depth, mask = shape(candidates, tree)
    positions = (state.length - 1)[:, None] + depth
    output = target.forward(params, candidates.tokens, positions, mask, state.cache)
    ahead = Ahead(candidates.tokens[:, 1:], mask[..., 1:])
    logits = warp(target.logits(params, output.hidden), sampling, state.history, ahead)
    verdict = rule.verify(dice, candidates, logits, sampling, tree=tree)
    running = state.done == 0
    state, count = _emit(state, candidates.tokens, output.block, verdict, sampling.stops)
    guesses = jnp.where(running, candidates.valid[:, 1:].sum(axis=-1), 0)
    return state.replace(
        drafter=drafter.commit(memory, verdict.path, count, output), drafted=state.drafted + guesses
    )


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
    )
    # On every device, so that each process of a launch can read all of it.
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), generation)


def _commit_prompts(
    params: Params,
    prompts: Prompts,
    *,
    target: Model,
    tokens: int,
    path_length: int,
    read: Callable[[Output], Array | None],
) -> tuple[State, Array | None]:
    """The state, and what is read of the target's passes."""
    if not 1 <= tokens <= target.config.context:
        raise ValueError(
            f"tokens={tokens}: must lie in 1..{target.config.context}, the target's context; give "
            "what `prompts` was given"
        )
    if not jax.tree.leaves(params):
        raise ValueError("params hold no array: give the target's parameters")
    batch, width = prompts.tokens.shape
    capacity = width + tokens + path_length
    cache, seen = prefill_with_features(
        params,
        prompts.tokens,
        prompts.length - 1,
        model=target,
        capacity=capacity,
        chunk=CHUNK,
        read=read,
    )
    none = jnp.zeros((batch,), jnp.int32)
    length = jnp.asarray(prompts.length)
    state = State(
        tokens=jnp.pad(prompts.tokens, ((0, 0), (0, capacity - width))),
        length=length,
        history=recall(prompts.tokens, length, length, vocabulary=target.config.vocabulary),
        budget=prompts.length + tokens,
        guessed=jnp.zeros((batch, capacity), bool),
        done=none,
        cache=cache,
        drafter=(),
        rounds=none,
        kept=jnp.zeros((batch, path_length), jnp.int32),
        drafted=none,
    )
    return state, seen


def _emit(
    state: State, nodes: Array, block: Block, verdict: Verdict, stops: Array
) -> tuple[State, Array]:
    """Writes a verdict's tokens up to an end of text or the budget, and commits their rows.

    Returns the new state and `[B]` how many tokens each row wrote; a row that is done writes none.
    The token written last is the new root, so as many rows are committed as tokens are written.

    Args:
      nodes: `[B, N]` the candidates' tokens.
      stops: `[B, E]` tokens that end a text.
    """
    running = state.done == 0
    order = jnp.arange(verdict.path.shape[1])[None]
    below = jnp.roll(jnp.take_along_axis(nodes, verdict.path, axis=1), -1, axis=1)
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
        kept=state.kept + (order < count[:, None]),
    )
    return state, count
