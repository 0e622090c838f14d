"""What is run: methods, compiled once each, on the same prompts, keys and weights."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jspec.bench.drafts import Draft
from jspec.bench.stops import admit, stopping
from jspec.bench.timing import Run
from jspec.core.candidates import Draws, Rule
from jspec.core.prompts import Prompts, prompts
from jspec.core.sampling import Sampling, sampling
from jspec.core.tree_text import read_tree
from jspec.decode import Generation, autoregress, generate
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.models.protocol import Model, Params
from jspec.verify import by_confidence, coupled, one_sample

PLAIN = "plain"
# The rules under which text is plain decoding's, and not only of its law.
PLAIN_TEXT = (coupled, by_confidence, one_sample)


def as_it_is(target: Model) -> Model:
    """For drafters that read nothing of a target but its tokens."""
    return target


@dataclass(frozen=True, eq=False)
class Method:
    """A way to decode: plain where `drafter` is None. `reading` makes of a target the one to run,
    which shows what the drafter reads of it."""

    name: str
    drafter: Drafter | None = None
    draft: Params = ()
    rule: Rule = coupled
    reading: Callable[[Model], Model] = as_it_is

    @property
    def lossy(self) -> bool:
        """Whether it may write what plain decoding would not."""
        return self.drafter is not None and self.drafter.draws is Draws.TARGET


@dataclass(frozen=True, eq=False)
class Workload:
    """What all methods do: `batches` of prompts, each with its `keys` `[B]`, to go on from."""

    batches: tuple[Prompts, ...]
    keys: tuple[jax.Array, ...]
    tokens: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.batches[0].length)

    def together(self) -> tuple[Prompts, jax.Array]:
        """All prompts as one batch, and their keys."""
        batches = zip(self.batches, self.keys, strict=True)
        return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)

    def sampling(self, temperature: float) -> Sampling:
        """The same for every row."""
        return sampling(self.rows, temperature=temperature)


def workload(
    rows: Sequence[Sequence[int]], *, batch: int, tokens: int, context: int, seed: int
) -> Workload:
    """Prompts in batches of `batch` rows, all of one width, so that one program serves them."""
    if batch < 1 or len(rows) % batch:
        raise ValueError(f"batch={batch}: it must divide the number of prompts, {len(rows)}")
    keys = jax.random.split(jax.random.key(seed), len(rows))
    starts = range(0, len(rows), batch)
    return Workload(
        batches=tuple(
            prompts(rows[start : start + batch], context=context, tokens=tokens) for start in starts
        ),
        keys=tuple(keys[start : start + batch] for start in starts),
        tokens=tokens,
    )


def drafted(
    name: str,
    draft: Draft,
    tree: str,
    context: int,
    rule: Rule = coupled,
    stop: str | None = None,
) -> Method:
    """Speculation by a draft over a tree; it and what stops drafting early are given as text."""
    drafter, params = stopping(draft, draft.drafter(read_tree(tree, context)), stop)
    return Method(name, drafter, params, rule, draft.reading)


def lookup(name: str, tree: str, context: int, rule: Rule = coupled) -> Method:
    """Speculation by prompt look-up."""
    return Method(name, LookupDrafter(read_tree(tree, context)), rule=rule)


def admitted(methods: Sequence[Method]) -> list[Method]:
    """Those whose rule is exact for what they guess; raises what the last one lacks if none is."""
    kept, refusal = [], None
    for method in methods:
        try:
            admit(method.rule, method.drafter)
        except ValueError as error:
            refusal = error
        else:
            kept.append(method)
    if methods and not kept:
        raise refusal
    return kept


class Program:
    """A method, compiled for a workload; a `Runner`."""

    def __init__(self, method: Method, target: Model, params: Params, work: Workload) -> None:
        self.name, self.method, self.params, self.work = method.name, method, params, work
        started = time.perf_counter()
        if method.drafter is None:
            lowered = autoregress.lower(*self._arguments(0, 0.0), target=target, tokens=work.tokens)
        else:
            lowered = generate.lower(
                *self._arguments(0, 0.0),
                target=method.reading(target),
                drafter=method.drafter,
                rule=method.rule,
                tokens=work.tokens,
            )
        self._compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started

    def with_draft(self, name: str, draft: Params) -> "Program":
        """The same program for another draft of the same shape."""
        other = copy.copy(self)
        other.name, other.method = name, replace(self.method, name=name, draft=draft)
        return other

    def __call__(self, batch: int, temperature: float) -> Run:
        arguments = self._arguments(batch, temperature)
        started = time.perf_counter()
        generation = jax.block_until_ready(self._compiled(*arguments))
        seconds = time.perf_counter() - started
        rounds, kept = int(generation.rounds.sum()), np.asarray(generation.kept_by_depth)
        return Run(
            seconds,
            np.asarray(generation.tokens),
            rounds,
            kept=int(kept[:, 1:].sum()),
            most=int(kept[:, 0].sum()) * (kept.shape[1] - 1),
            levels=int(generation.levels.sum()),
            waited=int(generation.waited.sum()),
        )

    def write(self, batch: int, temperature: float) -> Generation:
        """What the method writes, untimed."""
        return self._compiled(*self._arguments(batch, temperature))

    def _arguments(self, batch: int, temperature: float) -> tuple:
        draft = () if self.method.drafter is None else (self.method.draft,)
        return (
            self.params,
            *draft,
            self.work.batches[batch],
            self.work.keys[batch],
            self.work.sampling(temperature),
        )
