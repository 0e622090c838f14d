"""What a pair accepts and what its rounds cost, measured on this machine."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from jspec.bench.drafts import Draft
from jspec.bench.rounds import ROUNDS, Loops, guesses_alone, loops, seconds
from jspec.bench.suite import PLAIN, Method, Program, Workload
from jspec.core.candidates import Draws, Rule
from jspec.core.tree import Tree
from jspec.decode import begin, begin_plain
from jspec.formats.huggingface import Checkpoint
from jspec.plan.costs import Costs, rising

# Trees of which rounds are timed: chains tell what a level of one row costs, forks wider ones, and
# each what the target's pass over as many nodes does.
PROBES = Tree.chain(1), Tree.chain(3), Tree.chain(7), Tree.fork(8, 2), Tree.fork(16, 4)
# Below so many trials a share says little, and the level above stands for it.
TRIALS = 40
# How often guesses alone are timed.
REPEATED = 5


def admitted_trees(trees: Sequence[Tree], rule: Rule, context: int) -> list[Tree]:
    """Those that a rule takes from a drafter that draws, and that fit into a context."""
    kept = []
    for tree in trees:
        try:
            rule.admit(tree, Draws.RULE)
        except ValueError:
            continue
        if tree.size <= context:
            kept.append(tree)
    return kept


def method_of(draft: Draft, tree: Tree, rule: Rule, name: str = "draft") -> Method:
    """Speculation by a draft over a tree."""
    return Method(name, draft.drafter(tree), draft.params, rule, draft.reading)


def acceptance(draft: Draft, target: Checkpoint, work: Workload, **how: Any) -> np.ndarray:
    """`[D, W]` how often the child of each rank was kept below the first node of each level, as
    `kept` counts it."""
    return shares(kept(draft, target, work, **how).sum(axis=0))


def kept(
    draft: Draft,
    target: Checkpoint,
    work: Workload,
    *,
    rule: Rule,
    temperature: float,
    depth: int,
    width: int,
) -> np.ndarray:
    """`[R, A, W]` rounds of each text that kept, at each depth, the child of each rank below the
    first node of the level before; the root's first.

    Args:
      depth, width: how far, and how many children of a node; one where the rule follows chains.
    """
    (tree, *_) = admitted_trees(
        [Tree.comb((width,) * depth), Tree.chain(depth)], rule, target.model.config.context
    )
    program = Program(method_of(draft, tree, rule), target.model, target.params, work)
    batches = range(len(work.batches))
    return np.concatenate([np.asarray(program.write(b, temperature).kept) for b in batches])


def shares(kept: np.ndarray) -> np.ndarray:
    """`[D, W]` from `[A, W]` rounds that kept each child of the first node of each level."""
    found = np.zeros((len(kept) - 1, kept.shape[1]))
    for depth in range(len(found)):
        trials = kept[depth, 0]
        believed = trials >= TRIALS or not depth
        found[depth] = kept[depth + 1] / max(trials, 1) if believed else found[depth - 1]
    return found


def costs(
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
      probes: trees of which rounds are timed, two chains among them.
      tick: told of every program that is compiled, one for each probe and one more.
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
        self._trees = admitted_trees(probes, rule, target.model.config.context)
        self._loops: list[Loops] = []
        for tree in self._trees:
            tick(f"compiling rounds of {tree.size} nodes")
            method = method_of(draft, tree, rule)
            self._loops.append(loops(method, target.model, target.params, work, temperature))
        tick("compiling plain decoding")
        self._plain = Program(Method(PLAIN), target.model, target.params, work)
        self._tokens, self._temperature = work.tokens, temperature
        self._begins = _beginnings(method_of(draft, self._trees[0], rule), target, work)
        self._plain(0, temperature)
        for begin_now in self._begins:
            seconds(begin_now)
        self._runs: list[tuple] = []

    def time(self) -> None:
        """Each once."""
        pairs = [(seconds(one.rounds), seconds(one.guesses)) for one in self._loops]
        alone = self._plain(0, self._temperature).seconds
        self._runs.append((pairs, alone, *map(seconds, self._begins)))

    def costs(self) -> Costs:
        """By all that was timed."""
        runs = zip(*self._runs, strict=True)
        pairs, alone, start, plain_start = (np.array(part) * 1e3 for part in runs)
        # A machine is not equally fast all the while: each turn is brought to the pace of the
        # median one by its own plain decoding.
        pace = np.median(alone) / alone
        rounds = pairs * pace[:, None, None] / ROUNDS
        whole, guesses = np.median(rounds, axis=0).T
        plain_start = float(np.median(plain_start * pace))
        return taken_apart(
            self._trees,
            whole,
            guesses,
            plain=float(np.median(alone) - plain_start) / self._tokens,
            start=float(np.median(start * pace)),
            plain_start=plain_start,
            spread=float(np.median(rounds[..., 0].std(axis=0) / whole)),
        )


def level_ms(
    draft: Draft, target: Checkpoint, work: Workload, *, rule: Rule, temperature: float
) -> float:
    """Milliseconds of one level of a draft's guesses, of one row, and of nothing else."""
    took, chains = [], (Tree.chain(1), Tree.chain(5))
    for tree in chains:
        method = method_of(draft, tree, rule)
        run = guesses_alone(method, target.model, target.params, work, temperature)
        took.append(median(seconds(run) for _ in range(REPEATED)) * 1e3 / ROUNDS)
    return max(took[1] - took[0], 0.0) / (chains[1].depth - chains[0].depth)


def _beginnings(
    method: Method, target: Checkpoint, work: Workload
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What comes before the first round, and before the first step of plain decoding."""
    prompts, tokens = work.batches[0], work.tokens
    reading = method.reading(target.model)
    names = {"drafter": method.drafter, "rule": method.rule}
    return (
        lambda: begin(target.params, method.draft, prompts, target=reading, tokens=tokens, **names),
        lambda: begin_plain(target.params, prompts, target=target.model, tokens=tokens),
    )


def taken_apart(
    trees: Sequence[Tree],
    whole: np.ndarray,
    guesses: np.ndarray,
    *,
    plain: float,
    start: float = 0.0,
    plain_start: float = 0.0,
    spread: float = 0.0,
) -> Costs:
    """Costs from milliseconds of whole rounds over trees and of their drafts' guesses, which are
    levels and something that is done once."""
    chains = [n for n, tree in enumerate(trees) if tree.width == 1]
    depths = np.array([trees[n].depth for n in chains])
    one, once = np.polyfit(depths, guesses[chains], 1)
    levels = [(1, max(one, 0.0))]
    for tree, took in zip(trees, guesses, strict=True):
        if tree.width > 1 and tree.depth > 1:
            # A fork: a level of one row, and more of as many as it is wide.
            levels.append((tree.width, (took - once - one) / (tree.depth - 1)))
    level = rising(levels)
    rest = [
        (tree.size, took - Costs(((1, 0.0),), level, 1.0, "").round(tree))
        for tree, took in zip(trees, whole, strict=True)
    ]
    return Costs(rising(rest), level, plain, "measured", start, plain_start, spread)
