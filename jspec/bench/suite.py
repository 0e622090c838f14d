"""What is measured: methods, compiled once each, on the same prompts, keys and weights."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jspec.bench.metrics import round_counts
from jspec.bench.timing import PLAIN, Run
from jspec.core.candidates import Rule
from jspec.core.prompts import PaddedPrompts, pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.core.tree import Tree
from jspec.core.tree_text import read_tree
from jspec.decode import (
    NONFINITE,
    WHY_NONFINITE,
    GenerationOutput,
    autoregress_program,
    budget,
    generate_program,
)
from jspec.draft.draft import Draft
from jspec.draft.early_stopping import check_drafter
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Model, Params
from jspec.verify import coupled
from jspec.zoo.prompts import held_out_prompts, out_of_domain_prompts


def same_model(target: Model) -> Model:
    """For drafters that read nothing of a target but its tokens."""
    return target


@dataclass(frozen=True, eq=False)
class Method:
    """How text is decoded: plainly where `drafter` is None.

    >>> Method("plain").lossy
    False

    Attributes:
      draft: the drafter's parameters.
      reading: gives the target that is run, which returns the hidden states that the drafter reads.
    """

    name: str
    drafter: Drafter | None = None
    draft: Params = ()
    rule: Rule = coupled
    reading: Callable[[Any], Any] = same_model

    @property
    def lossy(self) -> bool:
        """Whether it may write what plain decoding would not."""
        return self.drafter is not None and self.drafter.undrafted_levels > 0


@dataclass(frozen=True, eq=False)
class Workload:
    """What all methods do: continue `batches` of prompts by `tokens` each.

    Attributes:
      keys: of each batch `[B]`, of the noise.
    """

    batches: tuple[PaddedPrompts, ...]
    keys: tuple[jax.Array, ...]
    tokens: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.batches[0].length)

    def as_one_batch(self) -> tuple[PaddedPrompts, jax.Array]:
        """All prompts, and their keys."""
        batches = zip(self.batches, self.keys, strict=True)
        return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)

    def sampling(self, temperature: float) -> SamplingParams:
        """The same for every row."""
        return SamplingParams.create(self.rows, temperature=temperature)


def workload(
    rows: Sequence[Sequence[int]], *, batch: int, tokens: int, context: int, seed: int
) -> Workload:
    """Prompts in batches of `batch` rows, all of one width, so that one program serves them.

    Raises `ValueError` where `batch` does not divide the number of prompts.
    """
    if batch < 1 or len(rows) % batch:
        raise ValueError(f"batch={batch}: it must divide the number of prompts, {len(rows)}")
    keys = jax.random.split(jax.random.key(seed), len(rows))
    starts = range(0, len(rows), batch)
    return Workload(
        batches=tuple(
            pad_prompts(rows[start : start + batch], context_length=context, max_new_tokens=tokens)
            for start in starts
        ),
        keys=tuple(keys[start : start + batch] for start in starts),
        tokens=tokens,
    )


def held_out_work(
    target: Checkpoint,
    *,
    prompts: int,
    prompt_length: int,
    batch: int,
    tokens: int,
    seed: int,
    prose: bool = False,
) -> Workload:
    """Held-out code to continue, or prose, which the zoo was not trained on."""
    cut = out_of_domain_prompts if prose else held_out_prompts
    return workload(
        cut(target.tokenizer, prompts, prompt_length),
        batch=batch,
        tokens=tokens,
        context=target.model.config.max_position_embeddings,
        seed=seed,
    )


def drafted(
    name: str, draft: Draft, tree: str, context: int, rule: Rule = coupled, stop: str | None = None
) -> Method:
    """Speculation by a draft over a tree; the tree and what stops drafting early are text."""
    drafter, params = draft.stopping_drafter(read_tree(tree, context), stop)
    return Method(name, drafter, params, rule, draft.reading)


def lookup(name: str, tree: str, context: int, rule: Rule = coupled) -> Method:
    """Speculation by prompt lookup."""
    return Method(name, LookupDrafter(read_tree(tree, context)), rule=rule)


def methods_under(
    rule: Rule,
    drafts: Mapping[str, Draft],
    *,
    trees: Sequence[str],
    lookups: Sequence[str],
    stops: Sequence[str],
    context: int,
    suffix: str = "",
) -> list[Method]:
    """Every draft over every tree, to the leaves and stopped early, and every prompt lookup.

    Args:
      stops: what stops drafting early along static trees.
      suffix: what names end in.
    """

    def endings(tree: str) -> tuple[str | None, ...]:
        return (None, *(stops if isinstance(read_tree(tree, context), Tree) else ()))

    found = [
        drafted(
            " ".join(filter(None, (name, tree, stop))) + suffix, draft, tree, context, rule, stop
        )
        for name, draft in drafts.items()
        for tree in trees
        for stop in endings(tree)
    ]
    return [*found, *(lookup(f"lookup {tree}{suffix}", tree, context, rule) for tree in lookups)]


def compatible(methods: Sequence[Method]) -> list[Method]:
    """Those whose rule is exact for their candidates; raises the last refusal if none is."""
    found, refusal = [], None
    for method in methods:
        try:
            check_drafter(method.rule, method.drafter)
        except ValueError as error:
            refusal = error
        else:
            found.append(method)
    if methods and not found:
        raise refusal
    return found


class Program:
    """A method, compiled for a workload; a `Runner`."""

    def __init__(self, method: Method, target: Model, params: Params, work: Workload) -> None:
        self.name, self.method, self.params, self.work = method.name, method, params, work
        self.most, self.room = budget(work.tokens, work.batches[0], target)
        started = time.perf_counter()
        if method.drafter is None:
            lowered = autoregress_program.lower(
                *self._arguments(0, 0.0), target=target, room=self.room
            )
        else:
            lowered = generate_program.lower(
                *self._arguments(0, 0.0),
                target=method.reading(target),
                drafter=method.drafter,
                rule=method.rule,
                room=self.room,
            )
        self._compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started

    def with_draft(self, name: str, draft: Params) -> "Program":
        """The same program for another draft of the same shape."""
        other = copy.copy(self)
        other.name, other.method = name, replace(self.method, name=name, draft=draft)
        return other

    def __call__(self, batch: int, temperature: float) -> Run:
        """`Runner.__call__`."""
        arguments = self._arguments(batch, temperature)
        started = time.perf_counter()
        generation = jax.block_until_ready(self._compiled(*arguments))
        seconds = time.perf_counter() - started
        check_finite(generation)
        tokens = np.asarray(generation.tokens)[:, : self.work.tokens]
        return Run(seconds, tokens, round_counts(generation))

    def write(self, batch: int, temperature: float) -> GenerationOutput:
        """What the method writes, untimed: `[B, T]` of the workload's `tokens`."""
        output = self._compiled(*self._arguments(batch, temperature))
        count = self.work.tokens
        return replace(
            output,
            tokens=output.tokens[:, :count],
            is_draft_token=output.is_draft_token[:, :count],
        )

    def _arguments(self, batch: int, temperature: float) -> tuple:
        draft = () if self.method.drafter is None else (self.method.draft,)
        return (
            self.params,
            *draft,
            self.work.batches[batch],
            self.work.keys[batch],
            self.work.sampling(temperature),
            self.most,
        )


def check_finite(output: GenerationOutput) -> None:
    """Raises `FloatingPointError` for texts that ended because logits are not finite: nothing that
    is measured of them means anything."""
    count = int(np.sum(np.asarray(output.finish_reason) == NONFINITE))
    if count:
        raise FloatingPointError(f"{count} of {len(output.length)} texts: {WHY_NONFINITE}")


def plain_program(target: Checkpoint, work: Workload) -> Program:
    """Plain decoding of a workload."""
    return Program(Method(PLAIN), target.model, target.params, work)
