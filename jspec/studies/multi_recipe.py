"""The multi-candidate study, as data."""

from dataclasses import dataclass
from typing import NamedTuple

from jspec.studies.recipe import Study


class Way(NamedTuple):
    """A way to guess and to keep: a rule over a tree, and what stops drafting early, all as people
    write them; `sliced` is whether the target then runs no more than was drafted."""

    rule: str
    tree: str
    stop: str = ""
    sliced: bool = True

    @property
    def name(self) -> str:
        """What it is called in tables."""
        words = self.rule, self.tree, self.stop, "" if self.sliced else "unsliced"
        return " ".join(filter(None, words))


@dataclass(frozen=True, kw_only=True)
class MultiCandidateStudy(Study):
    """Many candidates, as arXiv 2409.10644 has them and exact, with and without decisions to stop.

    Attributes:
      baseline: the tree of multi-candidate speculation, decided by rejection without replacement.
      depths: of chains; widths: of forks, which are `fork` deep; trees: k-ary ones, of which the
        published method takes `static`, whose first level are roots.
      deep: the tree along which deciders stop, each at every one of `thresholds`.
      decision: a folder of `jspec decide`, or nothing.
      prompts, prompt, tokens, repetitions: what is written, and how often.
      draws: texts of three tokens by which a law is measured, on a model of few tokens.
    """

    name: str = "multi_candidate"
    target: str = "zoo:target"
    draft: str = "zoo:distilled"
    served: tuple[float, ...] = (0.0, 0.7, 1.0)
    baseline: str = "4x2x2x1"
    depths: tuple[int, ...] = (1, 2, 3, 5, 8)
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    fork: int = 4
    trees: tuple[str, ...] = ("3x2x1", "4x2x2x1")
    static: tuple[str, ...] = ("2x2x1", "2x4x3x1x1")
    deep: str = "chain:8"
    deciders: tuple[str, ...] = ("confidence", "entropy", "margin", "running")
    thresholds: tuple[float, ...] = (0.2, 0.5)
    decision: str = ""
    prompts: int = 2
    prompt: int = 64
    tokens: int = 128
    repetitions: int = 3
    draws: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("prompts", "prompt", "tokens", "repetitions", "draws")
        self._check_each("depths", "widths", "trees", "static", "deciders", "thresholds")
        if self.fork < 2:
            raise ValueError(
                f"fork={self.fork}: the published method guesses below its roots: give at least 2"
            )
        for field in ("depths", "widths"):
            if min(getattr(self, field)) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: each is at least 1")
        for threshold in self.thresholds:
            if not 0 <= threshold <= 1:
                raise ValueError(f"thresholds={threshold}: must lie between 0 and 1")

    @property
    def mcsd(self) -> Way:
        """What all is held against: multi-candidate speculation as it was."""
        return Way("without_replacement", self.baseline)

    def stops(self) -> list[str]:
        """What decides, at each threshold; a network at its own."""
        cheap = [f"{name}:{limit:g}" for name in self.deciders for limit in self.thresholds]
        return [*cheap, *([self.decision] if self.decision else [])]

    def groups(self) -> dict[str, list[Way]]:
        """Ways that are timed in turns, by what they are compared for."""
        forks = [f"fork:{width}x{self.fork}" for width in self.widths]
        chains = [f"chain:{depth}" for depth in self.depths]
        rejections = "token_level", "block"
        ways = "coupled", "without_replacement", "with_replacement", "traversal"
        return {
            "chains": [Way(rule, one) for rule in ("coupled", *rejections) for one in chains],
            "trees": [
                *(Way(rule, one) for rule in ways for one in self.trees),
                *(Way(rule, one) for rule in ways[:2] for one in self.static),
            ],
            "forks": [Way("coupled", one) for one in forks],
            "published": [
                *(Way("lossy", one) for one in (*forks, *self.static)),
                Way("lossy", forks[-1], self.stops()[0]),
            ],
            "deciders": [
                Way("coupled", self.deep),
                *(Way("coupled", self.deep, stop) for stop in self.stops()),
                Way("token_level", self.deep),
                *(Way("token_level", self.deep, stop) for stop in self.stops() if _alone(stop)),
            ],
        }


def _alone(stop: str) -> bool:
    """Whether it decides without the dice that the coupled rule shares with the draft."""
    return not stop.startswith("margin")
