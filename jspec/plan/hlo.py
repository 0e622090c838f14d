"""The text of compiled programs: how many bytes they read, and what devices exchange.

XLA's own estimate adds up what every operation reads and writes, wherever that is: on a TPU a
weight that is brought into the chip's fast memory and used there counts three times. Here each read
counts by where its operand is, and of a table that is looked up, or a buffer that is written in
place, only the rows.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

COLLECTIVES = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}"
    r"|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)"
)
# Operations that move nothing.
_STILL = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
# Operations that read the rows of their first operand that they return, and that write some rows of
# it in place.
_LOOKS_UP, _WRITES_INTO = (
    {"gather", "dynamic-slice", "slice"},
    {"dynamic-update-slice", "scatter"},
)
# Layouts of a TPU's fast memories name them.
_FAST = re.compile(r"S\([1-9]\)")


class Instruction(NamedTuple):
    """One line: its name, the type of its `result`, the operation, its operands' text, the rest."""

    name: str
    result: str
    operation: str
    given: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return _NAME.findall(self.given)


@dataclass(frozen=True)
class HloProgram:
    """A program's text, by computation; instructions are found by name in their computation."""

    entry: str
    computations: dict[str, dict[str, Instruction]]


@dataclass(frozen=True)
class Collective:
    """Devices that exchange: how often, and how many bytes each of them gets in all."""

    kind: str
    count: int
    size: int


def parse(text: str) -> HloProgram:
    """A program from the text that XLA prints of it.

    >>> text = "ENTRY %main (p: f32[4]) -> f32[4] {\\n  %p = f32[4]{0} parameter(0)\\n}"
    >>> parse(text).computations["main"]["p"].operation
    'parameter'
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, here = "", {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            here = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            one = _instruction(found[1], found[2])
            if one is not None:
                here[one.name] = one
    if not entry:
        raise ValueError("the text has no ENTRY computation: give that of a compiled program")
    return HloProgram(entry, computations)


def bytes_read(program: HloProgram) -> int:
    """Bytes that a program reads of its device's memory; the body of a loop counts once, of
    branches the one that reads the most."""
    return _read(program, program.entry)


def collectives(program: HloProgram) -> tuple[Collective, ...]:
    """What its devices exchange, by kind; the body of a loop counts once."""
    found: dict[str, list[int]] = {}
    for computation in program.computations.values():
        for one in computation.values():
            kind = one.operation.removesuffix("-start")
            if kind in COLLECTIVES:
                sizes = [_bytes(*array.groups()[:3]) for array in _ARRAY.finditer(one.result)]
                # The result of an asynchronous one holds what is given as well as what is got.
                started = kind != one.operation
                found.setdefault(kind, []).append(max(sizes, default=0) if started else sum(sizes))
    return tuple(Collective(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))


def array_bytes(result: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, as a program writes its type.

    >>> array_bytes("(bf16[2,3]{1,0}, u32[])")
    16
    """
    return sum(_bytes(*found.groups()[:3]) for found in _ARRAY.finditer(result))


def _instruction(name: str, rest: str) -> Instruction | None:
    # The result ends where the operation's name begins, outside of any bracket.
    end = _closing(rest, " ")
    operation, bracket, rest_of = rest[end + 1 :].partition("(")
    if end == len(rest) or not bracket:
        return None
    close = _closing(rest_of, ")")
    return Instruction(name, rest[:end], operation, rest_of[:close], rest_of[close:])


def _closing(text: str, wanted: str) -> int:
    """The first place of a letter outside of brackets that are opened before it; the length of the
    text where there is none."""
    depth = 0
    for place, letter in enumerate(text):
        if letter == wanted and not depth:
            return place
        depth += (letter in "([{") - (letter in ")]}")
    return len(text)


def _read(program: HloProgram, name: str) -> int:
    here = program.computations[name]
    return sum(_read_by(program, here, one) for one in here.values())


def _read_by(program: HloProgram, here: dict[str, Instruction], one: Instruction) -> int:
    if one.operation in _STILL or one.operation.endswith("-done"):
        return 0
    if one.operation == "conditional":
        return max(_read(program, name) for name in _branches(one))
    if one.operation in ("while", "call", "async-start"):
        return sum(_read(program, name) for name in _CALLED.findall(one.rest))
    slow = [
        (place, here[name])
        for place, name in enumerate(one.operands)
        if name in here and not _FAST.search(_layout(here[name].result))
    ]
    return sum(_of_operand(program, one, place, operand) for place, operand in slow)


def _of_operand(program: HloProgram, one: Instruction, place: int, operand: Instruction) -> int:
    """What `one` reads of its operand at `place`."""
    whole = array_bytes(operand.result)
    if one.operation.startswith("slice-start"):
        # Its result holds what is given, what is got, and a flag.
        return min(whole, array_bytes(one.result) - whole)
    if one.operation == "fusion":
        (inside,) = _CALLED.findall(one.rest)[:1]
        return min(whole, _used(program.computations[inside], place, whole))
    return min(whole, _by_operation(one, 0 if not place else 1, whole))


def _used(inside: dict[str, Instruction], place: int, whole: int) -> int:
    """How much of its parameter number `place` a fusion uses."""
    (start,) = (
        one
        for one in inside.values()
        if one.operation == "parameter" and one.given.strip() == str(place)
    )
    return sum(_by_operation(user, at, whole) for user, at in _users(inside, start.name))


def _users(inside: dict[str, Instruction], name: str) -> Iterator[tuple[Instruction, int]]:
    """Who uses an array, through what only gives it another name, and as which operand."""
    for one in inside.values():
        if name in one.operands:
            if one.operation == "bitcast":
                yield from _users(inside, one.name)
            else:
                yield one, one.operands.index(name)


def _by_operation(one: Instruction, place: int, whole: int) -> int:
    if place == 0 and one.operation in _LOOKS_UP:
        return array_bytes(one.result)
    if place == 0 and one.operation in _WRITES_INTO:
        return 0
    return whole


def _branches(one: Instruction) -> Sequence[str]:
    found = _BRANCHES.search(one.rest)
    return _NAME.findall(found[1]) if found[1] else [name for name in found.groups()[1:] if name]


def _layout(result: str) -> str:
    """The layout of an array, or of a tuple's first."""
    found = _ARRAY.search(result)
    return (found and found[4]) or ""


def _bytes(_: str, bits: str | None, shape: str) -> int:
    count = 1
    for side in filter(None, shape.split(",")):
        count *= int(side)
    return count * max(int(bits or 8) // 8, 1)
