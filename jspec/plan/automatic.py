"""The tree that is fastest for a pair on this machine, found by measuring."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from jspec.bench.drafts import Draft
from jspec.bench.suite import PLAIN, Method, Program, Workload
from jspec.bench.summary import summarise
from jspec.bench.timing import interleave
from jspec.core.candidates import Draws, Rule
from jspec.core.tree import Tree
from jspec.formats.huggingface import Checkpoint
from jspec.plan.costs import Costs
from jspec.plan.measured import PROBES, acceptance, admitted_trees, costs, method_of
from jspec.plan.trees import fastest_tree, tokens_per_round

# How far and wide guesses are measured, and the largest tree that is thought of.
DEPTH, WIDTH, NODES = 8, 6, 48
# Trees of each kind that are timed in the end, and how often.
FINALISTS, REPETITIONS = 2, 3
LEAD = 1.03  # of a tree over the best chain


@dataclass(frozen=True, eq=False)
class Choice:
    """A tree and why it was chosen.

    Attributes:
      tree: the fastest that was timed, or the fastest chain where that is no slower to speak of.
      chain: the fastest chain.
      timed: `over plain` of all that were timed, by tree.
      acceptance: `[D, W]`; costs: of a round; both measured.
    """

    tree: Tree
    chain: Tree
    timed: dict[Tree, float]
    acceptance: np.ndarray
    costs: Costs

    def record(self) -> dict[str, Any]:
        """For JSON."""
        timed = [{"parents": list(t.parents), "over_plain": x} for t, x in self.timed.items()]
        measured = {"acceptance": self.acceptance.tolist(), "costs": self.costs.record()}
        return {"timed": timed, **measured}


def most_steps(work: Workload) -> int:
    """How often `choose` tells what it does, at most."""
    return 2 + len(PROBES) + 2 * FINALISTS + REPETITIONS * len(work.batches)


def choose(
    draft: Draft,
    target: Checkpoint,
    work: Workload,
    *,
    rule: Rule,
    temperature: float,
    tick: Callable[[str], None],
    spent: Costs | None = None,
) -> Choice:
    """Measures what is accepted and what rounds cost, finds the trees that would be fastest and the
    chains, and times these side by side.

    Args:
      work: batches of the size that is to be served; its prompts are what acceptance is of.
      tick: told what is being done.
      spent: what rounds cost, where that was measured before.
    """
    rule.admit(Tree.chain(1), Draws.RULE)
    how = {"rule": rule, "temperature": temperature}
    tick("measuring what is accepted")
    accepted = acceptance(draft, target, work, depth=DEPTH, width=WIDTH, **how)
    spent = spent or costs(draft, target, work, **how, repetitions=REPETITIONS, tick=tick)
    finalists = list(dict.fromkeys(_finalists(accepted, spent, rule, target.model.config.context)))
    timed = _timed(finalists, draft, target, work, **how, tick=tick)
    tree = max(finalists, key=timed.__getitem__)
    chain = max((one for one in finalists if one.width == 1), key=timed.__getitem__)
    # A lead that small is noise, and the chain the safer guess.
    tree = chain if timed[tree] < LEAD * timed[chain] else tree
    return Choice(tree, chain, timed, accepted, spent)


def _finalists(accepted: np.ndarray, spent: Costs, rule: Rule, context: int) -> Iterator[Tree]:
    """The chains and the trees that should be fastest."""
    chains = [Tree.chain(depth) for depth in range(1, len(accepted) + 1)]
    rate = {one: tokens_per_round(one, accepted) / spent.round(one) for one in chains}
    fits = admitted_trees(sorted(chains, key=rate.__getitem__, reverse=True), rule, context)
    yield from islice(fits, FINALISTS)
    for depth in (len(accepted), 2):
        tree, _ = fastest_tree(accepted[:depth], spent.round, nodes=min(NODES, context))
        yield from admitted_trees([tree], rule, context)


def _timed(
    trees: list[Tree],
    draft: Draft,
    target: Checkpoint,
    work: Workload,
    *,
    rule: Rule,
    temperature: float,
    tick: Callable[[str], None],
) -> dict[Tree, float]:
    """Speed over plain decoding, by decoding."""
    programs = [Program(Method(PLAIN), target.model, target.params, work)]
    for number, tree in enumerate(trees):
        tick(f"compiling a tree of {tree.size} nodes")
        method = method_of(draft, tree, rule, str(number))
        programs.append(Program(method, target.model, target.params, work))
    samples = interleave(
        programs,
        batches=len(work.batches),
        temperatures=(temperature,),
        repetitions=REPETITIONS,
        tick=tick,
    )
    speed = {row.method: row.speedup for row in summarise(samples, coupled=())}
    return {tree: speed[str(number)] for number, tree in enumerate(trees)}
