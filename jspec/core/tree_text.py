"""Candidate trees as people write them: `chain:5`, `4x2x2x1`, `fork:4x5`, `comb:3x2x2`,
`dynamic:4x4x12`, a file."""

import json
import re
from itertools import accumulate
from operator import mul
from pathlib import Path

from jspec.core.tree import DynamicTree, Tree

LONGEST_PATH = 255  # longer names some systems do not even look up
MOST_DRAFTED = 8  # nodes that a dynamic tree may draft for each place of the context
FORMS = (
    "write chain:5, 4x2x2x1 (children of a node, level by level), fork:4x5 (chains and their "
    "length), comb:3x2x2 (children of the first node of each level), dynamic:4x4x12 (EAGLE-2: "
    "children of as many nodes of a level, levels, nodes kept with the root), JSON paths "
    "[[0, 0], [1]], or a file of them; auto is also taken for a draft"
)


def read_tree(text: str, context: int) -> Tree | DynamicTree:
    """The tree that `text` describes, root included no larger than `context`."""
    if sizes := re.fullmatch(r"dynamic:(\d{1,6})x(\d{1,6})x(\d{1,6})", text, re.ASCII):
        width, depth, nodes = map(int, sizes.groups())
        return _dynamic(text, width, depth, nodes, context)
    widths = _widths(text)
    if widths and text.startswith("comb:"):
        _check_size(text, 1 + sum(widths), context)
        return Tree.comb(widths)
    if widths:
        _check_size(text, 1 + sum(accumulate(widths, mul)), context)
        return Tree.branching(widths)
    tree = _read_paths(text)
    _check_size(text, tree.size, context)
    return tree


def write_tree(tree: Tree | DynamicTree) -> str:
    """What `read_tree` reads as `tree`, in the shortest form."""
    if isinstance(tree, DynamicTree):
        return f"dynamic:{tree.width}x{tree.depth}x{tree.nodes}"
    widths = [tree.children(depth) for depth in range(tree.depth)]
    text = "x".join(map(str, widths))
    if tree == Tree.chain(tree.depth):
        return f"chain:{tree.depth}"
    if tree == Tree.branching(widths):
        return text
    if tree == Tree.comb(widths):
        return f"comb:{text}"
    paths = {0: []}
    for node, parent in enumerate(tree.parents[1:], start=1):
        paths[node] = [*paths[parent], int(tree.ranks[node])]
    return json.dumps([paths[node] for node in range(tree.size) if not tree.inner[node]])


def _dynamic(text: str, width: int, depth: int, nodes: int, context: int) -> DynamicTree:
    _check_size(text, nodes, context)
    try:
        dynamic = DynamicTree(width, depth, nodes)
    except ValueError as error:
        raise ValueError(f"tree={text!r}: {error}") from None
    if dynamic.drafted > MOST_DRAFTED * context:
        raise ValueError(
            f"tree={text!r} drafts {dynamic.drafted} nodes to keep {nodes} of: no more than "
            f"{MOST_DRAFTED * context}, {MOST_DRAFTED} for each place of the target's context"
        )
    return dynamic


def _check_size(text: str, size: int, context: int) -> None:
    """Before anything of that size is built."""
    if size < 2 or size > context:
        raise ValueError(
            f"tree={text!r} has {size} nodes with its root: a tree has at least one candidate and "
            f"no more nodes than the target's context of {context}"
        )


def _widths(text: str) -> tuple[int, ...] | None:
    """Children a node, level by level; None when the text must be the name of a file."""
    form = r"(chain:|comb:|fork:(?=\d+x\d+$))?(\d{1,6}(?:x\d{1,6}){0,99})"
    shape = re.fullmatch(form, text, re.ASCII)
    if shape is None or (shape[1] == "chain:" and "x" in shape[2]):
        return None
    numbers = tuple(map(int, shape[2].split("x")))
    if 0 in numbers:
        raise ValueError(f"tree={text!r}: every number in it must be at least 1")
    if shape[1] == "chain:":
        return (1,) * numbers[0]
    if shape[1] == "fork:":
        return (numbers[0],) + (1,) * (numbers[1] - 1)
    return numbers


def _read_paths(text: str) -> Tree:
    file = Path(text)
    inline = text.lstrip().startswith("[")
    if not inline and (len(text) > LONGEST_PATH or "\0" in text or not file.is_file()):
        raise ValueError(f"tree={text[:LONGEST_PATH]!r} is no tree and no file: {FORMS}")
    try:
        paths = json.loads(text if inline else file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tree={text!r} is not JSON ({error}): {FORMS}") from None
    whole = isinstance(paths, list) and all(
        isinstance(path, list) and all(type(rank) is int for rank in path) for path in paths
    )
    if not whole:
        raise ValueError(f"tree={text!r} holds no list of paths: {FORMS}")
    try:
        return Tree.from_paths(paths)
    except ValueError as error:
        raise ValueError(f"tree={text!r}: {error}") from None
