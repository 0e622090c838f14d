"""Any draft beside its target: a small model, a head, or prompt lookup; loaded and checked."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jax import Array
from jax.sharding import Mesh

from jspec.core.tree import DynamicTree, Tree
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.stopping import read_stop
from jspec.formats.folder import name_first, naming
from jspec.formats.heads import HeadCheckpoint, head_layout, load_head
from jspec.formats.huggingface import Checkpoint, load
from jspec.models.heads import HeadParams
from jspec.models.protocol import Params
from jspec.models.teacher_forcing import head_pass, model_pass, target_hidden_states
from jspec.models.transformer import TransformerModel, with_hidden_states
from jspec.parallel.sharding import RULES, Rules

LOOKUP = "lookup"
NAMED = 3  # of the tokens that differ, as many as a line says


class TokenMismatchWarning(UserWarning):
    """A draft has other tokens than its target, and is used all the same."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A draft beside its target, ready to make a drafter or to be trained.

    >>> draft = load_draft("zoo:distilled", target)
    >>> drafter, params = draft.drafter(Tree.chain(3)), draft.params

    Attributes:
      kind: `model`, `head` or `lookup`.
      name: what it was loaded as.
      checkpoint: what was loaded; None for prompt lookup.
    """

    kind: ClassVar[str]
    target: Checkpoint = field(repr=False)
    name: str
    checkpoint: Checkpoint | HeadCheckpoint | None

    @property
    def folder(self) -> Path | None:
        """Where it was loaded from."""
        return None if self.checkpoint is None else self.checkpoint.folder

    @property
    def params(self) -> Params:
        """The parameters of its drafters."""
        return ()

    @property
    def vocab_size(self) -> int:
        """How many tokens it may draft."""
        return self.target.model.config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """How long the texts are that it was made for."""
        return self.target.model.config.max_position_embeddings

    @property
    def hidden_size(self) -> int:
        """Of its hidden states; 0 where it has none."""
        return 0

    @property
    def target_model(self) -> TransformerModel:
        """The target to run, which returns the hidden states that the draft reads."""
        return self.reading(self.target.model)

    def reading(self, target: TransformerModel) -> TransformerModel:
        """Another target of the same shape, with the hidden states that the draft reads."""
        return target

    def can_draft(self, tokens: np.ndarray) -> np.ndarray:
        """Which of the target's tokens it may draft: a bool for each."""
        return np.asarray(tokens) < self.vocab_size

    def drafter(self, tree: Tree | DynamicTree) -> Drafter:
        """The drafter over a tree."""
        raise NotImplementedError

    def stopping_drafter(
        self, tree: Tree | DynamicTree, stop_drafting: str | None
    ) -> tuple[Drafter, Params]:
        """The drafter that stops early where that is asked for (`confidence:0.3`), and its
        parameters."""
        drafter = self.drafter(tree)
        if stop_drafting is None:
            return drafter, self.params
        stop, params = read_stop(stop_drafting, folder=self.folder, width=self.hidden_size)
        try:
            # `EarlyDrafter` refuses a drafter that has no logits to stop by.
            return EarlyDrafter(drafter, stop), EarlyParams(self.params, params)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"stop_drafting={stop_drafting!r}: {error}") from None

    def hidden_and_logits(self, tokens: Array) -> tuple[Array, Array]:
        """A teacher-forced pass over `tokens` `[B, T]`: hidden states `[B, T, D]` and logits
        `[B, T, V]` of what follows each."""
        raise ValueError(f"draft={self.name!r}: prompt lookup is no model and has no logits")

    def with_params(self, params: Params) -> "Draft":
        """The same draft with other parameters of its own, as training makes them."""
        raise ValueError(f"draft={self.name!r}: prompt lookup has no parameters")


@dataclass(frozen=True, eq=False)
class ModelDraft(Draft):
    """A language model with the target's vocabulary."""

    kind = "model"
    checkpoint: Checkpoint

    @property
    def params(self) -> Params:
        """As `Draft.params`."""
        return self.checkpoint.params

    @property
    def vocab_size(self) -> int:
        """As `Draft.vocab_size`."""
        return self.checkpoint.model.config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """As `Draft.max_position_embeddings`."""
        return self.checkpoint.model.config.max_position_embeddings

    @property
    def hidden_size(self) -> int:
        """As `Draft.hidden_size`."""
        return self.checkpoint.model.config.hidden_size

    def drafter(self, tree: Tree | DynamicTree) -> SmallModelDrafter:
        """As `Draft.drafter`."""
        return SmallModelDrafter(self.checkpoint.model, tree)

    def hidden_and_logits(self, tokens: Array) -> tuple[Array, Array]:
        """As `Draft.hidden_and_logits`."""
        return model_pass(self.checkpoint.params, tokens, model=self.checkpoint.model)

    def with_params(self, params: Params) -> "ModelDraft":
        """As `Draft.with_params`."""
        return replace(self, checkpoint=replace(self.checkpoint, params=params))


@dataclass(frozen=True, eq=False)
class HeadDraft(Draft):
    """A head that reads the target's hidden states. It drafts nothing after the first token."""

    kind = "head"
    checkpoint: HeadCheckpoint

    @property
    def params(self) -> HeadParams:
        """As `Draft.params`."""
        return self.checkpoint.params_for(self.target.params)

    @property
    def vocab_size(self) -> int:
        """As `Draft.vocab_size`."""
        return self.checkpoint.head.draft_vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """As `Draft.max_position_embeddings`."""
        return self.checkpoint.head.config.max_position_embeddings

    @property
    def hidden_size(self) -> int:
        """As `Draft.hidden_size`."""
        return self.checkpoint.head.config.hidden_size

    def reading(self, target: TransformerModel) -> TransformerModel:
        """As `Draft.reading`."""
        return with_hidden_states(target, self.checkpoint.head.layers)

    def can_draft(self, tokens: np.ndarray) -> np.ndarray:
        """As `Draft.can_draft`."""
        own = self.params.tokens
        return super().can_draft(tokens) if own is None else np.isin(tokens, own)

    def drafter(self, tree: Tree | DynamicTree) -> FeatureDrafter:
        """As `Draft.drafter`."""
        return FeatureDrafter(self.checkpoint.head, self.target.model, tree)

    def hidden_and_logits(self, tokens: Array) -> tuple[Array, Array]:
        """As `Draft.hidden_and_logits`."""
        head = self.checkpoint.head
        states = target_hidden_states(
            self.target.params, tokens, head=head, model=self.target_model
        )
        return head_pass(self.params, tokens, states, head=head, target=self.target.model)

    def with_params(self, params: Params) -> "HeadDraft":
        """As `Draft.with_params`."""
        return replace(self, checkpoint=replace(self.checkpoint, params=params))


@dataclass(frozen=True, eq=False)
class LookupDraft(Draft):
    """Prompt lookup (n-gram): no model."""

    kind = "lookup"
    checkpoint: None = None

    def drafter(self, tree: Tree | DynamicTree) -> LookupDrafter:
        """As `Draft.drafter`."""
        if not isinstance(tree, Tree):
            raise ValueError(
                f"tree of {tree.size} nodes is dynamic and needs scores, which prompt lookup has "
                "not: use a chain or a fork"
            )
        return LookupDrafter(tree)


def load_draft(
    source: str | Path | Checkpoint | HeadCheckpoint,
    target: Checkpoint,
    *,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    allow_token_mismatch: bool = False,
) -> Draft:
    """Loads a draft of any kind, checked against its target.

    >>> load_draft("zoo:eagle", target), load_draft("lookup", target)

    Args:
      source: `zoo:NAME`, a local folder, a hub name, `lookup`, or what was loaded or trained
        before.
      dtype, mesh, rules: as `load` has them; `sharding.REPLICATED` puts all of the draft on every
        device.
      allow_token_mismatch: takes a model whose tokens are not all the target's, with a warning. A
        draft proposes numbers of tokens, and the rules are exact whatever these are called to it;
        fewer are accepted where they differ.

    Raises `ValueError` for a model whose tokens are not the target's, or a head that was made for
    another target.
    """
    if isinstance(source, HeadCheckpoint):
        return HeadDraft(target, str(source.folder), source)
    if isinstance(source, Checkpoint):
        _check_tokens(str(source.folder), source, target, allowed=allow_token_mismatch)
        return ModelDraft(target, str(source.folder), source)
    name = str(source)
    if name == LOOKUP:
        return LookupDraft(target, name)
    if (Path(name) / "recipe.json").is_file() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"draft={name!r} is the folder of a run: give {name}/model, which is there once all "
            f"steps are done, or export a checkpoint of it: jspec export {name} FOLDER"
        )
    with naming("draft", name):
        if head_layout(source) is not None:
            head = load_head(
                source, target.model, target.params, dtype=dtype, mesh=mesh, rules=rules
            )
            return HeadDraft(target, name, head)
        checkpoint = load(source, dtype=dtype, mesh=mesh, rules=rules)
    _check_tokens(name, checkpoint, target, allowed=allow_token_mismatch)
    return ModelDraft(target, name, checkpoint)


def vocab_differences(
    target: Mapping[str, int], draft: Mapping[str, int], *, size: int
) -> list[str]:
    """How two tokenizers differ in each of the first `size` tokens, in words.

    `size` is the smaller model's vocabulary. The other may have more: where one model's embedding
    is padded beyond its tokenizer's last token, the padding is never generated.
    """
    ours, theirs = ({number: token for token, number in v.items()} for v in (target, draft))
    return [
        f"token {number} is {theirs.get(number)!r} in the draft and {ours.get(number)!r} in the "
        "target"
        for number in range(min(size, max([*ours, *theirs], default=-1) + 1))
        if ours.get(number) != theirs.get(number)
    ]


def _check_tokens(name: str, draft: Checkpoint, target: Checkpoint, *, allowed: bool) -> None:
    """Raises `ValueError` for a draft whose tokens are not the target's, or warns if `allowed`."""
    found = _mismatch(name, draft, target)
    if found is None:
        return
    problem, remedy = found
    if not allowed:
        raise ValueError(
            f"{problem}: {remedy}, or allow it by allow_token_mismatch=True "
            "(--allow-token-mismatch), which may accept less and changes no text"
        )
    warnings.warn(
        f"{problem}: the text is the target's all the same, and less of the draft may be accepted",
        TokenMismatchWarning,
        stacklevel=3,
    )


def _mismatch(name: str, draft: Checkpoint, target: Checkpoint) -> tuple[str, str] | None:
    """What is wrong with a draft's tokens and what would do, in words."""
    sizes = draft.model.config.vocab_size, target.model.config.vocab_size
    if draft.tokenizer is None or target.tokenizer is None:
        if sizes[0] == sizes[1]:
            return None
        who = f"draft={name!r}" if draft.tokenizer is None else "the target"
        return (
            f"{who} has no tokenizer, and the draft {name!r} has a vocabulary of {sizes[0]} where "
            f"the target has {sizes[1]}",
            "put its tokenizer.json beside config.json",
        )
    differing = vocab_differences(
        target.tokenizer.get_vocab(), draft.tokenizer.get_vocab(), size=min(sizes)
    )
    if not differing:
        return None
    return (
        f"draft={name!r}: {name_first(differing, NAMED)}",
        "a draft has the target's vocabulary, or the two differ in padding at the end alone, so "
        "use a draft that was made for this target",
    )
