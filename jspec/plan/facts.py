"""What XLA's compiler says of a program: bytes, operations, memory, and what devices exchange."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered

from jspec.plan.accelerators import Accelerator
from jspec.plan.traffic import bytes_read

EFFORT = "jax_exec_time_optimization_effort"
EXCHANGES = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
# How often what is exchanged passes each device: a sum is gathered and then handed out.
ROUNDS = {"all-reduce": 2}
# An operation's result and its kind; asynchronous ones end in -start and -done.
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(EXCHANGES)})(-start)?\(")
# What XLA says of a TPU's memory, in units of 1024.
_OVER = re.compile(r"Exceeded hbm capacity by ([\d.]+)([KMGT]?)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)(?:e\d\w*)?)\[([\d,]*)\]")


@dataclass(frozen=True)
class Exchange:
    """Devices that exchange: how often, and how many bytes each of them gets, all of them added."""

    kind: str
    count: int
    size: int


@dataclass(frozen=True)
class Facts:
    """Of a compiled program, on each device.

    A loop's body counts once in `read`, `operations` and `exchanges`.

    Attributes:
      seconds: that compiling took.
      read: bytes that it reads of the device's memory.
      operations: of floating point.
      arguments, results, aliased, temporaries: bytes; what is aliased is an argument whose place
        the result takes.
    """

    seconds: float
    read: int
    operations: float
    arguments: int
    results: int
    aliased: int
    temporaries: int
    exchanges: tuple[Exchange, ...]

    @property
    def memory(self) -> int:
        """Bytes that it needs while it runs."""
        return self.arguments + self.results - self.aliased + self.temporaries

    @property
    def demands(self) -> np.ndarray:
        """`[4]` what takes time: bytes read, operations, bytes sent, and exchanges."""
        sent = sum(ROUNDS.get(one.kind, 1) * one.size for one in self.exchanges)
        count = sum(one.count for one in self.exchanges)
        return np.array([self.read, self.operations, sent, count], float)


def milliseconds(demands: np.ndarray, chip: Accelerator, *, layers: int, reached: float) -> float:
    """At least, of so many layers, on a chip that reaches that share of what its maker says.

    Args:
      demands: `[4]`, as `Facts` has them.
    """
    read, operations, sent, count = demands
    busy = max(read / chip.bandwidth, operations / chip.rate) + sent / chip.link
    return 1e3 * float(busy / reached + (layers + count) * chip.dispatch)


class Overflow(RuntimeError):
    """A program for which a device has too little memory, by `over` bytes as XLA rounds them."""

    def __init__(self, over: int) -> None:
        super().__init__(f"needs some {over:,} bytes more than the device has")
        self.over = over


def compile_for(lowered: Lowered, *, quickly: bool = False) -> tuple[Compiled, Facts]:
    """The program, and what there is to say of it; raises `Overflow` where XLA finds no room.

    Args:
      quickly: whether XLA is to make a slower program sooner, where nobody asks for its speed: a
        step of distillation compiles in a fifth of the time, and needs no less memory.
    """
    started = time.perf_counter()
    with _effort(-1.0) if quickly else contextlib.nullcontext():
        program = _compile(lowered)
    seconds = time.perf_counter() - started
    return program, facts(program, seconds)


def _compile(lowered: Lowered) -> Compiled:
    try:
        return lowered.compile()
    except RuntimeError as error:
        if (found := _OVER.search(str(error))) is None:
            raise
        raise Overflow(int(float(found[1]) * UNITS[found[2]])) from error


@contextlib.contextmanager
def _effort(value: float) -> Iterator[None]:
    """What XLA's TPU compiler spends on a program's speed, from -1 to 1."""
    before = getattr(jax.config, EFFORT)
    jax.config.update(EFFORT, value)
    try:
        yield
    finally:
        jax.config.update(EFFORT, before)


def facts(program: Compiled, seconds: float = 0.0) -> Facts:
    """What XLA says of a program."""
    cost, memory, text = (
        _costs(program.cost_analysis()),
        program.memory_analysis(),
        program.as_text(),
    )
    return Facts(
        seconds=seconds,
        read=bytes_read(text),
        operations=float(cost.get("flops", 0.0)),
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        exchanges=exchanges(text),
    )


def exchanges(text: str) -> tuple[Exchange, ...]:
    """Those of a compiled program's text, by kind."""
    found: dict[str, list[int]] = {}
    for result, kind, started in _OPERATION.findall(text):
        # Of what is asynchronous the result holds what is given as well as what is got.
        sizes = [_size(*array) for array in _ARRAY.findall(result)]
        found.setdefault(kind, []).append(max(sizes, default=0) if started else sum(sizes))
    return tuple(Exchange(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))


def _size(_: str, bits: str, shape: str) -> int:
    sides = [int(side) for side in shape.split(",") if side]
    return int(np.prod(sides, dtype=np.int64)) * max(int(bits or 8) // 8, 1)


def _costs(told: Any) -> dict[str, float]:
    # Older jax gives a list of one for each device.
    return told[0] if isinstance(told, list) else told or {}
