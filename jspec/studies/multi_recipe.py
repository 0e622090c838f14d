"""The multi-candidate study, as data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jspec.studies.recipe import Study

# Exact rules that follow a chain, and those that follow any tree.
ON_CHAINS = "coupled", "token_level", "block"
ON_TREES = "coupled", "without_replacement", "with_replacement", "traversal"
# A decider that needs dice which draft and target share, and one that counts levels kept.
MARGIN, RUNNING = "margin", "running"
DECIDING = "deciders", "deciders elsewhere"


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

    @property
    def is_chain(self) -> bool:
        """Whether it is plain chain speculation."""
        return self.tree.startswith(("chain:", "fork:1x")) and not self.stop

    @property
    def kind(self) -> str:
        """What it is one of, of which the best is taken."""
        return f"{self.rule}, {'stopping' if self.stop else 'chain' if self.is_chain else 'tree'}"


@dataclass(frozen=True, kw_only=True)
class MultiCandidateStudy(Study):
    """Many candidates, as arXiv 2409.10644 has them and exact, with and without decisions to stop.

    Attributes:
      baseline: the tree of multi-candidate speculation, decided by rejection without replacement.
      depths: of chains, and of pairs of chains for the published method; widths: of forks,
        which are `fork` deep; trees: others; `static` ones the published method takes too, whose
        first level are roots.
      equal: trees of as many nodes, each under every rule that takes it.
      deep: the tree along which deciders stop, each at every one of `thresholds`; at the last
        they stop along `wide` too, and under other rules.
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
    trees: tuple[str, ...] = ("2x1", "3x2x1", "4x2x2x1")
    static: tuple[str, ...] = ("2x2x1", "2x4x3x1x1")
    equal: tuple[str, ...] = ("chain:8", "comb:2x2x2x2", "fork:2x4", "fork:4x2")
    deep: str = "chain:8"
    wide: str = "2x1x1x1"
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
        self._check_each(
            "depths", "widths", "trees", "static", "equal", "deciders", "thresholds"
        )  # fmt: skip
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

    def stops(self, rule: str, thresholds: Sequence[float]) -> list[str]:
        """What can decide under a rule, at each threshold; a network at its own too."""
        cheap = [one for one in self.deciders if rule == "coupled" or one != MARGIN]
        network = [self.decision] if self.decision else []
        return [f"{one}:{limit:g}" for one in (*cheap, *network) for limit in thresholds] + network

    def published(self) -> list[Way]:
        """The published method by its width, and along its static trees."""
        return [Way("lossy", one) for one in (*self._forks(), *self.static)]

    def groups(self) -> dict[str, list[Way]]:
        """Ways that are timed in turns, by what they are compared for."""
        forks = self._forks()
        pairs = [f"fork:2x{depth}" for depth in self.depths if depth > 1]
        return {
            "chains": [Way(rule, f"chain:{n}") for rule in ON_CHAINS for n in self.depths],
            "trees": [
                *(Way(rule, one) for rule in ON_TREES for one in self.trees),
                *(Way(rule, one) for rule in ON_TREES[:2] for one in self.static),
            ],
            "forks": [Way("coupled", one) for one in forks],
            "equal nodes": [way for one in self.equal for way in _under_every_rule(one)],
            "published": [
                *dict.fromkeys((*self.published(), *(Way("lossy", one) for one in pairs))),
                # Of every level a running share learns, and the first is the target's own.
                *(
                    Way("lossy", (*forks, *pairs)[-1], stop)
                    for stop in self.stops("lossy", self.thresholds)
                    if not stop.startswith(RUNNING)
                ),
            ],
            DECIDING[0]: [
                *self._deciding("coupled", self.deep, self.thresholds),
                *self._deciding("token_level", self.deep, self.thresholds),
            ],
            DECIDING[1]: [
                *self._deciding("block", self.deep, self.thresholds[-1:]),
                *self._deciding("coupled", self.wide, self.thresholds[-1:]),
                *self._deciding("traversal", self.wide, self.thresholds[-1:]),
            ],
        }

    def _forks(self) -> list[str]:
        return [f"fork:{width}x{self.fork}" for width in self.widths]

    def _deciding(self, rule: str, tree: str, thresholds: Sequence[float]) -> list[Way]:
        return [Way(rule, tree, stop) for stop in ("", *self.stops(rule, thresholds))]


def _under_every_rule(tree: str) -> Iterator[Way]:
    """Those that follow such a tree; the published one follows forks."""
    rules = ON_CHAINS if tree.startswith("chain:") else ON_TREES
    yield from (Way(rule, tree) for rule in rules)
    if tree.startswith("fork:"):
        yield Way("lossy", tree)
