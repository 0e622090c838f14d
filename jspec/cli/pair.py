"""A target and its draft, as the command line names them."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jspec.bench import settings
from jspec.cli.screen import console

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jspec.bench.drafts import Draft
    from jspec.core.candidates import Rule as Verification
    from jspec.formats.heads import HeadCheckpoint
    from jspec.formats.huggingface import Checkpoint

Dtype = Literal["float32", "bfloat16", "float16"]
Rule = Literal[
    "coupled",
    "by_confidence",
    "one_sample",
    "token_level",
    "block",
    "with_replacement",
    "without_replacement",
    "traversal",
    "lossy",
]
LOSSY: Rule = "lossy"
GROWS: Rule = "by_confidence"
# Of rules that take no other kind of tree.
USUAL_UNDER = {LOSSY: settings.FORK, GROWS: settings.GROWN}


def usual_tree(rule: Rule, stop: str | None = None) -> str:
    """What a draft guesses under a rule where nothing is said; where something stops it early, a
    chain with levels to spare, for the fastest tree is that of a draft which never stops."""
    if rule in USUAL_UNDER:
        return USUAL_UNDER[rule]
    return settings.USUAL_TREE if stop is None else settings.DEEP


def find_rule(rule: Rule) -> "Verification":
    """The rule of that name."""
    return importlib.import_module(f"jspec.verify.{rule}")


def check_rule(rule: Rule, *, lookup: bool, stop: str | None) -> None:
    """Raises `ValueError` for a rule of trees that grow where none can."""
    if rule == GROWS and (lookup or stop is not None):
        said = "lookup: its trees" if lookup else f"stop={stop!r}: trees that drafting stops along"
        raise ValueError(f"{said} are static, and rule={rule!r} says how one grows: leave one out")


def warn_of(rule: Rule) -> None:
    """Of the lossy rule, once nothing is refused any more, a line on what it does to the text."""
    if rule == LOSSY:
        from jspec.draft.target_started import LOSS

        console().print(LOSS, soft_wrap=True)


def under(rule: Rule, draft: "Draft", target: "Checkpoint") -> "Draft":
    """The draft as it guesses under a rule: under the lossy one below roots of the target's law."""
    from jspec.bench.drafts import ModelDraft, StartedDraft

    if rule != LOSSY:
        return draft
    if not isinstance(draft, ModelDraft):
        raise ValueError(
            "rule='lossy' has small models guess below roots of the target's law, and the draft is "
            "a head: give a small model, such as zoo:distilled, or another rule"
        )
    return StartedDraft(draft.checkpoint, target)


def read_model(
    argument: str,
    source: str,
    dtype: str,
    mesh: "Mesh | None" = None,
    *,
    replicated: bool = False,
) -> "Checkpoint":
    """Loads `zoo:NAME`, a local folder or a hub name; errors name the argument.

    Args:
      mesh: where to; replicated: whether every device gets all of it.
    """
    from jspec import zoo
    from jspec.formats.huggingface import load
    from jspec.parallel.sharding import REPLICATED, RULES

    rules = REPLICATED if replicated else RULES
    with _named(argument, source):
        return load(zoo.find(source), dtype=dtype, mesh=mesh, rules=rules)


def read_target(source: str, dtype: str, mesh: "Mesh | None" = None) -> "Checkpoint":
    """Loads a model that can write text: one with a tokenizer."""
    target = read_model("target", source, dtype, mesh)
    if target.tokenizer is None:
        raise ValueError(
            f"target={source!r} has no tokenizer: put its tokenizer.json beside config.json"
        )
    return target


def read_draft(
    source: str,
    target: "Checkpoint",
    dtype: str,
    mesh: "Mesh | None" = None,
    *,
    replicated: bool = False,
) -> "Checkpoint":
    """Loads a draft whose tokens are the target's."""
    draft = read_model("draft", source, dtype, mesh, replicated=replicated)
    sizes = draft.model.config.vocabulary, target.model.config.vocabulary
    if draft.tokenizer is None or target.tokenizer is None:
        if sizes[0] != sizes[1]:
            who = f"draft={source!r}" if draft.tokenizer is None else "the target"
            raise ValueError(
                f"{who} has no tokenizer, and the draft {source!r} has a vocabulary of {sizes[0]} "
                f"where the target has {sizes[1]}: put its tokenizer.json beside config.json"
            )
        return draft
    difference = disagreement(
        target.tokenizer.get_vocab(), draft.tokenizer.get_vocab(), size=min(sizes)
    )
    if difference:
        raise ValueError(
            f"draft={source!r}: {difference}; a draft has the target's vocabulary, or the two "
            "differ in padding at the end alone, so use a draft that was made for this target"
        )
    return draft


def find_draft(
    source: str,
    target: "Checkpoint",
    dtype: str,
    mesh: "Mesh | None" = None,
    *,
    replicated: bool = False,
) -> "Draft":
    """Loads a draft of any kind: a model whose tokens are the target's, or a head made for it."""
    from jspec.bench.drafts import HeadDraft, ModelDraft

    if is_head("draft", source):
        head = read_head("draft", source, target, dtype, mesh, replicated=replicated)
        return HeadDraft(head, target)
    return ModelDraft(read_draft(source, target, dtype, mesh, replicated=replicated))


def is_head(argument: str, source: str) -> bool:
    """Whether what is there holds a head, of whatever layout; errors name the argument."""
    from jspec import zoo
    from jspec.formats.heads import head_layout

    with _named(argument, source):
        return head_layout(zoo.find(source)) is not None


def read_head(
    argument: str,
    source: str,
    target: "Checkpoint",
    dtype: str,
    mesh: "Mesh | None" = None,
    *,
    replicated: bool = False,
) -> "HeadCheckpoint":
    """Loads a head that was made for `target`; errors name the argument."""
    from jspec import zoo
    from jspec.formats.heads import load_head
    from jspec.parallel.sharding import REPLICATED, RULES

    rules = REPLICATED if replicated else RULES
    with _named(argument, source):
        return load_head(
            zoo.find(source), target.model, target.params, dtype=dtype, mesh=mesh, rules=rules
        )


@contextlib.contextmanager
def _named(argument: str, source: str) -> Iterator[None]:
    """What is inside raises errors that name the argument."""
    try:
        yield
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f"source={source!r}").removeprefix(":").strip()
        raise ValueError(f"{argument}={source!r}: {reason}") from error


def disagreement(target: Mapping[str, int], draft: Mapping[str, int], *, size: int) -> str:
    """How two tokenizers differ in the first `size` tokens, in words; empty if they agree.

    `size` is the smaller model's vocabulary. The other may go on: where one model's embedding is
    filled up beyond its tokenizer's last token, what stands there is padding and is never written.
    """
    ours, theirs = ({number: token for token, number in v.items()} for v in (target, draft))
    shared = range(min(size, max(len(ours), len(theirs))))
    for number in shared:
        if ours.get(number) != theirs.get(number):
            return (
                f"token {number} is {theirs.get(number)!r} in the draft and "
                f"{ours.get(number)!r} in the target"
            )
    return ""


def write_model(folder: Path, model: "Checkpoint", dtype: Any) -> None:
    """Writes a checkpoint, tokenizer included, as a Hugging Face folder."""
    from jspec.formats.folder import TOKENIZER_FILES
    from jspec.formats.huggingface import save

    has_text = any((model.folder / name).is_file() for name in TOKENIZER_FILES)
    save(
        folder,
        model.model,
        model.params,
        tokenizer=model.folder if has_text else None,
        end_of_text=model.end_of_text,
        dtype=dtype,
        family=model.family,
    )
