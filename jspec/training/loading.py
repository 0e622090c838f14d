"""The models that a recipe names: the target, and the draft to start from, loaded or made."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jspec.config import ModelConfig
from jspec.draft.draft import HeadDraft, ModelDraft, load_draft
from jspec.formats.folder import TOKENIZER_FILES, naming
from jspec.formats.heads import HeadCheckpoint, native_format, save_head
from jspec.formats.huggingface import Checkpoint, load, save
from jspec.models.protocol import Params, init_params
from jspec.models.transformer import transformer
from jspec.parallel.sharding import REPLICATED, RULES, Rules, check, shardings
from jspec.training.pruning import first_layers, prune, spread_layers
from jspec.training.recipe import Distillation, FeatureHead
from jspec.training.student import check_head, make_head


def load_model(
    argument: str, source: str, dtype: str, mesh: Mesh | None = None, rules: Rules = RULES
) -> Checkpoint:
    """Loads `zoo:NAME`, a local folder or a hub name; errors name the argument."""
    with naming(argument, source):
        return load(source, dtype=dtype, mesh=mesh, rules=rules)


def load_target(source: str, dtype: str, mesh: Mesh | None = None) -> Checkpoint:
    """Loads a teacher: a model with a tokenizer and a token that ends a text."""
    target = load_model("target", source, dtype, mesh)
    if target.tokenizer is None:
        raise ValueError(
            f"target={source!r} has no tokenizer: put its tokenizer.json beside config.json"
        )
    if not target.stop_token_ids:
        raise ValueError(f"target={source!r} names no end of text: give it an eos_token_id")
    return target


def load_student(
    recipe: Distillation, target: Checkpoint | None = None, mesh: Mesh | None = None
) -> Checkpoint | HeadCheckpoint:
    """The draft that a run starts from: loaded, or made in the shape that the recipe asks for.

    Args:
      target: if it is loaded already; a draft's vocabulary is compared with it.
    """
    if recipe.head is None and recipe.model is None and target is None:
        return load_model("draft", recipe.draft, "float32")
    if target is None:
        target = load_target(recipe.target, recipe.teacher_dtype)
    if recipe.draft:
        return _loaded_student(recipe, target, mesh)
    if recipe.head is not None:
        return _new_head(recipe.head, recipe, target, mesh)
    assert recipe.model is not None
    return _new_model(recipe.model, recipe, target, mesh)


def save_draft(folder: Path, draft: Checkpoint | HeadCheckpoint, dtype: str = "bfloat16") -> None:
    """Writes a draft of either kind; a head as its authors do, without its target's embedding."""
    if isinstance(draft, HeadCheckpoint):
        save_head(folder, draft.head, draft.params, d2t=draft.d2t, dtype=dtype)
        return
    has_text = any((draft.folder / name).is_file() for name in TOKENIZER_FILES)
    save(
        folder,
        draft.model,
        draft.params,
        tokenizer=draft.folder if has_text else None,
        stop_token_ids=draft.stop_token_ids,
        generation_config=draft.generation_config,
        dtype=dtype,
        family=draft.family,
    )


def _loaded_student(
    recipe: Distillation, target: Checkpoint, mesh: Mesh | None
) -> Checkpoint | HeadCheckpoint:
    draft = load_draft(recipe.draft, target, mesh=mesh, rules=_rules(recipe))
    wanted = "model" if recipe.head is None else "head"
    if draft.kind != wanted:
        raise ValueError(
            f"draft={recipe.draft!r}: it is of kind {draft.kind}, and the recipe trains a "
            f"{wanted}: set head for a head, and for nothing else"
        )
    if isinstance(draft, HeadDraft) and recipe.head is not None:
        with naming("draft", recipe.draft):
            check_head(recipe.head, draft.checkpoint.head)
        return draft.checkpoint
    assert isinstance(draft, ModelDraft)
    found = draft.checkpoint
    return replace(found, model=transformer(found.model.config, remat=recipe.remat))


def _new_model(
    config: ModelConfig, recipe: Distillation, target: Checkpoint, mesh: Mesh | None
) -> Checkpoint:
    wanted, there = config.vocab_size, target.model.config.vocab_size
    if wanted != there:
        raise ValueError(f"model.vocab_size={wanted}: the target has {there} tokens, so take those")
    model = transformer(config, remat=recipe.remat)
    if recipe.parent:
        params, family = _prune_parent(config, recipe, target, mesh)
        return replace(target, model=model, params=params, family=family)
    params = init_params(model, jax.random.key(recipe.seed), mesh=mesh, rules=_rules(recipe))
    return replace(target, model=model, params=params, family="llama")


def _prune_parent(
    into: ModelConfig, recipe: Distillation, target: Checkpoint, mesh: Mesh | None
) -> tuple[Params, str]:
    """Parameters pruned from the parent's, and the parent's family."""
    rules = _rules(recipe)
    if mesh is not None:
        check(mesh, into, rules)
    parent = target
    if recipe.parent != "target":
        parent = load_model("parent", recipe.parent, "float32", mesh)
        with naming("parent", recipe.parent):
            load_draft(parent, target)  # which compares the tokens
    choose = {"first": first_layers, "spread": spread_layers}[recipe.parent_layers]
    config = parent.model.config
    try:
        layers = choose(into.num_hidden_layers, config.num_hidden_layers)
        params = prune(parent.params, config, into, layers=layers)
    except ValueError as error:
        raise ValueError(f"parent={recipe.parent!r}, model: {error}") from error
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    if mesh is not None:
        params = jax.device_put(params, shardings(mesh, transformer(into).axes(), rules))
    return params, parent.family


def _new_head(
    wanted: FeatureHead, recipe: Distillation, target: Checkpoint, mesh: Mesh | None
) -> HeadCheckpoint:
    rules = _rules(recipe)
    head = make_head(wanted, target.model.config)
    if mesh is not None:
        check(mesh, head.module, rules)
    params = init_params(head, jax.random.key(recipe.seed), mesh=mesh, rules=rules)
    return HeadCheckpoint(head, params, target.folder, native_format(head))


def _rules(recipe: Distillation) -> Rules:
    return REPLICATED if recipe.replicated else RULES
