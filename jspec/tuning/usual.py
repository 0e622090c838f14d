"""The usual tree of a draft, where nothing was measured on this machine.

It is taken at once, so that the first text waits for no measurement; `jspec.tuning.tune` finds the
fastest one. The table below rests on these measurements, tokens/s over plain decoding, the zoo's
drafts, batch 1:

* A model on two CPU cores: at T=0 1.42 with chain:3 and 1.33 with comb:2x1; at T=0.7 a chain and a
  tree of four nodes are equal; at T=1 1.21 with comb:2x1 and 1.16 with chain:3. More rows are
  expensive there: a pass over 45 nodes costs as much as five over one.
* A head on two CPU cores: 1.54 with chain:7 at T=0, and no gain from long chains or large trees
  above.
* Prompt lookup on two CPU cores: 2.76 with chain:7 at T=0; at T=1 0.68, with an acceptance length
  of 1.2, so that a short chain loses the least.
* A model on one GPU (H100): 4x2x2x1 is the fastest at T=0, 0.7 and 1 (1.40, 1.17, 1.10, where
  chain:3 has 1.25, 1.03, 0.99), for rows are nearly free. TPUs read the weights once for dozens of
  rows as well, so that they take the same trees.
"""

LOOKUP = "lookup"
"""The kind of draft that needs no model."""
DYNAMIC_TREE = "dynamic:4x4x12"
"""Under rules that take dynamic trees alone."""
EARLY_STOPPING_TREE = "chain:8"
"""Where something stops drafting early: levels to spare, for the fastest tree is that of a draft
that never stops."""
LOSSY_TREE = "fork:2x4"
"""Under the published lossy method."""
FALLBACKS = ("chain:3", DYNAMIC_TREE, LOSSY_TREE)
"""Tried in turn where a rule refuses the usual tree."""

_WIDE = ((0.0, "4x2x2x1"),)
_LOOKUP_TREES = ((0.0, "chain:7"), (0.25, "chain:3"))
# By kind of draft and platform: from which temperature on which tree.
_TREES = {
    ("model", "cpu"): ((0.0, "chain:3"), (0.85, "comb:2x1")),
    ("head", "cpu"): ((0.0, "chain:7"), (0.25, "chain:3")),
    (LOOKUP, "cpu"): _LOOKUP_TREES,
    ("model", "gpu"): _WIDE,
    ("head", "gpu"): _WIDE,
    (LOOKUP, "gpu"): _LOOKUP_TREES,
    ("model", "tpu"): _WIDE,
    ("head", "tpu"): _WIDE,
    (LOOKUP, "tpu"): _LOOKUP_TREES,
}


def usual_tree(draft_kind: str, platform: str, temperature: float) -> str:
    """The tree for a kind of draft, a kind of device and a temperature, as `read_tree` reads it.

    >>> usual_tree("model", "cpu", 0.0), usual_tree("model", "gpu", 1.0)
    ('chain:3', '4x2x2x1')

    Args:
      draft_kind: `model`, `head` or `lookup`.
      platform: `cpu`, `gpu` or `tpu`; other accelerators are treated as a GPU.

    Raises `ValueError` for another kind of draft.
    """
    kinds = list(dict.fromkeys(kind for kind, _ in _TREES))
    if draft_kind not in kinds:
        raise ValueError(f"draft_kind={draft_kind!r}: give one of {', '.join(kinds)}")
    places = _TREES.get((draft_kind, platform), _TREES[draft_kind, "gpu"])
    return [tree for start, tree in places if temperature >= start][-1]
