"""What the parts of a round cost on chips that are not there: XLA compiles them, and its estimates
of bytes and operations are held against what the chip's maker says."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jspec.plan.accelerators import Accelerator
from jspec.plan.costs import Costs, rising
from jspec.plan.facts import Facts, compile_for
from jspec.plan.outlook import Room
from jspec.plan.programs import Launch
from jspec.plan.roofline import REACHED, SPREAD

NODES = 8, 64


class Programs(NamedTuple):
    """What was compiled of a launch: before the first round, a round, and the target's passes by
    nodes, of which that over one is a step of plain decoding."""

    prefill: Facts
    round: Facts
    passes: dict[int, Facts]

    @property
    def memory(self) -> int:
        """Bytes of a device."""
        return max(self.prefill.memory, self.round.memory)


def compile_launch(
    launch: Launch, *, passes: dict[int, Facts] | None = None, tick: Callable[[str], None]
) -> Programs:
    """Compiles what a launch repeats.

    Args:
      passes: the target's, where another draft's launch compiled them.
      tick: told of every program.
    """
    tick("compiling prefill")
    program, prefill = compile_for(launch.prefill())
    state = launch.state(program)
    tick(f"compiling a round of {launch.drafter.tree.size} nodes")
    _, once = compile_for(launch.round(state))
    found = dict(passes or {})
    for nodes in (1, *NODES):
        if nodes not in found:
            tick(f"compiling the target's pass over {nodes} nodes")
            lowered = launch.passes(state, nodes)
            found[nodes] = compile_for(lowered)[1]
    return Programs(prefill, once, found)


def compiled(programs: Programs, launch: Launch, chip: Accelerator) -> Costs:
    """Costs of a launch from its programs: what a round takes beside the target's pass is shared
    out among the draft's passes, of which one more is counted, for a token that comes late."""
    told = {n: facts.ms(chip, reached=REACHED) for n, facts in programs.passes.items()}
    tree = launch.drafter.tree
    target = rising(list(told.items()))
    verification = Costs(target, ((1, 0.0),), told[1], "").verification(tree.size)
    rest = programs.round.ms(chip, reached=REACHED) - verification
    level = max(rest, 0.0) / (tree.depth + 1)
    return Costs(
        target,
        ((1, level),),
        told[1],
        f"compiled: XLA's bytes and operations at {REACHED:.0%} of what the maker of {chip.name} "
        "says",
        spread=SPREAD,
    )


def room(programs: Programs, chip: Accelerator) -> Room:
    """What the programs need of a device."""
    return Room(programs.memory, int(chip.memory), f"compiled with jax {jax.__version__}")
