"""How many bytes a compiled program reads of its device's memory, from its text.

XLA's own estimate adds up what every operation reads and writes, wherever that lies: on a TPU a
weight that is brought into the chip's fast memory and used there counts three times. Here each read
counts by where its operand lies, and of a table that is looked up, or a buffer that is written in
place, only the rows.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}"
    r"|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)"
)
# What moves nothing.
STILL = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
# What reads the rows of its first operand that it returns, and what writes some of them in place.
LOOKS_UP, WRITES_INTO = {"gather", "dynamic-slice", "slice"}, {"dynamic-update-slice", "scatter"}
# Layouts of a TPU's fast memories name them.
FAST = re.compile(r"S\([1-9]\)")


class Instruction(NamedTuple):
    """One line: what it makes, by which operation, of what."""

    name: str
    result: str
    operation: str
    given: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of what it is of."""
        return _NAME.findall(self.given)


@dataclass(frozen=True)
class Program:
    """A program's text, by computation; instructions are found by name in their computation."""

    entry: str
    computations: dict[str, dict[str, Instruction]]


def bytes_read(text: str) -> int:
    """Bytes that a program reads; the body of a loop counts once, of branches the one that reads
    the most."""
    program = parse(text)
    return _read(program, program.entry)


def parse(text: str) -> Program:
    """A program from the text that XLA prints of it."""
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
    return Program(entry, computations)


def size_of(result: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, as a program writes its type."""
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


def _read(program: Program, name: str) -> int:
    here = program.computations[name]
    return sum(_read_by(program, here, one) for one in here.values())


def _read_by(program: Program, here: dict[str, Instruction], one: Instruction) -> int:
    if one.operation in STILL or one.operation.endswith("-done"):
        return 0
    if one.operation == "conditional":
        return max(_read(program, name) for name in _branches(one))
    if one.operation in ("while", "call", "async-start"):
        return sum(_read(program, name) for name in _CALLED.findall(one.rest))
    slow = [
        (place, here[name])
        for place, name in enumerate(one.operands)
        if name in here and not FAST.search(_layout(here[name].result))
    ]
    return sum(_of_operand(program, one, place, operand) for place, operand in slow)


def _of_operand(program: Program, one: Instruction, place: int, operand: Instruction) -> int:
    """What `one` reads of its operand at `place`."""
    whole = size_of(operand.result)
    if one.operation.startswith("slice-start"):
        # Its result holds what is given, what is got, and a flag.
        return min(whole, size_of(one.result) - whole)
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
    """Who uses an array, through what only names it anew, and as which operand."""
    for one in inside.values():
        if name in one.operands:
            if one.operation == "bitcast":
                yield from _users(inside, one.name)
            else:
                yield one, one.operands.index(name)


def _by_operation(one: Instruction, place: int, whole: int) -> int:
    if place == 0 and one.operation in LOOKS_UP:
        return size_of(one.result)
    if place == 0 and one.operation in WRITES_INTO:
        return 0
    return whole


def _branches(one: Instruction) -> Sequence[str]:
    found = _BRANCHES.search(one.rest)
    return _NAME.findall(found[1]) if found[1] else [name for name in found.groups()[1:] if name]


def _layout(result: str) -> str:
    """The layout of an array, or of a tuple's first."""
    found = _ARRAY.search(result)
    return (found and found[4]) or ""


def _bytes(kind: str, bits: str | None, shape: str) -> int:
    count = 1
    for side in filter(None, shape.split(",")):
        count *= int(side)
    return count * max(int(bits or 8) // 8, 1)
