"""A target and drafts to plan for: trained, published, or imagined."""

from typing import TYPE_CHECKING, NamedTuple

from jspec.cli.pair import find_draft, read_target

if TYPE_CHECKING:
    from pathlib import Path

    from jspec.formats.fields import Fields
    from jspec.formats.huggingface import Checkpoint
    from jspec.models.heads import Head
    from jspec.models.protocol import LinenModel
    from jspec.plan.sources import Contender

HEADS = ("eagle", "fspad", "eagle3")
# Tokens up to which models of one tokenizer differ, whose embeddings are filled up.
FILLED = 512
# Of what an EAGLE-3 head may guess, as its paper has it.
HEAD_TOKENS = 32000


class Planned(NamedTuple):
    """A target: its shape, and what was read of it where there are weights."""

    model: "LinenModel"
    trained: "Checkpoint | None"


def planned_target(source: str, dtype: str, *, weights: bool) -> Planned:
    """A target by name; `weights` where they are needed, and then filled with noise for a target
    that nobody trained."""
    from pathlib import Path

    from jspec.formats.huggingface import Checkpoint
    from jspec.models.transformer import transformer
    from jspec.plan.published import SHAPES
    from jspec.plan.sources import noise

    if source not in SHAPES:
        if weights:
            found = read_target(source, dtype)
            return Planned(found.model, found)
        return Planned(transformer(_config("target", source)), None)
    model = transformer(SHAPES[source])
    if not weights:
        return Planned(model, None)
    _admit(source, model, dtype)
    return Planned(model, Checkpoint(model, noise(model, dtype), (), Path(), ""))


def contender(source: str, target: Planned, dtype: str) -> "Contender":
    """A draft by name: a folder or a model of the zoo; a published shape; `eagle`, `fspad` or
    `eagle3` as heads of this target; or an imagined shape such as `layers=2,width=256`."""
    from jspec.distill.recipe import FeatureHead
    from jspec.distill.student import head_of
    from jspec.models.transformer import transformer
    from jspec.plan.imagined import imagine
    from jspec.plan.published import SHAPES
    from jspec.plan.sources import Contender

    config = target.model.config
    if source in HEADS:
        third = source == "eagle3"
        wanted = FeatureHead(
            kind=source,
            features=0.0 if third else 1.0,
            logits=1.0 if third else 0.1,
            tokens=min(HEAD_TOKENS, config.vocabulary) if third else 0,
        )
        return Contender(source, head_of(wanted, config))
    if "=" in source:
        return Contender(source, transformer(imagine(source, config)))
    if source not in SHAPES and target.trained is not None:
        draft = find_draft(source, target.trained, dtype)
        return Contender(source, _part(draft), draft)
    found = SHAPES[source] if source in SHAPES else _config("draft", source)
    if abs(found.vocabulary - config.vocabulary) > FILLED:
        raise ValueError(
            f"draft={source!r} has a vocabulary of {found.vocabulary}, and the target one of "
            f"{config.vocabulary}: a draft guesses the target's tokens, so take one of its family, "
            "or imagine one (layers=2,width=1024)"
        )
    return Contender(source, transformer(found))


def _part(draft: object) -> "LinenModel | Head":
    from jspec.bench.drafts import HeadDraft

    return draft.checkpoint.head if isinstance(draft, HeadDraft) else draft.checkpoint.model


def _config(argument: str, source: str):
    """The shape of a model, of which only config.json is read."""
    from jspec import zoo
    from jspec.formats.families import read_config
    from jspec.formats.folder import read_json
    from jspec.formats.hub import find_file
    from jspec.plan.published import SHAPES

    try:
        file = find_file(zoo.find(source), "config.json")
        said = read_json(file)
        if _is_head(said, file.parent):
            raise ValueError(
                f"it is a head, of which its kind alone counts elsewhere: give {', '.join(HEADS)}"
            )
        return read_config(said)
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f"source={source!r}").removeprefix(":").strip()
        raise ValueError(
            f"{argument}={source!r}: {reason}; shapes known by name are {', '.join(SHAPES)}"
        ) from error


def _is_head(said: "Fields", folder: "Path") -> bool:
    """Whether a configuration is that of a head: by what it says or, where they are here, by the
    keys of its weights."""
    from jspec.formats.layouts import layout_of
    from jspec.formats.tensors import list_tensors

    names = list_tensors(folder) if any(folder.glob("*.safetensors")) else ()
    named = any("eagle" in str(one).lower() for one in said.get("architectures") or ())
    return named or layout_of(said, names) is not None


def _admit(source: str, model: "LinenModel", dtype: str) -> None:
    """Raises `ValueError` for a target that this machine cannot hold."""
    import jax

    from jspec.parallel.memory import GIGABYTE, free_on
    from jspec.plan.sizes import size_of

    needed, free = size_of(model, dtype).held, free_on(jax.local_devices()[0])
    if free is not None and needed > free:
        raise ValueError(
            f"target={source!r} needs {needed / GIGABYTE:.2f} GB, {needed - free:,} bytes more "
            "than are free here: plan for other hardware (--hardware h100, or a TPU slice such as "
            "v5e:2x4)"
        )
