"""What is run: methods, compiled once each, on the same prompts, keys and weights."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jspec.bench.shapes import read_tree
from jspec.bench.timing import Run
from jspec.candidates import Rule
from jspec.decode import Generation, Prompts, autoregress, generate, prompts
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Model, Params
from jspec.sampling import Sampling, sampling
from jspec.verify import coupled

PLAIN = "plain"


@dataclass(frozen=True, eq=False)
class Method:
    """A way to decode: plain where `drafter` is None."""

    name: str
    drafter: Drafter | None = None
    draft: Params = ()
    rule: Rule = coupled


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


def small_model(
    name: str, draft: Checkpoint, tree: str, context: int, rule: Rule = coupled
) -> Method:
    """Speculation by a draft over a tree, which is given as text."""
    drafter = SmallModelDrafter(draft.model, read_tree(tree, context))
    return Method(name, drafter, draft.params, rule)


def lookup(name: str, tree: str, context: int, rule: Rule = coupled) -> Method:
    """Speculation by prompt look-up."""
    return Method(name, LookupDrafter(read_tree(tree, context)), rule=rule)


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
                target=target,
                drafter=method.drafter,
                rule=method.rule,
                tokens=work.tokens,
            )
        self._compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started

    def __call__(self, batch: int, temperature: float) -> Run:
        arguments = self._arguments(batch, temperature)
        started = time.perf_counter()
        generation = jax.block_until_ready(self._compiled(*arguments))
        seconds = time.perf_counter() - started
        return Run(seconds, np.asarray(generation.tokens), int(generation.rounds.sum()))

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
