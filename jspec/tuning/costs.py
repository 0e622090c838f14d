"""What the parts of a round cost, and how that is measured on this machine."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from jspec.bench.breakdown import ROUNDS, Loops, drafting_alone, loops, seconds
from jspec.bench.suite import Method, Workload, plain_program
from jspec.core.candidates import Rule
from jspec.core.tree import Tree
from jspec.decode import budget, start_decoding, start_plain
from jspec.draft.draft import Draft
from jspec.formats.huggingface import Checkpoint
from jspec.tuning.acceptance import compatible_trees, method_of

Points = tuple[tuple[int, float], ...]
# Trees whose rounds are timed: chains tell what a level of one row costs, forks wider ones, and
# each what the target's pass over as many nodes does.
PROBES = Tree.chain(1), Tree.chain(3), Tree.chain(7), Tree.fork(8, 2), Tree.fork(16, 4)
# How often drafting alone is timed.
REPEATED = 5


@dataclass(frozen=True)
class Costs:
    """Milliseconds of the parts of a round, for one batch size; between points they are a line.

    >>> costs = Costs(((1, 2.0), (9, 4.0)), ((1, 0.5),), plain=2.0, source="an example")
    >>> costs.round(Tree.chain(4))
    5.0

    Attributes:
      target: by nodes, the target's pass over them and everything else that happens once a round.
      level: by rows, one level of drafting.
      plain: one step of plain decoding.
      source: where the numbers come from.
      start, plain_start: what comes before the first round, and before the first plain step.
      spread: how far a round may be off, relatively, as a standard deviation.
      pending: what a small model spends on a token that it has not run, at the start of a round
        after one that accepted a leaf; 0 where that is part of `target`.
    """

    target: Points
    level: Points
    plain: float
    source: str
    start: float = 0.0
    plain_start: float = 0.0
    spread: float = 0.0
    pending: float = 0.0

    def __post_init__(self) -> None:
        for name in ("target", "level"):
            points = getattr(self, name)
            numbers = np.array([number for point in points for number in point], float)
            counts = [count for count, _ in points]
            finite = points and np.isfinite(numbers).all() and numbers.min() >= 0
            if not finite or counts != sorted(set(counts)):
                raise ValueError(
                    f"costs {name}={points}: give pairs of a count and milliseconds, at least one, "
                    "by rising counts and all of them numbers"
                )
        if not 0 < self.plain < np.inf:
            raise ValueError(f"costs plain={self.plain}: give milliseconds")
        for name in ("start", "plain_start", "spread", "pending"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"costs {name}={getattr(self, name)}: must be 0 or more")

    def round(self, tree: Tree, pending: float = 0.0) -> float:
        """Milliseconds of a round over `tree`; a share `pending` of rounds follow one that accepted
        a leaf."""
        levels = float(_on(self.level, np.bincount(tree.depths[tree.inner])).sum())
        return self.verification(tree.size) + levels + pending * self.pending

    def verification(self, nodes: int) -> float:
        """Milliseconds of what happens once a round, over a tree of that many nodes."""
        return float(_on(self.target, [nodes])[0])

    def draft_level(self, rows: int = 1) -> float:
        """Milliseconds of one level of drafting."""
        return float(_on(self.level, [rows])[0])

    def with_draft_level(self, ms: float) -> "Costs":
        """The same with a draft whose level of one row takes `ms`; its wider levels cost as many
        times more as these do."""
        one = self.draft_level()
        level = tuple((rows, x * ms / one) for rows, x in self.level) if one else ((1, ms),)
        return replace(self, level=level)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def rising(points: Sequence[tuple[int, float]]) -> Points:
    """Points in order of their counts, none of them below the one before: more rows never cost
    less, and where a measurement says so it is noise."""
    counts, values = zip(*sorted(points), strict=True)
    values = np.maximum.accumulate(np.maximum(values, 0.0))
    return tuple((int(n), float(x)) for n, x in zip(counts, values, strict=True))


def measure_costs(
    draft: Draft,
    target: Checkpoint,
    work: Workload,
    *,
    rule: Rule,
    temperature: float,
    repetitions: int,
    tick: Callable[[str], None],
    probes: Sequence[Tree] = PROBES,
) -> Costs:
    """Milliseconds of the parts of a round on the first batch of a workload; see `Stopwatch`.

    Args:
      probes: trees whose rounds are timed, two chains among them.
      tick: hears of every program that is compiled, one for each probe and one more.
    """
    how = {"rule": rule, "temperature": temperature, "probes": probes, "tick": tick}
    stopwatch = Stopwatch(draft, target, work, **how)
    for _ in range(repetitions):
        stopwatch.time()
    return stopwatch.costs()


class Stopwatch:
    """Rounds along some trees, plain decoding, and what comes before either, compiled once and
    timed in turns, as often as is asked; costs are medians."""

    def __init__(
        self,
        draft: Draft,
        target: Checkpoint,
        work: Workload,
        *,
        rule: Rule,
        temperature: float,
        probes: Sequence[Tree],
        tick: Callable[[str], None],
    ) -> None:
        self._trees = compatible_trees(probes, rule, target.model.config.max_position_embeddings)
        self._loops: list[Loops] = []
        for tree in self._trees:
            tick(f"compiling rounds of {tree.size} nodes")
            method = method_of(draft, tree, rule)
            self._loops.append(loops(method, target.model, target.params, work, temperature))
        tick("compiling plain decoding")
        self._plain = plain_program(target, work)
        self._tokens, self._temperature = work.tokens, temperature
        self._begins = _beginnings(method_of(draft, self._trees[0], rule), target, work)
        self._plain(0, temperature)
        for begin_now in self._begins:
            seconds(begin_now)
        self._runs: list[tuple] = []

    def time(self) -> None:
        """Each once."""
        pairs = [(seconds(one.rounds), seconds(one.drafts)) for one in self._loops]
        alone = self._plain(0, self._temperature).seconds
        self._runs.append((pairs, alone, *map(seconds, self._begins)))

    def costs(self) -> Costs:
        """By everything that was timed."""
        runs = zip(*self._runs, strict=True)
        pairs, alone, start, plain_start = (np.array(part) * 1e3 for part in runs)
        # A machine's speed changes: each turn is brought to the pace of the median one by its own
        # plain decoding.
        pace = np.median(alone) / alone
        rounds = pairs * pace[:, None, None] / ROUNDS
        whole, drafts = np.median(rounds, axis=0).T
        # A busy machine may take longer for the beginning alone than for all of it.
        plain_start = min(float(np.median(plain_start * pace)), float(np.median(alone)) / 2)
        return split_costs(
            self._trees,
            whole,
            drafts,
            plain=float(np.median(alone) - plain_start) / self._tokens,
            start=float(np.median(start * pace)),
            plain_start=plain_start,
            spread=float(np.median(rounds[..., 0].std(axis=0) / whole)),
        )


def measure_level(
    draft: Draft, target: Checkpoint, work: Workload, *, rule: Rule, temperature: float
) -> float:
    """Milliseconds of one level of drafting, of one row, and of nothing else."""
    took, chains = [], (Tree.chain(1), Tree.chain(5))
    for tree in chains:
        method = method_of(draft, tree, rule)
        run = drafting_alone(method, target.model, target.params, work, temperature)
        took.append(median(seconds(run) for _ in range(REPEATED)) * 1e3 / ROUNDS)
    return max(took[1] - took[0], 0.0) / (chains[1].depth - chains[0].depth)


def split_costs(
    trees: Sequence[Tree],
    whole: np.ndarray,
    drafts: np.ndarray,
    *,
    plain: float,
    start: float = 0.0,
    plain_start: float = 0.0,
    spread: float = 0.0,
) -> Costs:
    """Costs from milliseconds of whole rounds over trees and of drafting alone, which consists of
    levels and of something that happens once."""
    chains = [n for n, tree in enumerate(trees) if tree.width == 1]
    depths = np.array([trees[n].depth for n in chains])
    one, once = np.polyfit(depths, drafts[chains], 1)
    levels = [(1, max(one, 0.0))]
    for tree, took in zip(trees, drafts, strict=True):
        if tree.width > 1 and tree.depth > 1:
            # A fork: a level of one row, and more of as many as it is wide.
            levels.append((tree.width, (took - once - one) / (tree.depth - 1)))
    level = rising(levels)
    rest = [
        (tree.size, took - Costs(((1, 0.0),), level, 1.0, "").round(tree))
        for tree, took in zip(trees, whole, strict=True)
    ]
    return Costs(rising(rest), level, plain, "measured", start, plain_start, spread)


def _beginnings(
    method: Method, target: Checkpoint, work: Workload
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What comes before the first round, and before the first step of plain decoding."""
    prompts, tokens = work.batches[0], work.tokens
    reading = method.reading(target.model)
    most, room = budget(tokens, prompts, target.model)
    names = {"drafter": method.drafter, "rule": method.rule, "room": room}
    return (
        lambda: start_decoding(target.params, method.draft, prompts, most, target=reading, **names),
        lambda: start_plain(target.params, prompts, most, target=target.model, room=room),
    )


def _on(points: Points, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The lines between points at `counts`; past the last they continue with the same slope."""
    n, x = np.array(points, float).T
    counts = np.asarray(counts, float)
    found = np.interp(counts, n, x)
    if len(n) > 1:
        slope = (x[-1] - x[-2]) / (n[-1] - n[-2])
        found += np.maximum(counts - n[-1], 0) * slope
    return found
