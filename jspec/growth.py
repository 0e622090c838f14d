"""The shape of a tree that grows: how much of it is made and kept, and not which nodes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """Trees that grow in other places for every root (EAGLE-2, section 4), all of one size.

    At each of `depth` levels the `width` likeliest nodes get `width` children each; of all that
    were made the likeliest are kept, `nodes` with the root. Raises `ValueError` for a size that
    cannot be.
    """

    width: int
    depth: int
    nodes: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"width={self.width}, depth={self.depth}: a tree is at least 1 wide and 1 deep"
            )
        if not self.depth < self.nodes <= self.made:
            raise ValueError(
                f"nodes={self.nodes}: with the root a path of {self.depth} has {self.depth + 1} "
                f"nodes, and {self.width} children of {self.width} nodes a level make {self.made}: "
                "keep at least a path, and at most what is made"
            )

    @property
    def made(self) -> int:
        """G + 1, the nodes there are to choose from, the root included."""
        return 1 + self.width + (self.depth - 1) * self.width**2

    @property
    def size(self) -> int:
        """N, the root included."""
        return self.nodes

    @property
    def path_length(self) -> int:
        """A, the nodes on the longest path that may grow."""
        return self.depth + 1

    @property
    def rows(self) -> int:
        """How many nodes a draft runs: those that get children."""
        return 1 + (self.depth - 1) * self.width

    def children(self, depth: int) -> int:
        """W, how many children the nodes of a level get; 0 at the last level."""
        return self.width if depth < self.depth else 0
