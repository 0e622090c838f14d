"""What the parts of a round cost on chips that are not there: XLA compiles the passes of target and
draft, and what these read, compute and exchange is held against what the chip's maker says."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jspec.plan.accelerators import Accelerator
from jspec.plan.costs import Costs, Points, rising
from jspec.plan.facts import Facts, compile_for
from jspec.plan.outlook import Room
from jspec.plan.programs import Passes, held
from jspec.plan.roofline import REACHED, SPREAD

# Rows of the passes that are compiled: of the target those of plain decoding, of small and of large
# trees, and as many as prefill takes at a time; of a draft those of chains and of trees.
NODES, ROWS = (1, 8, 64), (1, 8)


@dataclass(frozen=True, eq=False)
class Compiled:
    """The passes of a model or a head, by rows, and what their arrays take of a device."""

    facts: dict[int, Facts]
    held: int

    @property
    def memory(self) -> int:
        """Bytes of a device that its arrays and the largest of its passes take."""
        return self.held + max(one.temporaries for one in self.facts.values())

    def points(self, chip: Accelerator) -> Points:
        """Milliseconds by rows."""
        return rising([(rows, one.ms(chip, reached=REACHED)) for rows, one in self.facts.items()])


def compile_passes(
    passes: Passes, rows: tuple[int, ...], *, name: str, tick: Callable[[str], None]
) -> Compiled:
    """Compiles passes over each number of new rows of every text.

    Args:
      tick: told of each.
    """
    facts = {}
    for count in rows:
        tick(f"compiling {name}'s pass over {count} rows")
        facts[count] = compile_for(passes.lower(count))[1]
    return Compiled(facts, held((passes.params, passes.cache)))


def compiled(target: Compiled, draft: Compiled, chip: Accelerator) -> Costs:
    """Costs of rounds, what there is beside the two models' passes left out."""
    points = target.points(chip)
    return Costs(
        points,
        draft.points(chip),
        points[0][1],
        f"compiled (jax {jax.__version__}): what XLA's programs read, compute and exchange, at "
        f"{REACHED:.0%} of what the maker of {chip.name} says",
        spread=SPREAD,
    )


def room(target: Compiled, draft: Compiled, chip: Accelerator) -> Room:
    """What a launch needs of a device."""
    temporaries = target.memory - target.held, draft.memory - draft.held
    needed = target.held + draft.held + max(temporaries)
    return Room(needed, int(chip.memory), "compiled")
