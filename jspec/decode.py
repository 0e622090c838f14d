"""Decoding: plain and speculative, each one compiled program without a host round trip."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jspec.candidates import Candidates, Rule, Verdict, shape
from jspec.draft.protocol import Drafter, Text
from jspec.growth import Growth
from jspec.models.prefill import prefill_with_features
from jspec.models.protocol import Model, Output, Params
from jspec.penalties import Ahead, recall
from jspec.ragged import CHUNK, Prompts
from jspec.sampling import Sampling, noise, pick, warp
from jspec.slices import over_smallest_slice
from jspec.state import Generation, State, count_guesses, emit, unfinished, written
from jspec.tree import Tree
from jspec.verify import coupled


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
        given=drafter.draws.given,
        ranks=tree.width,
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
    sizes = {"target": target, "tokens": tokens, "path_length": 1, "given": 0, "ranks": 1}
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
    candidates = Candidates(root, alone - 1, alone == 0)
    return emit(state, candidates, output.block, verdict, sampling.stops)[0]


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
    running = state.done == 0
    text = Text(state.tokens, state.length, state.history, running)
    candidates, memory = drafter.propose(draft, state.drafter, text, dice, sampling, rule=rule)

    def check(candidates: Candidates, tree: Tree | Growth) -> tuple[Verdict, Output]:
        depth, mask = shape(candidates, tree)
        positions = (state.length - 1)[:, None] + depth
        output = target.forward(params, candidates.tokens, positions, mask, state.cache)
        ahead = Ahead(candidates.tokens[:, 1:], mask[..., 1:])
        logits = warp(target.logits(params, output.hidden), sampling, state.history, ahead)
        return rule.verify(dice, candidates, logits, sampling, tree=tree), output

    verdict, output = over_smallest_slice(check, candidates, tree)
    state = count_guesses(state, candidates, tree)
    state, count = emit(state, candidates, output.block, verdict, sampling.stops)
    return state.replace(drafter=drafter.commit(memory, verdict.path, count, output))


def _commit_prompts(
    params: Params,
    prompts: Prompts,
    *,
    target: Model,
    tokens: int,
    path_length: int,
    given: int,
    ranks: int,
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
        kept=jnp.zeros((batch, path_length - given, ranks), jnp.int32),
        drafted=none,
        levels=none,
        waited=none,
    )
    return state, seen
