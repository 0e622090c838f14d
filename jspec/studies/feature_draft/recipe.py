"""The feature-draft study as data: FSPAD's ablation, and the heads that it trains."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax

from jspec.config import ModelConfig
from jspec.core.tree import DynamicTree, Tree
from jspec.core.tree_text import read_tree
from jspec.studies.common.recipe import SHORT_TRAINING, TrainingStudy
from jspec.training.recipe import Distillation, FeatureHead, Text
from jspec.training.student import make_head

ZOO = replace(
    SHORT_TRAINING,
    name="feature_draft",
    draft="",
    head=FeatureHead(intermediate_size=192, num_attention_heads=4, num_key_value_heads=4),
    text=Text(weight=0.4),
    teacher_data=replace(SHORT_TRAINING.teacher_data, weight=0.6),
    batch_size=4,
    learning_rate=2e-3,
)

# Heads of FSPAD's ablation, and EAGLE's with as many parameters as FSPAD's has.
EAGLE, FSPAD, WIDE = "eagle", "fspad", "eagle_wide"
KINDS = (EAGLE, "sampling_alone", "alignment_alone", FSPAD, WIDE)


@dataclass(frozen=True, kw_only=True)
class FeatureDraftStudy(TrainingStudy):
    """FSPAD's ablation (arXiv 2408.15562): EAGLE's head, each of FSPAD's two changes alone, both,
    and EAGLE's head with as many parameters as FSPAD's. All learn from the same teacher-generated
    data; a seed has an order and first parameters of its own. The kind of `training.head` is the
    study's.

    Attributes:
      kinds: of `KINDS`, `eagle` and `fspad` among them.
      tree, dynamic_tree: a static and a dynamic tree of as many nodes.
      drafts: small models that are measured beside the heads; draft_trees: along which each drafts.
    """

    name: str = "feature_draft"
    training: Distillation = ZOO
    prompts: int = 48
    kinds: tuple[str, ...] = KINDS
    tree: str = "comb:4x3x2x2"
    dynamic_tree: str = "dynamic:4x4x12"
    drafts: tuple[str, ...] = ("zoo:wide", "zoo:distilled")
    draft_trees: tuple[str, ...] = (
        "chain:3", "chain:7", "chain:11", "comb:4x3x2x2", "dynamic:4x4x12"
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_distinct("kinds")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds={kind!r} is none of: {', '.join(KINDS)}")
        if missing := {EAGLE, FSPAD} - set(self.kinds):
            raise ValueError(f"kinds={self.kinds}: {min(missing)} is what is asked about: add it")
        for field in ("drafts", "draft_trees"):
            if getattr(self, field):
                self._check_distinct(field)
        if self.training.head is None or self.head.kind != FSPAD:
            raise ValueError("training.head.kind: the study sets it: say it in kinds")
        if self.training.draft:
            raise ValueError(
                f"training.draft={self.training.draft!r}: heads of several kinds start fresh"
            )

    @property
    def head(self) -> FeatureHead:
        """As `training` has it."""
        assert self.training.head is not None
        return self.training.head

    @property
    def head_trees(self) -> tuple[str, str]:
        """Along which every head drafts."""
        return self.tree, self.dynamic_tree

    def trees_of(self, draft: str) -> tuple[str, ...]:
        """Along which a head or a small model drafts."""
        return self.head_trees if draft in self.kinds else self.draft_trees

    def runs(self, target: ModelConfig) -> Iterator[tuple[str, int, Distillation]]:
        """Each head that is trained: its kind, its seed, and its recipe."""
        for seed in range(self.seeds):
            for kind in self.kinds:
                head = head_for(kind, self.head, target)
                yield kind, seed, replace(self.training_run(kind, seed), head=head)

    def read_trees(self, context: int) -> dict[str, Tree | DynamicTree]:
        """All trees by what they are called; raises `ValueError` where the heads' two are not a
        static and a dynamic one of one size."""
        named = dict.fromkeys((*self.head_trees, *self.draft_trees))
        trees = {text: read_tree(text, context) for text in named}
        static, dynamic = trees[self.tree], trees[self.dynamic_tree]
        if not isinstance(static, Tree):
            raise ValueError(f"tree={self.tree!r} is dynamic: give a static one, as comb:4x3x2x2")
        if not isinstance(dynamic, DynamicTree):
            raise ValueError(
                f"dynamic_tree={self.dynamic_tree!r} is static: give a dynamic one, as "
                "dynamic:4x4x12"
            )
        if static.size != dynamic.size:
            raise ValueError(
                f"dynamic_tree={self.dynamic_tree!r} has {dynamic.size} nodes where "
                f"tree={self.tree!r} has {static.size}: give both as many"
            )
        return trees


def head_for(kind: str, like: FeatureHead, target: ModelConfig) -> FeatureHead:
    """The head of one of `KINDS`, with the sizes and the losses of `like`; the wide one has a
    feed-forward of the width, to the nearest, that gives it as many parameters as FSPAD's has."""
    if kind != WIDE:
        return replace(like, kind=kind)
    width = like.intermediate_size or target.intermediate_size

    def size(kind: str, width: int) -> int:
        return num_parameters(replace(like, kind=kind, intermediate_size=width), target)

    eagle, wider, fspad = size(EAGLE, width), size(EAGLE, width + 1), size(FSPAD, width)
    more = round((fspad - eagle) / (wider - eagle))
    return replace(like, kind=EAGLE, intermediate_size=width + more)


def num_parameters(head: FeatureHead, target: ModelConfig) -> int:
    """How many are trained."""
    shapes = jax.eval_shape(make_head(head, target).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))
