"""How long a pass takes at least on an accelerator that its maker describes: one formula, whether
what the pass demands is declared or compiled."""

import numpy as np

from jspec.plan.hardware import Accelerator
from jspec.plan.sizes import Size
from jspec.tuning.costs import Costs, rising

# What good kernels reach of the bandwidth and the rate, and how far off that may be: assumed.
REACHED, SPREAD = 0.75, 0.15
NODES = 1, 2, 4, 8, 16, 32, 64, 128, 256
ROWS = 1, 4, 16, 64
# How often what is exchanged passes each device: a sum is gathered and then handed out.
TRANSFERS = {"all-reduce": 2}


def milliseconds(
    demands: np.ndarray, chip: Accelerator, *, layers: int, reached: float = REACHED
) -> float:
    """At least, of so many layers, on a chip that reaches that share of its maker's numbers.

    Args:
      demands: `[4]` bytes read, operations, bytes sent, and exchanges.
    """
    read, operations, sent, count = demands
    busy = max(read / chip.bandwidth, operations / chip.rate) + sent / chip.link
    return 1e3 * float(busy / reached + (layers + count) * chip.dispatch)


def pass_ms(
    size: Size, chip: Accelerator, *, chips: int, batch: int, rows: int, context: int
) -> float:
    """Milliseconds of a pass over `rows` new tokens of each of `batch` texts."""
    bytes_read = size.read + batch * context * size.cache_row
    operations = batch * rows * (size.operations + context * size.attention)
    # A layer whose heads are split has two sums over all chips.
    sums = 2 * size.layers * (chips > 1)
    sent = TRANSFERS["all-reduce"] * sums * batch * rows * size.width * size.bytes
    demands = np.array([bytes_read / chips, operations / chips, sent, sums], float)
    return milliseconds(demands, chip.of(size.bytes), layers=size.layers)


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
      replicated: whether every chip has the whole draft.
    """

    def verification(nodes: int) -> float:
        return pass_ms(target, chip, chips=chips, batch=batch, rows=nodes, context=context)

    def level(rows: int) -> float:
        sharing = 1 if replicated else chips
        return pass_ms(draft, chip, chips=sharing, batch=batch, rows=rows, context=context)

    return Costs(
        rising([(nodes, verification(nodes)) for nodes in NODES]),
        rising([(rows, level(rows)) for rows in ROWS]),
        verification(1),
        f"declared: {REACHED:.0%} of what the maker of {chips} x {chip.name} says",
        spread=SPREAD,
    )
