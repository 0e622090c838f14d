"""Whether all programs of a launch compile for a slice, fit it, and do what they should there."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import Params
from jspec.models.transformer import TransformerModel
from jspec.plan.compiled import ProgramFacts, compile_for
from jspec.plan.hardware import Accelerator
from jspec.plan.programs import Launch, distillation_step, recipe_for, stored_bytes
from jspec.plan.sizes import Size, size_of, size_of_head
from jspec.plan.sources import TextLengths, launch_of

# How much more than weights and cache a round may read, and how much of what it is given a program
# must overwrite: lengths and counters need not be.
READ, GIVEN = 1.15, 0.98
# What EAGLE-3's head makes of the layers that it reads, once a round.
FUSION = "fusion"


@dataclass(frozen=True)
class ProgramCheck:
    """A program at the gate.

    Attributes:
      memory: bytes of a device that it needs, with what is stored beside it.
      donated: bytes that it is given to overwrite; aliased: how many of these it does overwrite.
      read_ratio: of a round, bytes that it reads over those of weights and caches; else None.
      collectives: how often devices exchange.
      problem: what it should not do, in words; empty if it passes.
    """

    program: str
    seconds: float
    memory: int
    donated: int
    aliased: int
    read_ratio: float | None
    collectives: int
    problem: str

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_launch(
    target: TransformerModel,
    part: TransformerModel | Head,
    mesh: Mesh,
    chip: Accelerator,
    lengths: TextLengths,
    *,
    batch: int,
    training: tuple[int, int],
    dtype: str = "bfloat16",
    replicated: bool = False,
    tick: Callable[[str], None],
) -> Iterator[ProgramCheck]:
    """Compiles prefill, refill, the insertion of a new text, a round, commit, the whole generation
    and a step of distillation, from shapes; of a round XLA makes a fast program, as it would run.

    Args:
      replicated: whether every device has the whole draft.
      batch: texts that are written together.
      training: tokens of a row, and rows, of a step.
    """
    launch = launch_of(target, part, mesh, lengths, batch=batch, dtype=dtype, replicated=replicated)
    tick("prefill")
    program, prefill = compile_for(launch.prefill(), quickly=True)
    yield _check("prefill", prefill, chip)
    tick("refill")
    state = launch.state(program)
    caches = stored_bytes((state.cache, state.drafter.cache))
    fresh, refill = compile_for(launch.refill(), quickly=True)
    yield _check("refill", refill, chip, beside=stored_bytes(state))
    tick("insert")
    inserted = compile_for(launch.insert(state, launch.fresh(fresh)), quickly=True)[1]
    yield _check("insert", inserted, chip, donated=caches)
    tick("round")
    once = compile_for(launch.round(state))[1]
    yield _check("round", once, chip, donated=caches, read_ratio=_read_ratio(once, launch, state))
    tick("commit")
    moved = compile_for(launch.commit(state), quickly=True)[1]
    yield _check("commit", moved, chip, donated=stored_bytes(state.cache), quiet=True)
    tick("generation")
    yield _check("generation", compile_for(launch.generation(), quickly=True)[1], chip)
    tick("step of distillation")
    length, rows = training
    recipe = recipe_for(part, length=length, batch=rows)
    lowered, trained = distillation_step(recipe, target, part, mesh)
    step = compile_for(lowered, quickly=True)[1]
    yield _check("step", step, chip, donated=stored_bytes(trained))


def _check(
    name: str,
    facts: ProgramFacts,
    chip: Accelerator,
    *,
    donated: int = 0,
    beside: int = 0,
    read_ratio: float | None = None,
    quiet: bool = False,
) -> ProgramCheck:
    """`beside`: bytes that are stored meanwhile; `quiet`: whether devices may exchange nothing."""
    count = sum(one.count for one in facts.collectives)
    memory = facts.memory + beside
    problems = []
    if memory > chip.memory:
        problems.append(f"needs {memory - int(chip.memory):,} bytes more than {chip.name} has")
    if facts.aliased < GIVEN * donated:
        problems.append(f"writes over {facts.aliased:,} of {donated:,} bytes that it is given")
    if read_ratio is not None and read_ratio > READ:
        problems.append(f"reads {read_ratio:.2f} times its weights and caches")
    if quiet and count:
        problems.append(f"devices exchange {count} times")
    return ProgramCheck(
        name, facts.seconds, memory, donated, facts.aliased, read_ratio, count, "; ".join(problems)
    )


def _read_ratio(facts: ProgramFacts, launch: Launch, state: Any) -> float:
    """Bytes that a round reads, over those that it must: of a pass of the target, and of a draft's
    passes and the weights that only the first of them needs."""
    dtype = jax.tree.leaves(launch.params)[0].dtype.name
    target = _read_here(size_of(launch.target, dtype), launch.params)
    passes, once = launch.drafter.tree.depth, 0
    if isinstance(launch.draft, HeadParams):
        own = launch.draft.head
        size = size_of_head(launch.drafter.head, launch.target.config, dtype)
        draft, once = _read_here(size, own), stored_bytes(own.get(FUSION, {}))
    else:
        # One more, for a pending token; it needs no logits, so this is a little more.
        passes += 1
        draft = _read_here(size_of(launch.drafter.model, dtype), launch.draft)
    weights = target + once + passes * (draft - once)
    caches = stored_bytes(state.cache) + passes * stored_bytes(state.drafter.cache)
    return facts.read / (weights + caches)


def _read_here(size: Size, params: Params) -> float:
    """Bytes of weights that a pass reads on each device, which has a share of `params`."""
    return size.read * stored_bytes(params) / size.stored
