"""Programs compiled for chips that need not be present: what XLA says of them, and what the parts
of a round cost by that."""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered

from jspec.plan.hardware import Accelerator
from jspec.plan.hlo import Collective, bytes_read, collectives, parse
from jspec.plan.programs import Passes, stored_bytes
from jspec.plan.roofline import REACHED, SPREAD, TRANSFERS, milliseconds
from jspec.tuning.costs import Costs, Points, rising

# Rows of the passes that are compiled: of the target those of plain decoding, and as many as
# prefill takes at a time; of a draft those of chains and of trees. What as many as are BETWEEN
# demand is on a line.
NODES, ROWS = (1, 64), (1, 8)
BETWEEN = 2, 4, 8, 16, 32

# What XLA's TPU compiler spends on a program's speed, from -1 to 1; and seconds of compiling from
# which on jax stores a program.
EFFORT = "jax_exec_time_optimization_effort"
SHORTEST_STORED = "jax_persistent_cache_min_compile_time_secs"
# What XLA says of a TPU's memory, in units of 1024.
_OVER = re.compile(r"Exceeded hbm capacity by ([\d.]+)([KMGT]?)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class ProgramFacts:
    """Of a compiled program, on each device. A loop's body counts once in `read`, `operations` and
    `collectives`.

    Attributes:
      seconds: that compiling took.
      read: bytes that it reads of the device's memory.
      operations: of floating point.
      arguments, results, aliased, temporaries: bytes; an aliased argument gives its place to the
        result.
    """

    seconds: float
    read: int
    operations: float
    arguments: int
    results: int
    aliased: int
    temporaries: int
    collectives: tuple[Collective, ...]

    @property
    def memory(self) -> int:
        """Bytes that it needs while it runs."""
        return self.arguments + self.results - self.aliased + self.temporaries

    @property
    def demands(self) -> np.ndarray:
        """`[4]` what takes time: bytes read, operations, bytes sent, and exchanges."""
        sent = sum(TRANSFERS.get(one.kind, 1) * one.size for one in self.collectives)
        count = sum(one.count for one in self.collectives)
        return np.array([self.read, self.operations, sent, count], float)


class OutOfMemoryError(RuntimeError):
    """A program for which a device has too little memory, by `over` bytes as XLA rounds them."""

    def __init__(self, over: int) -> None:
        super().__init__(f"needs some {over:,} bytes more than the device has")
        self.over = over


def compile_for(lowered: Lowered, *, quickly: bool = False) -> tuple[Compiled, ProgramFacts]:
    """The program, and its facts; raises `OutOfMemoryError` where it does not fit a device.

    Args:
      quickly: whether XLA makes a slower program sooner, where nobody needs its speed: a step of
        distillation compiles in a fifth of the time, and needs no less memory.
    """
    started = time.perf_counter()
    with _setting(EFFORT, -1.0 if quickly else getattr(jax.config, EFFORT)):
        program = _compile(lowered)
    seconds = time.perf_counter() - started
    return program, facts(program, seconds)


def facts(program: Compiled, seconds: float = 0.0) -> ProgramFacts:
    """What XLA says of a program."""
    cost, memory = program.cost_analysis(), program.memory_analysis()
    # Older jax gives a list of one for each device.
    cost = (cost[0] if isinstance(cost, list) else cost) or {}
    text = parse(program.as_text())
    return ProgramFacts(
        seconds=seconds,
        read=bytes_read(text),
        operations=float(cost.get("flops", 0.0)),
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=collectives(text),
    )


@dataclass(frozen=True, eq=False)
class CompiledPasses:
    """The passes of a model or a head, by rows.

    Attributes:
      stored: bytes that its arrays take of a device.
      layers: of the model.
    """

    facts: dict[int, ProgramFacts]
    stored: int
    layers: int

    @property
    def memory(self) -> int:
        """Bytes of a device that its arrays and the largest of its passes take."""
        return self.stored + max(one.temporaries for one in self.facts.values())

    def points(self, chip: Accelerator) -> Points:
        """Milliseconds by rows: of those compiled, and of some between."""
        known = sorted(self.facts)
        table = np.stack([self.facts[rows].demands for rows in known], axis=1)

        def ms(rows: int) -> float:
            demands = np.array([np.interp(rows, known, line) for line in table])
            return milliseconds(demands, chip, layers=self.layers)

        between = (rows for rows in BETWEEN if known[0] < rows < known[-1])
        return rising([(rows, ms(rows)) for rows in {*known, *between}])


def compile_passes(
    passes: Passes, rows: tuple[int, ...], *, layers: int, name: str, tick: Callable[[str], None]
) -> CompiledPasses:
    """Compiles passes through so many layers over each number of new rows of every text.

    Args:
      tick: hears of each.
    """
    found = {}
    for count in rows:
        tick(f"compiling {name}'s pass over {count} rows")
        found[count] = compile_for(passes.lower(count))[1]
    return CompiledPasses(found, stored_bytes((passes.params, passes.cache)), layers)


def compiled_costs(target: CompiledPasses, draft: CompiledPasses, chip: Accelerator) -> Costs:
    """Costs of rounds, without what there is beside the two models' passes."""
    points = target.points(chip)
    return Costs(
        points,
        draft.points(chip),
        points[0][1],
        f"compiled (jax {jax.__version__}): what XLA's programs read, compute and exchange, at "
        f"{REACHED:.0%} of what the maker of {chip.name} says",
        spread=SPREAD,
    )


def needed_bytes(target: CompiledPasses, draft: CompiledPasses) -> int:
    """Bytes that a launch needs of a device."""
    temporaries = target.memory - target.stored, draft.memory - draft.stored
    return target.stored + draft.stored + max(temporaries)


def _compile(lowered: Lowered) -> Compiled:
    try:
        # jax stores programs for devices that are not there, and then cannot read them.
        with _setting(SHORTEST_STORED, math.inf):
            return lowered.compile()
    except RuntimeError as error:
        if (found := _OVER.search(str(error))) is None:
            raise
        raise OutOfMemoryError(int(float(found[1]) * UNITS[found[2]])) from error


@contextlib.contextmanager
def _setting(name: str, value: Any) -> Iterator[None]:
    """One of jax's settings, for as long as something compiles."""
    before: Any = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)
