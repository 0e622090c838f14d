"""Whether all programs of a launch compile for a slice, fit it, and do what they should there."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import LinenModel, Params
from jspec.plan.accelerators import Accelerator
from jspec.plan.facts import Facts, compile_for
from jspec.plan.lessons import recipe_for, step_program
from jspec.plan.programs import Launch, held
from jspec.plan.sizes import Size, size_of, size_of_head
from jspec.plan.sources import Work, launch_of

# How much more than weights and cache a round may read, and how much of what is given away must be
# written over: lengths and counters need not be.
READ, GIVEN = 1.15, 0.98
# What EAGLE-3's head makes of the layers that it reads, which it does once a round.
FUSION = "fusion"


@dataclass(frozen=True)
class Passed:
    """A program at the gate.

    Attributes:
      memory: bytes of a device that it needs, with what lies beside it; given: bytes of what it
        takes the place of, and aliased, how many of these it does.
      read: of a round, bytes that it accesses over those of weights and caches; else None.
      exchanges: how often devices exchange.
      wrong: what it should not do, in words; empty if it is as it should be.
    """

    program: str
    seconds: float
    memory: int
    given: int
    aliased: int
    read: float | None
    exchanges: int
    wrong: str

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def gate(
    target: LinenModel,
    part: LinenModel | Head,
    mesh: Mesh,
    chip: Accelerator,
    work: Work,
    *,
    batch: int,
    lesson: tuple[int, int],
    dtype: str = "bfloat16",
    replicated: bool = False,
    tick: Callable[[str], None],
) -> Iterator[Passed]:
    """Compiles prefill, refill, what seats a newcomer, a round, commit, the whole generation and a
    step of distillation, from shapes; of a round XLA is asked for a fast program, as it would run.

    Args:
      replicated: whether every device has all of the draft.
      batch: texts that are written together; lesson: tokens of a row, and rows, of a step.
    """
    launch = launch_of(target, part, mesh, work, batch=batch, dtype=dtype, replicated=replicated)
    tick("prefill")
    program, prefill = compile_for(launch.prefill(), quickly=True)
    yield _passed("prefill", prefill, chip)
    tick("refill")
    state = launch.state(program)
    newcomer, refill = compile_for(launch.refill(), quickly=True)
    yield _passed("refill", refill, chip, beside=held(state))
    tick("seat")
    seated = compile_for(launch.seat(state, launch.fresh(newcomer)), quickly=True)[1]
    yield _passed("seat", seated, chip, given=held((state.cache, state.drafter.cache)))
    tick("round")
    once = compile_for(launch.round(state))[1]
    yield _passed(
        "round",
        once,
        chip,
        given=held((state.cache, state.drafter.cache)),
        read=_share(once, launch, state),
    )
    tick("commit")
    moved = compile_for(launch.commit(state), quickly=True)[1]
    yield _passed("commit", moved, chip, given=held(state.cache), quiet=True)
    tick("generation")
    yield _passed("generation", compile_for(launch.generation(), quickly=True)[1], chip)
    tick("step of distillation")
    length, rows = lesson
    lowered, taught = step_program(recipe_for(part, length=length, batch=rows), target, part, mesh)
    yield _passed("step", compile_for(lowered, quickly=True)[1], chip, given=held(taught))


def _passed(
    name: str,
    facts: Facts,
    chip: Accelerator,
    *,
    given: int = 0,
    beside: int = 0,
    read: float | None = None,
    quiet: bool = False,
) -> Passed:
    """`beside`: bytes that are held meanwhile; `quiet`: whether devices may exchange nothing."""
    count = sum(one.count for one in facts.exchanges)
    memory = facts.memory + beside
    wrong = []
    if memory > chip.memory:
        wrong.append(f"needs {memory - int(chip.memory):,} bytes more than {chip.name} has")
    if facts.aliased < GIVEN * given:
        wrong.append(f"writes over {facts.aliased:,} of {given:,} bytes that it is given")
    if read is not None and read > READ:
        wrong.append(f"reads {read:.2f} times its weights and caches")
    if quiet and count:
        wrong.append(f"devices exchange {count} times")
    return Passed(name, facts.seconds, memory, given, facts.aliased, read, count, "; ".join(wrong))


def _share(facts: Facts, launch: Launch, state: Any) -> float:
    """Bytes that a round reads, over those that it must: of a pass of the target, and of a draft's
    passes and the weights that only the first of them needs."""
    dtype = jax.tree.leaves(launch.params)[0].dtype.name
    target = _read_here(size_of(launch.target, dtype), launch.params)
    passes, once = launch.drafter.tree.depth, 0
    if isinstance(launch.draft, HeadParams):
        own = launch.draft.head
        size = size_of_head(launch.drafter.head, launch.target.config, dtype)
        draft, once = _read_here(size, own), held(own.get(FUSION, {}))
    else:
        # One more, for a token that comes late; of it no logits are made, so this is a little more.
        passes += 1
        draft = _read_here(size_of(launch.drafter.model, dtype), launch.draft)
    weights = target + once + passes * (draft - once)
    return facts.read / (weights + held(state.cache) + passes * held(state.drafter.cache))


def _read_here(size: Size, params: Params) -> float:
    """Bytes of weights that a pass reads on each device, which has a share of `params`."""
    return size.read * held(params) / size.held
