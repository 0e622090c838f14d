"""A target and drafts to plan for, by name: trained, published, or described in words."""

from pathlib import Path
from typing import NamedTuple

import jax

from jspec.config import ModelConfig
from jspec.draft.draft import LOOKUP, load_draft
from jspec.formats.families import read_config
from jspec.formats.fields import Fields
from jspec.formats.folder import find_file, naming, read_json
from jspec.formats.heads import layout_of
from jspec.formats.huggingface import Checkpoint, load
from jspec.formats.weights import list_tensors
from jspec.models.transformer import TransformerModel, transformer
from jspec.parallel.memory import GIGABYTE, free_memory
from jspec.plan.shapes import SHAPES, read_shape
from jspec.plan.sizes import size_of
from jspec.plan.sources import PlannedDraft, random_params
from jspec.training.recipe import FeatureHead
from jspec.training.student import make_head, trained_part

HEADS = ("eagle", "fspad", "eagle3")
# Tokens by which the vocabularies of models with one tokenizer may differ, whose embeddings are
# padded.
PADDING = 512
# Tokens that an EAGLE-3 head can draft, as in its paper.
HEAD_TOKENS = 32000


class PlannedTarget(NamedTuple):
    """A target: its shape, and what was loaded of it where there are weights."""

    model: TransformerModel
    trained: Checkpoint | None


def planned_target(source: str, dtype: str, *, weights: bool) -> PlannedTarget:
    """A target by name.

    Args:
      weights: whether they are needed; those of a published shape are random.
    """
    if source not in SHAPES:
        if weights:
            with naming("target", source):
                found = load(source, dtype=dtype)
            return PlannedTarget(found.model, found)
        return PlannedTarget(transformer(_config("target", source)), None)
    model = transformer(SHAPES[source])
    if not weights:
        return PlannedTarget(model, None)
    _check_fits_here(source, model, dtype)
    return PlannedTarget(model, Checkpoint(model, random_params(model, dtype), (), Path(), ""))


def planned_draft(source: str, target: PlannedTarget, dtype: str) -> PlannedDraft:
    """A draft by name: a folder or a model of the zoo; a published shape; `eagle`, `fspad` or
    `eagle3` as heads of this target; or a shape in words such as `layers=2,width=256`.

    Raises `ValueError` for a draft whose vocabulary is not the target's, and for prompt lookup.
    """
    config = target.model.config
    if source == LOOKUP:
        raise ValueError(
            f"draft={source!r}: prompt lookup has no passes to plan: name a model or a head, and "
            "jspec bench times lookups"
        )
    if source in HEADS:
        third = source == "eagle3"
        wanted = FeatureHead(
            kind=source,
            feature_weight=0.0 if third else 1.0,
            logits_weight=1.0 if third else 0.1,
            draft_vocab_size=min(HEAD_TOKENS, config.vocab_size) if third else 0,
        )
        return PlannedDraft(source, make_head(wanted, config))
    if "=" in source:
        return PlannedDraft(source, transformer(read_shape(source, config)))
    if source not in SHAPES and target.trained is not None:
        draft = load_draft(source, target.trained, dtype=dtype)
        return PlannedDraft(source, trained_part(draft)[0], draft)
    found = SHAPES[source] if source in SHAPES else _config("draft", source)
    if abs(found.vocab_size - config.vocab_size) > PADDING:
        raise ValueError(
            f"draft={source!r} has a vocabulary of {found.vocab_size}, and the target one of "
            f"{config.vocab_size}: a draft writes the target's tokens, so take one of its family, "
            "or describe one (layers=2,width=1024)"
        )
    return PlannedDraft(source, transformer(found))


def _config(argument: str, source: str) -> ModelConfig:
    """The shape of a model, of which only config.json is read."""
    with naming(argument, source, f"; shapes known by name are {', '.join(SHAPES)}"):
        file = find_file(source, "config.json")
        fields = read_json(file)
        if _is_head(fields, file.parent):
            raise ValueError(
                f"it is a head, of which only its kind counts elsewhere: give {', '.join(HEADS)}"
            )
        return read_config(fields)


def _is_head(fields: Fields, folder: Path) -> bool:
    """Whether a configuration is that of a head: by its fields or, where they are here, by the keys
    of its weights."""
    names = list_tensors(folder) if any(folder.glob("*.safetensors")) else ()
    named = any("eagle" in str(one).lower() for one in fields.get("architectures") or ())
    return named or layout_of(fields, names) is not None


def _check_fits_here(source: str, model: TransformerModel, dtype: str) -> None:
    """Raises `ValueError` for a target that is too large for this machine."""
    needed, free = size_of(model, dtype).stored, free_memory(jax.local_devices()[0])
    if free is not None and needed > free:
        raise ValueError(
            f"target={source!r} needs {needed / GIGABYTE:.2f} GB, {needed - free:,} bytes more "
            "than are free here: plan for other hardware (--hardware h100, or a TPU slice such as "
            "v5e:2x4)"
        )
