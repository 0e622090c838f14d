"""How often guesses are kept: measured, given, or assumed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jspec.plan.trees import check_acceptance

# Rounds that a share which nobody counted is taken to stand for, where an interval is asked for.
BELIEVED = 100


@dataclass(frozen=True, eq=False)
class Acceptance:
    """How often the child of each rank of a kept node is kept, at each depth.

    Attributes:
      shares: `[D, W]` of all texts; texts: `[R, D, W]` of each of R texts, which differ.
      trials: `[D]` kept nodes of which that was counted.
      source: where the numbers come from, in words.
    """

    shares: np.ndarray
    texts: np.ndarray
    trials: np.ndarray
    source: str

    def __post_init__(self) -> None:
        check_acceptance(self.shares)

    def to_depth(self, depth: int) -> np.ndarray:
        """`[depth, W]`; past what is known each level is as the last one."""
        return _to_depth(self.shares, depth)

    def of_texts(self, depth: int) -> list[np.ndarray]:
        """The same of each text."""
        return [_to_depth(shares, depth) for shares in self.texts]

    def draws(self, depth: int, count: int, seed: int = 0) -> list[np.ndarray]:
        """What else the shares might be, given how often they were counted: each row drawn from
        the Dirichlet law around it."""
        rng = np.random.default_rng(seed)
        shares = self.to_depth(depth)
        trials = _to_depth(self.trials[:, None], depth)[:, 0]
        rest = np.maximum(1 - shares.sum(axis=1, keepdims=True), 0)
        # A share of 0 in as many trials is less than one of one.
        weights = np.concatenate([shares, rest], axis=1) * trials[:, None] + 0.5
        gammas = rng.gamma(weights, size=(count, *weights.shape))
        return list((gammas / gammas.sum(axis=-1, keepdims=True))[..., :-1])


def counted(kept: np.ndarray, source: str) -> Acceptance:
    """What rounds kept, `[R, A, W]` of each text: the root's first, then by depth and rank."""
    total = kept.sum(axis=0)
    trials = np.maximum(total[:-1, 0], 1)
    shares = total[1:] / trials[:, None]
    # A text that never came so deep is as all are.
    mine = np.maximum(kept[:, :-1, :1], 1)
    texts = np.where(kept[:, :-1, :1] > 0, kept[:, 1:] / mine, shares)
    return Acceptance(shares, texts, trials, source)


def stated(shares: Sequence[float] | Sequence[Sequence[float]], source: str) -> Acceptance:
    """What somebody says: one share a depth, or one for each rank as well."""
    try:
        found = np.array(shares, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"acceptance={shares!r}: give numbers from 0 to 1, one a depth") from error
    found = found[:, None] if found.ndim == 1 else found
    check_acceptance(found)
    return Acceptance(found, found[None], np.full(len(found), BELIEVED), source)


def read_acceptance(text: str) -> Acceptance:
    """`0.8`, `0.8,0.7,0.6` (the last goes on), or a JSON file with a list, or one under the name
    `acceptance` as `tree=auto` keeps it."""
    if text.endswith(".json"):
        file = Path(text)
        if not file.is_file():
            raise FileNotFoundError(f"acceptance={text!r}: no such file")
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"acceptance={text!r} is not JSON ({error})") from error
        if isinstance(told, dict):
            if "acceptance" not in told:
                raise ValueError(f"acceptance={text!r}: the object has no field 'acceptance'")
            told = told["acceptance"]
        if not isinstance(told, list):
            raise ValueError(f"acceptance={text!r} holds {told!r}: give a list, one share a depth")
        return stated(told, f"read from {file.name}")
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(
            f"acceptance={text!r}: give numbers from 0 to 1 with commas, one a depth, or a JSON "
            "file"
        ) from None
    return stated(numbers, f"stated ({text})")


def _to_depth(shares: np.ndarray, depth: int) -> np.ndarray:
    more = max(depth - len(shares), 0)
    return np.concatenate([shares, np.repeat(shares[-1:], more, axis=0)])[:depth]
