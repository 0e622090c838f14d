"""The multi-candidate study as data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jspec.studies.common.recipe import LOSSY, DecodingStudy

# Exact rules that follow a chain, and those that follow any tree.
ON_CHAINS = "coupled", "token_level", "block"
ON_TREES = "coupled", "without_replacement", "with_replacement", "traversal"
# A stopping rule that needs noise which draft and target share, and one that counts levels.
MARGIN, RUNNING = "margin", "running"
STOPPING = "stopping rules", "stopping rules elsewhere"


class Decoding(NamedTuple):
    """A method: a rule over a tree, and what stops drafting early, all as people write them;
    `bucketed` is whether the target then runs no more than was drafted."""

    rule: str
    tree: str
    stop: str = ""
    bucketed: bool = True

    @property
    def name(self) -> str:
        """What it is called in tables."""
        words = self.rule, self.tree, self.stop, "" if self.bucketed else "unbucketed"
        return " ".join(filter(None, words))

    @property
    def is_chain(self) -> bool:
        """Whether it is plain chain speculation."""
        return self.tree.startswith(("chain:", "fork:1x")) and not self.stop

    @property
    def kind(self) -> str:
        """What it is one of, of which the best is taken."""
        return f"{self.rule}, {'stopping' if self.stop else 'chain' if self.is_chain else 'tree'}"


@dataclass(frozen=True, kw_only=True)
class MultiCandidateStudy(DecodingStudy):
    """Many candidates, as arXiv 2409.10644 has them and exact, with and without decisions to stop.

    Attributes:
      baseline: the tree of multi-candidate speculation, verified by rejection without replacement.
      depths: of chains, and of pairs of chains for the published method; widths: of forks, which
        are `fork` deep; trees: others; `static` ones the published method takes too, whose first
        level are roots.
      equal: trees of as many nodes, each under every rule that takes it.
      deep: the tree along which `stops` end drafting, each at every one of `thresholds`; at the
        last they end it along `wide` too, and under other rules.
      decision: a folder of `jspec decide`, or nothing.
      draws: texts of three tokens by which a distribution is measured, on a model of few tokens.
    """

    name: str = "multi_candidate"
    target: str = "zoo:target"
    draft: str = "zoo:distilled"
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    baseline: str = "4x2x2x1"
    depths: tuple[int, ...] = (1, 2, 3, 5, 8)
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    fork: int = 4
    trees: tuple[str, ...] = ("2x1", "3x2x1", "4x2x2x1")
    static: tuple[str, ...] = ("2x2x1", "2x4x3x1x1")
    equal: tuple[str, ...] = ("chain:8", "comb:2x2x2x2", "fork:2x4", "fork:4x2")
    deep: str = "chain:8"
    wide: str = "2x1x1x1"
    stops: tuple[str, ...] = ("confidence", "entropy", "margin", "running")
    thresholds: tuple[float, ...] = (0.2, 0.5)
    decision: str = ""
    prompts: int = 2
    max_new_tokens: int = 128
    draws: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("draws")
        self._check_distinct("depths", "widths", "trees", "static", "equal", "stops", "thresholds")
        if self.fork < 2:
            raise ValueError(
                f"fork={self.fork}: the published method drafts below its roots: give at least 2"
            )
        self._check_counts("depths", "widths")
        for threshold in self.thresholds:
            if not 0 <= threshold <= 1:
                raise ValueError(f"thresholds={threshold}: must lie between 0 and 1")

    @property
    def mcsd(self) -> Decoding:
        """What all is compared with: multi-candidate speculation, as its paper has it."""
        return Decoding("without_replacement", self.baseline)

    def stops_under(self, rule: str, thresholds: Sequence[float]) -> list[str]:
        """What can stop drafting under a rule, at each threshold; a network at its own too."""
        cheap = [one for one in self.stops if rule == "coupled" or one != MARGIN]
        network = [self.decision] if self.decision else []
        return [f"{one}:{limit:g}" for one in (*cheap, *network) for limit in thresholds] + network

    def published(self) -> list[Decoding]:
        """The published method by its width, and along its static trees."""
        return [Decoding(LOSSY, one) for one in (*self._forks(), *self.static)]

    def groups(self) -> dict[str, list[Decoding]]:
        """Methods that are timed in turns, by what they are compared for."""
        forks = self._forks()
        pairs = [f"fork:2x{depth}" for depth in self.depths if depth > 1]
        return {
            "chains": [Decoding(rule, f"chain:{n}") for rule in ON_CHAINS for n in self.depths],
            "trees": [
                *(Decoding(rule, one) for rule in ON_TREES for one in self.trees),
                *(Decoding(rule, one) for rule in ON_TREES[:2] for one in self.static),
            ],
            "forks": [Decoding("coupled", one) for one in forks],
            "equal nodes": [method for one in self.equal for method in _under_every_rule(one)],
            "published": [
                *dict.fromkeys((*self.published(), *(Decoding(LOSSY, one) for one in pairs))),
                # A running share learns from every level, and the first is the target's own.
                *(
                    Decoding(LOSSY, (*forks, *pairs)[-1], stop)
                    for stop in self.stops_under(LOSSY, self.thresholds)
                    if not stop.startswith(RUNNING)
                ),
            ],
            STOPPING[0]: [
                *self._stopping("coupled", self.deep, self.thresholds),
                *self._stopping("token_level", self.deep, self.thresholds),
            ],
            STOPPING[1]: [
                *self._stopping("block", self.deep, self.thresholds[-1:]),
                *self._stopping("coupled", self.wide, self.thresholds[-1:]),
                *self._stopping("traversal", self.wide, self.thresholds[-1:]),
            ],
        }

    def _forks(self) -> list[str]:
        return [f"fork:{width}x{self.fork}" for width in self.widths]

    def _stopping(self, rule: str, tree: str, thresholds: Sequence[float]) -> list[Decoding]:
        return [Decoding(rule, tree, stop) for stop in ("", *self.stops_under(rule, thresholds))]


def _under_every_rule(tree: str) -> Iterator[Decoding]:
    """Those that follow such a tree; the published one follows forks."""
    rules = ON_CHAINS if tree.startswith("chain:") else ON_TREES
    yield from (Decoding(rule, tree) for rule in rules)
    if tree.startswith("fork:"):
        yield Decoding(LOSSY, tree)
