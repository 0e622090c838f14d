"""The shapes of candidate trees: static ones with their tables, and the size of dynamic ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

NO_PARENT = NO_NODE = -1


@dataclass(frozen=True)
class Tree:
    """A static tree, given by the parent of every node; node 0 is the root, whose parent is -1.

    Nodes are in breadth-first order, so the tree cut after any level is a prefix of every table.

    >>> Tree.chain(5), Tree.branching((4, 2, 1)), Tree.fork(4, 5), Tree.comb((3, 2, 2))

    Raises `ValueError` for a node that does not come after its parent, or is out of order.
    """

    parents: tuple[int, ...] = (NO_PARENT,)

    def __post_init__(self) -> None:
        if not self.parents or self.parents[0] != NO_PARENT:
            raise ValueError(f"parents={self.parents}: node 0 is the root, its parent is -1")
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise ValueError(
                    f"parents[{node}]={parent}: a parent comes before its children and a tree has "
                    f"no cycle, so it is in 0..{node - 1}"
                )
        for before, after in pairwise(self.parents[1:]):
            if after < before:
                raise ValueError(
                    f"parents={self.parents}: not breadth-first, the children of node {after} "
                    f"come after those of node {before}; Tree.from_paths puts them in order"
                )

    @classmethod
    def chain(cls, depth: int) -> "Tree":
        """One candidate a level."""
        if depth < 1:
            raise ValueError(f"depth={depth}: a chain is at least 1 deep")
        return cls.branching((1,) * depth)

    @classmethod
    def branching(cls, widths: Sequence[int]) -> "Tree":
        """Every node of level d has `widths[d]` children."""
        parents, level = [NO_PARENT], [0]
        for width in widths:
            if width < 1:
                raise ValueError(f"widths={tuple(widths)}: every level has at least one child")
            parents += [node for node in level for _ in range(width)]
            level = list(range(len(parents) - len(level) * width, len(parents)))
        return cls(tuple(parents))

    @classmethod
    def fork(cls, width: int, depth: int) -> "Tree":
        """`width` chains of `depth` from the root."""
        if width < 1 or depth < 1:
            raise ValueError(f"width={width}, depth={depth}: a fork is at least 1 wide and 1 deep")
        return cls.branching((width,) + (1,) * (depth - 1))

    @classmethod
    def comb(cls, widths: Sequence[int]) -> "Tree":
        """A chain: of the `widths[d]` nodes of level d + 1 only the first has children."""
        parents, first = [NO_PARENT], 0
        for width in widths:
            if width < 1:
                raise ValueError(f"widths={tuple(widths)}: every level has at least one child")
            parents += [first] * width
            first = len(parents) - width
        return cls(tuple(parents))

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> "Tree":
        """The tree of all prefixes of `paths`; a path lists the rank of the child at each level.

        `[(0, 0), (1,)]`: the root's best child with its own best child, and the second best child.
        """
        nodes = {tuple(path[:cut]) for path in paths for cut in range(len(path) + 1)} | {()}
        ordered = sorted(nodes, key=lambda path: (len(path), path))
        for path in ordered:
            if path and path[-1] > 0 and path[:-1] + (path[-1] - 1,) not in nodes:
                raise ValueError(
                    f"path {path}: child {path[-1]} is there and child {path[-1] - 1} is not"
                )
            if path and path[-1] < 0:
                raise ValueError(f"path {path}: ranks count from 0")
        index = {path: node for node, path in enumerate(ordered)}
        return cls(tuple(index[path[:-1]] if path else NO_PARENT for path in ordered))

    @property
    def size(self) -> int:
        """N, the root included."""
        return len(self.parents)

    @cached_property
    def depths(self) -> np.ndarray:
        """`[N]`, the root's is 0."""
        depths = np.zeros(self.size, np.int32)
        for node, parent in enumerate(self.parents[1:], start=1):
            depths[node] = depths[parent] + 1
        return depths

    @property
    def depth(self) -> int:
        """The levels below the root."""
        return int(self.depths[-1])

    @property
    def path_length(self) -> int:
        """A, the nodes on the longest path."""
        return self.depth + 1

    @cached_property
    def ranks(self) -> np.ndarray:
        """`[N]`, each node's place among its siblings; the root's is 0."""
        seen: dict[int, int] = {}
        ranks = np.zeros(self.size, np.int32)
        for node, parent in enumerate(self.parents):
            ranks[node] = seen.get(parent, 0)
            seen[parent] = ranks[node] + 1
        return ranks

    @cached_property
    def mask(self) -> np.ndarray:
        """`[N, N]` bool: whether a row sees a column: its ancestor or itself."""
        mask = np.eye(self.size, dtype=bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            mask[node] |= mask[parent]
        return mask

    @cached_property
    def level_ends(self) -> tuple[int, ...]:
        """A numbers: how many nodes the tree has if it is cut after each level."""
        return tuple(int(np.sum(self.depths <= depth)) for depth in range(self.path_length))

    def level(self, depth: int) -> slice:
        """The nodes of one level."""
        return slice(self.level_ends[depth - 1] if depth else 0, self.level_ends[depth])

    @cached_property
    def inner(self) -> np.ndarray:
        """`[N]` bool: the nodes that have children, which are all that a draft has to run."""
        inner = np.zeros(self.size, bool)
        inner[list(self.parents[1:])] = True
        return inner

    @property
    def rows(self) -> int:
        """How many nodes a draft runs: the inner ones."""
        return int(self.inner.sum())

    @cached_property
    def offspring(self) -> np.ndarray:
        """`[N, W]` every node's children in the order of their ranks, filled up with -1."""
        table = np.full((self.size, self.width), NO_NODE, np.int32)
        table[list(self.parents[1:]), self.ranks[1:]] = np.arange(1, self.size)
        return table

    def children(self, depth: int) -> int:
        """The most children that a node of one level has; 0 at the last level."""
        if depth == self.depth:
            return 0
        return int(self.ranks[self.level(depth + 1)].max()) + 1

    @property
    def width(self) -> int:
        """W, the most children of a node."""
        return int(self.ranks.max()) + 1

    def cut(self, depth: int) -> "Tree":
        """The first levels, down to `depth`: a prefix of all tables."""
        if not 0 <= depth <= self.depth:
            raise ValueError(f"depth={depth}: the tree is {self.depth} deep, cut it at 0 to that")
        nodes = self.level_ends[depth]
        cut = Tree(self.parents[:nodes])
        # The cached tables serve the cut tree as well.
        vars(cut).update(mask=self.mask[:nodes, :nodes], depths=self.depths[:nodes])
        return cut


@dataclass(frozen=True)
class DynamicTree:
    """The size of a dynamic tree (EAGLE-2, section 4): its shape differs for every root.

    At each of `depth` levels the `width` best nodes are expanded with `width` children each; of all
    that are drafted the best are kept, `nodes` with the root.

    >>> DynamicTree(width=4, depth=4, nodes=12)

    Raises `ValueError` for a size that cannot be.
    """

    width: int
    depth: int
    nodes: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"width={self.width}, depth={self.depth}: a tree is at least 1 wide and 1 deep"
            )
        if not self.depth < self.nodes <= self.drafted:
            raise ValueError(
                f"nodes={self.nodes}: with the root a path of {self.depth} has {self.depth + 1} "
                f"nodes, and {self.width} children of {self.width} nodes a level make "
                f"{self.drafted}: keep at least a path, and at most what is drafted"
            )

    @property
    def drafted(self) -> int:
        """G + 1, the nodes there are to choose from, the root included."""
        return 1 + self.width + (self.depth - 1) * self.width**2

    @property
    def size(self) -> int:
        """N, the root included."""
        return self.nodes

    @property
    def path_length(self) -> int:
        """A, the nodes on the longest possible path."""
        return self.depth + 1

    @property
    def rows(self) -> int:
        """How many nodes a draft runs: those that are expanded."""
        return 1 + (self.depth - 1) * self.width

    def children(self, depth: int) -> int:
        """W, how many children the nodes of a level have; 0 at the last level."""
        return self.width if depth < self.depth else 0
