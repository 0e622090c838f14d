"""What the parts of a round cost on chips that are not there: XLA compiles the passes of target and
draft, and what these read, compute and exchange is held against what the chip's maker says."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from jspec.plan.accelerators import Accelerator
from jspec.plan.costs import Costs, Points, rising
from jspec.plan.facts import Facts, compile_for, milliseconds
from jspec.plan.programs import Passes, held
from jspec.plan.roofline import REACHED, SPREAD

# Rows of the passes that are compiled: of the target those of plain decoding, and as many as
# prefill takes at a time; of a draft those of chains and of trees. What as many as are BETWEEN
# demand lies on a line.
NODES, ROWS = (1, 64), (1, 8)
BETWEEN = 2, 4, 8, 16, 32


@dataclass(frozen=True, eq=False)
class Compiled:
    """The passes of a model or a head of so many layers, by rows, and what their arrays take of a
    device."""

    facts: dict[int, Facts]
    held: int
    layers: int

    @property
    def memory(self) -> int:
        """Bytes of a device that its arrays and the largest of its passes take."""
        return self.held + max(one.temporaries for one in self.facts.values())

    def points(self, chip: Accelerator) -> Points:
        """Milliseconds by rows: of those compiled, and of some between."""
        known = sorted(self.facts)
        table = np.stack([self.facts[rows].demands for rows in known], axis=1)

        def ms(rows: int) -> float:
            demands = np.array([np.interp(rows, known, line) for line in table])
            return milliseconds(demands, chip, layers=self.layers, reached=REACHED)

        between = (rows for rows in BETWEEN if known[0] < rows < known[-1])
        return rising([(rows, ms(rows)) for rows in {*known, *between}])


def compile_passes(
    passes: Passes, rows: tuple[int, ...], *, layers: int, name: str, tick: Callable[[str], None]
) -> Compiled:
    """Compiles passes through so many layers over each number of new rows of every text.

    Args:
      tick: told of each.
    """
    facts = {}
    for count in rows:
        tick(f"compiling {name}'s pass over {count} rows")
        facts[count] = compile_for(passes.lower(count))[1]
    return Compiled(facts, held((passes.params, passes.cache)), layers)


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


def needed(target: Compiled, draft: Compiled) -> int:
    """Bytes that a launch needs of a device."""
    temporaries = target.memory - target.held, draft.memory - draft.held
    return target.held + draft.held + max(temporaries)
