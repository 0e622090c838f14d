"""What is written, and what is counted of the rounds that wrote it.

The target's pass over no more of a tree than was drafted.

Nodes stand breadth-first, so a tree cut after a level is a prefix of every table, its mask the
upper left corner of the whole one (the sliced mask of arXiv 2409.10644, made once).

Decoding: plain and speculative, each one compiled program without a host round trip.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.cache import Block, Cache, commit
from jspec.core.candidates import Candidates, Rule, Verdict, drafted, shape
from jspec.core.penalties import Ahead, History, recall, remember
from jspec.core.prompts import CHUNK, Prompts
from jspec.core.sampling import Sampling, noise, pick, warp
from jspec.core.tree import Growth, Tree
from jspec.draft.protocol import Drafter, DrafterState, Text
from jspec.models.prefill import prefill_with_features
from jspec.models.protocol import Model, Output, Params
from jspec.parallel.sharding import constrain
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


Check = Callable[[Candidates, Tree | Growth], tuple[Verdict, Output]]


def over_smallest_slice(
    check: Check, candidates: Candidates, tree: Tree | Growth
) -> tuple[Verdict, Output]:
    """What `check` finds on the smallest slice that holds all that was drafted.

    Every slice is a branch of one compiled program, filled up to the shapes of the whole tree; what
    stands in the rows that were not run means nothing.
    """
    if candidates.levels is None:
        return check(candidates, tree)
    whole = [tree.cut(depth) for depth in candidates.slices]

    def branch(cut: Tree) -> Callable[[], tuple[Verdict, Output]]:
        def run() -> tuple[Verdict, Output]:
            verdict, output = check(candidates.cut(cut), cut)
            path = _fill(verdict.path, 1, tree.path_length, mode="edge")
            return verdict.replace(path=path), _filled(output, tree.size)

        return run

    depths = jnp.asarray(candidates.slices)
    return jax.lax.switch(jnp.searchsorted(depths, candidates.levels), [branch(c) for c in whole])


def usual_slices(depth: int) -> tuple[int, ...]:
    """Depths at which a tree may be cut where nothing is said: every doubling, and all of it. Each
    is one more program of the target to compile."""
    doublings = [1 << power for power in range(depth.bit_length())]
    return tuple(sorted({*(cut for cut in doublings if cut < depth), depth}))


def check_slices(slices: tuple[int, ...], tree: Tree) -> None:
    """Raises `ValueError` unless they rise to the depth of the tree."""
    if list(slices) != sorted(set(slices)) or not slices or slices[0] < 1:
        raise ValueError(f"slices={slices}: give depths from 1, each once, the smallest first")
    if slices[-1] != tree.depth:
        raise ValueError(
            f"slices={slices}: the tree is {tree.depth} deep, and the largest slice must hold all "
            f"of it: end with {tree.depth}"
        )


def _filled(output: Output, nodes: int) -> Output:
    return output.replace(
        hidden=_fill(output.hidden, 1, nodes),
        features=jax.tree.map(lambda x: _fill(x, 1, nodes), output.features),
        block=jax.tree.map(lambda x: _fill(x, 2, nodes), output.block),
    )


def _fill(x: Array, axis: int, size: int, mode: str = "constant") -> Array:
    ends = [(0, 0)] * x.ndim
    ends[axis] = 0, size - x.shape[axis]
    return jnp.pad(x, ends, mode=mode)


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
