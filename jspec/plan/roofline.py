"""What the parts of a round must cost at least on an accelerator that its maker describes."""

import numpy as np

from jspec.plan.accelerators import Accelerator
from jspec.plan.costs import Costs, rising
from jspec.plan.facts import ROUNDS, milliseconds
from jspec.plan.sizes import Size

# What good kernels reach of the bandwidth and the rate, and how far off that may be: assumed.
REACHED, SPREAD = 0.75, 0.15
NODES = 1, 2, 4, 8, 16, 32, 64, 128, 256
ROWS = 1, 4, 16, 64


def roofline(
    target: Size,
    draft: Size,
    chip: Accelerator,
    *,
    chips: int = 1,
    replicated: bool = False,
    batch: int,
    context: int,
) -> Costs:
    """Costs of rounds of `batch` rows that have `context` tokens, of models that `chips` share.

    Args:
      replicated: whether every chip has all of the draft.
    """

    def verification(nodes: int) -> float:
        return pass_ms(target, chip, chips=chips, batch=batch, rows=nodes, context=context)

    def level(rows: int) -> float:
        ways = 1 if replicated else chips
        return pass_ms(draft, chip, chips=ways, batch=batch, rows=rows, context=context)

    return Costs(
        rising([(nodes, verification(nodes)) for nodes in NODES]),
        rising([(rows, level(rows)) for rows in ROWS]),
        verification(1),
        f"declared: {REACHED:.0%} of what the maker of {chips} x {chip.name} says",
        spread=SPREAD,
    )


def pass_ms(
    size: Size, chip: Accelerator, *, chips: int, batch: int, rows: int, context: int
) -> float:
    """Milliseconds of a pass over `rows` new tokens of each of `batch` texts."""
    bytes_read = size.read + batch * context * size.row
    operations = batch * rows * (size.operations + context * size.scores)
    # A layer that is cut by heads has two sums over all chips.
    sums = 2 * size.layers * (chips > 1)
    sent = ROUNDS["all-reduce"] * sums * batch * rows * size.width * size.bytes
    demands = np.array([bytes_read / chips, operations / chips, sent, sums], float)
    return milliseconds(demands, chip.of(size.bytes), layers=size.layers, reached=REACHED)
