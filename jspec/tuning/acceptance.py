"""How often draft tokens are accepted: measured by decoding, given, or assumed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jspec.bench.suite import Method, Program, Workload, check_finite
from jspec.core.candidates import SAMPLED, Rule
from jspec.core.tree import Tree
from jspec.draft.draft import Draft
from jspec.formats.huggingface import Checkpoint
from jspec.tuning.search import check_acceptance

# Rounds that a share which nobody counted stands for, where an interval is asked for.
BELIEVED = 100
# Below so many trials a share says little, and the level above stands for it.
TRIALS = 40


@dataclass(frozen=True, eq=False)
class Acceptance:
    """How often the child of each rank of an accepted node is accepted, at each depth.

    >>> from_rates([0.8, 0.5], "given").to_depth(3)[:, 0].tolist()
    [0.8, 0.5, 0.5]

    Attributes:
      shares: `[D, W]` of all texts; texts: `[R, D, W]` of each of R texts, which differ.
      trials: `[D]` accepted nodes of which that was counted.
      source: where the numbers come from, in words.
    """

    shares: np.ndarray
    texts: np.ndarray
    trials: np.ndarray
    source: str

    def __post_init__(self) -> None:
        check_acceptance(self.shares)

    def to_depth(self, depth: int) -> np.ndarray:
        """`[depth, W]`; past what is known each level is like the last one."""
        return _to_depth(self.shares, depth)

    def of_texts(self, depth: int) -> list[np.ndarray]:
        """The same of each text."""
        return [_to_depth(shares, depth) for shares in self.texts]

    def draws(self, depth: int, count: int, seed: int = 0) -> list[np.ndarray]:
        """What else the shares may be, given how often they were counted: each row drawn from the
        Dirichlet distribution around it."""
        rng = np.random.default_rng(seed)
        shares = self.to_depth(depth)
        trials = _to_depth(self.trials[:, None], depth)[:, 0]
        rest = np.maximum(1 - shares.sum(axis=1, keepdims=True), 0)
        # A share of 0 in as many trials is less than one of one.
        weights = np.concatenate([shares, rest], axis=1) * trials[:, None] + 0.5
        gammas = rng.gamma(weights, size=(count, *weights.shape))
        return list((gammas / gammas.sum(axis=-1, keepdims=True))[..., :-1])


def from_counts(accepted: np.ndarray, source: str) -> Acceptance:
    """From the rounds that accepted each node, `[R, A, W]` by text, depth and rank, the root's
    first."""
    total = accepted.sum(axis=0)
    trials = np.maximum(total[:-1, 0], 1)
    shares = total[1:] / trials[:, None]
    # A text that never came so deep is like all of them.
    own = np.maximum(accepted[:, :-1, :1], 1)
    texts = np.where(accepted[:, :-1, :1] > 0, accepted[:, 1:] / own, shares)
    return Acceptance(shares, texts, trials, source)


def from_rates(shares: Sequence[float] | Sequence[Sequence[float]], source: str) -> Acceptance:
    """From one share a depth, or one for each rank as well."""
    try:
        found = np.array(shares, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"acceptance={shares!r}: give numbers from 0 to 1, one a depth") from error
    found = found[:, None] if found.ndim == 1 else found
    check_acceptance(found)
    return Acceptance(found, found[None], np.full(len(found), BELIEVED), source)


def read_acceptance(text: str) -> Acceptance:
    """`0.8`, `0.8,0.7,0.6` (deeper levels are like the last), or a JSON file with a list, or with
    one under the name `acceptance`, as `jspec tune` writes it."""
    if text.endswith(".json"):
        file = Path(text)
        if not file.is_file():
            raise FileNotFoundError(f"acceptance={text!r}: no such file")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"acceptance={text!r} is not JSON ({error})") from error
        if isinstance(content, dict):
            if "acceptance" not in content:
                raise ValueError(f"acceptance={text!r}: the object has no field 'acceptance'")
            content = content["acceptance"]
        if not isinstance(content, list):
            raise ValueError(
                f"acceptance={text!r} holds {content!r}: give a list, one share a depth"
            )
        return from_rates(content, f"read from {file.name}")
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(
            f"acceptance={text!r}: give numbers from 0 to 1 with commas, one a depth, or a JSON "
            "file"
        ) from None
    return from_rates(numbers, f"stated ({text})")


def count_accepted(
    draft: Draft,
    target: Checkpoint,
    work: Workload,
    *,
    rule: Rule,
    temperature: float,
    depth: int,
    width: int,
) -> np.ndarray:
    """`[R, A, W]` rounds of each text that accepted, at each depth, the child of each rank below
    the first node of the level before; the root's first.

    Args:
      depth: how deep it is measured; width: how many children of a node, one where the rule takes
        chains alone.
    """
    (tree, *_) = compatible_trees(
        [Tree.comb((width,) * depth), Tree.chain(depth)],
        rule,
        target.model.config.max_position_embeddings,
    )
    program = Program(method_of(draft, tree, rule), target.model, target.params, work)
    outputs = [program.write(batch, temperature) for batch in range(len(work.batches))]
    for output in outputs:
        check_finite(output)
    return np.concatenate([np.asarray(output.accepted_by_rank) for output in outputs])


def shares_of(accepted: np.ndarray) -> np.ndarray:
    """`[D, W]` from `[A, W]` rounds that accepted each child of the first node of each level."""
    found = np.zeros((len(accepted) - 1, accepted.shape[1]))
    for depth in range(len(found)):
        trials = accepted[depth, 0]
        believed = trials >= TRIALS or not depth
        found[depth] = accepted[depth + 1] / max(trials, 1) if believed else found[depth - 1]
    return found


def compatible_trees(trees: Sequence[Tree], rule: Rule, context: int) -> list[Tree]:
    """Those that a rule takes from a drafter whose candidates it draws, and that fit a context."""
    found = []
    for tree in trees:
        try:
            rule.check_compatible(tree, SAMPLED)
        except ValueError:
            continue
        if tree.size <= context:
            found.append(tree)
    return found


def method_of(draft: Draft, tree: Tree, rule: Rule, name: str = "draft") -> Method:
    """Speculation by a draft over a tree."""
    return Method(name, draft.drafter(tree), draft.params, rule, draft.reading)


def _to_depth(shares: np.ndarray, depth: int) -> np.ndarray:
    more = max(depth - len(shares), 0)
    return np.concatenate([shares, np.repeat(shares[-1:], more, axis=0)])[:depth]
