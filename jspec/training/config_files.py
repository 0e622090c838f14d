"""Recipes from files: `configs/NAME.py`, changes by field name, and the JSON that a run keeps."""

import dataclasses
import difflib
import os
import runpy
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jspec.config import ModelConfig, RopeScaling
from jspec.training.recipe import (
    Distillation,
    FeatureHead,
    OnPolicyData,
    Pretraining,
    Recipe,
    TeacherData,
)

Kind = TypeVar("Kind")
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
WORDS = {"true": True, "false": False}

_OF_RECIPE = (
    "length=sequence_length chunk=chunk_size batch=batch_size "
    "accumulate=gradient_accumulation_steps compute=compute_dtype warmup=warmup_steps "
    "clip=max_grad_norm clip_value=max_grad_value"
)
_OF_SIZES = (
    "feedforward=intermediate_size channels=head_dim heads=num_attention_heads kv_"
    "heads=num_key_value_heads"
)
_OF_GENERATED = "prompt=prompt_length tokens=max_new_tokens batch=batch_size"
# Names that recipe.json of a run may have in place of today's, as "old=new" by class.
OLD_NAMES: dict[type, str] = {
    Pretraining: _OF_RECIPE,
    Distillation: f"{_OF_RECIPE} teacher=teacher_dtype answers=teacher_data rollouts=on_policy "
    "served=temperatures tokens=max_new_tokens",
    FeatureHead: f"{_OF_SIZES} tokens=draft_vocab_size features=feature_weight "
    "logits=logits_weight noise=feature_noise passes=ttt_steps decay=ttt_decay",
    TeacherData: _OF_GENERATED,
    OnPolicyData: _OF_GENERATED,
    ModelConfig: f"{_OF_SIZES} vocabulary=vocab_size width=hidden_size layers=num_hidden_layers "
    "context=max_position_embeddings epsilon=norm_eps tied=tie_word_embeddings "
    "feedforward_bias=mlp_bias window=sliding_window local_layers=sliding_layers "
    "local_rope_theta=sliding_rope_theta query_key_norm=use_qk_norm "
    "query_scalar=query_pre_attn_scalar score_cap=attn_logit_softcapping "
    "logit_cap=final_logit_softcapping activation=hidden_act",
    RopeScaling: "low_frequency=low_freq_factor high_frequency=high_freq_factor "
    "original_context=original_max_position_embeddings",
}
# The same of values, by class and field.
OLD_VALUES: dict[tuple[type, str], dict[Any, Any]] = {
    (ModelConfig, "hidden_act"): {"gelu_tanh": "gelu_pytorch_tanh"}
}


def read_recipe(file: str | Path, kind: type[Kind]) -> Kind:
    """The recipe of that kind which the file's `config()` returns."""
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"config={str(file)!r}: no such file; give configs/NAME.py")
    try:
        config = runpy.run_path(str(file)).get("config")
        recipe = config() if callable(config) else None
    # The file is a program of the user, and may raise or exit as it likes.
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"config={str(file)!r} does not run ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(recipe, kind):
        raise ValueError(
            f"config={str(file)!r} has no `def config() -> {kind.__name__}`: write one, or use the "
            "command that its kind of recipe is for"
        )
    return recipe


def find_recipe(
    config: str | os.PathLike[str] | AnyRecipe, kind: type[AnyRecipe], changes: Mapping[str, Any]
) -> AnyRecipe:
    """A recipe, or that of a config file, with changes as `override` takes them."""
    if isinstance(config, str | os.PathLike):
        config = read_recipe(Path(config), kind)
    if not isinstance(config, kind):
        raise ValueError(
            f"config={type(config).__name__}: give a file of configs/ or a {kind.__name__}"
        )
    return override(config, changes)


def read_changes(words: Sequence[str]) -> dict[str, str]:
    """`steps=100 model.layers=2` as a mapping."""
    changes = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not a change: write field=value, as in steps=100")
        changes[path] = text
    return changes


def override(config: Kind, changes: Mapping[str, Any] | Sequence[str]) -> Kind:
    """A frozen dataclass with some fields changed, all of them at once.

    Args:
      changes: values by field, or words such as `steps=60`; `a.b` is the field `b` of the field
        `a`, which a mapping may be given for as well. Text is read as the field's type; of several
        values it has spaces between, and numbers may have commas.

    Raises `ValueError` for a name that is not a field, with the nearest one, and for a value that
    the field's type does not take.

    >>> from jspec.training.recipe import Recipe
    >>> changed = override(Recipe(name="mine"), {"steps": 60, "learning_rate": "1e-3"})
    >>> changed.steps, changed.learning_rate
    (60, 0.001)
    """
    wanted: dict[str, Any] = {}
    if not isinstance(changes, Mapping):
        changes = read_changes(changes)
    for path, value in changes.items():
        branch = wanted
        *above, last = path.split(".")
        for name in above:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{path}: {name} is given a value of its own already")
        if isinstance(value, Mapping) and isinstance(branch.get(last), dict):
            branch[last] |= value
        else:
            branch[last] = dict(value) if isinstance(value, Mapping) else value
    return _replace(config, wanted, "")


def recipe_from_json(kind: type[AnyRecipe], record: Mapping[str, Any]) -> AnyRecipe:
    """The recipe that a run keeps as JSON; raises `ValueError` if it is of another kind."""
    try:
        return _built(kind, record)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it is not a recipe of kind {kind.__name__} ({error})") from error


def _replace(config: Any, wanted: Mapping[str, Any], prefix: str) -> Any:
    fields = [field.name for field in dataclasses.fields(config)]
    kinds = typing.get_type_hints(type(config))
    values = {}
    for name, value in wanted.items():
        path = prefix + name
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            meant = f" (did you mean {prefix}{near[0]}?)" if near else ""
            there = ", ".join(prefix + field for field in fields)
            raise ValueError(f"{path} is not a field{meant}: there are {there}")
        current = getattr(config, name)
        if isinstance(value, str):
            values[name] = _read(path, value, kinds[name])
        elif not isinstance(value, Mapping):
            values[name] = _checked(path, value, kinds[name])
        elif dataclasses.is_dataclass(current):
            values[name] = _replace(current, value, path + ".")
        else:
            raise ValueError(f"{path}={current!r} has no fields of its own: give it a value")
    return dataclasses.replace(config, **values)


def _read(path: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for in a field of this type."""
    kinds = _alternatives(kind)
    if type(None) in kinds and text.lower() == "none":
        return None
    for one in kinds:
        if typing.get_origin(one) is tuple:
            inner = typing.get_args(one)[0]
            spaced = text if inner is str else text.replace(",", " ")
            return tuple(_read(path, word, inner) for word in spaced.split())
        if one is bool and text.lower() in WORDS:
            return WORDS[text.lower()]
        if one in (int, float, str):
            try:
                return one(text)
            except ValueError:
                continue
    raise _mistyped(path, text, kinds)


def _checked(path: str, value: Any, kind: Any) -> Any:
    """A value of Python as a field of this type takes it."""
    kinds = _alternatives(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    for one in kinds:
        if typing.get_origin(one) is tuple:
            if isinstance(value, list | tuple):
                inner = typing.get_args(one)[0]
                return tuple(
                    _read(path, x, inner) if isinstance(x, str) else _checked(path, x, inner)
                    for x in value
                )
        elif one is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        elif one is str and number:
            return f"{value:g}"  # one temperature
        elif one is str and isinstance(value, list | tuple):
            return ",".join(_checked(path, x, str) for x in value)  # several
        elif one is float and number:
            return float(value)
        elif isinstance(value, one) and isinstance(value, bool) == (one is bool):
            return value
    raise _mistyped(path, value, kinds)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _mistyped(path: str, value: Any, kinds: Sequence[Any]) -> ValueError:
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    return ValueError(f"{path}={value!r} must be of type {names}")


def _built(field_type: Any, value: Any) -> Any:
    """A value of JSON as a field of this type."""
    kind: Any = next(one for one in _alternatives(field_type) if one is not type(None))
    if value is None or not dataclasses.is_dataclass(kind):
        return tuple(value) if isinstance(value, list) else value
    assert isinstance(kind, type)
    kinds = typing.get_type_hints(kind)
    old: dict[Any, str] = dict(pair.split("=") for pair in OLD_NAMES.get(kind, "").split())
    named: dict[Any, Any] = {
        name if name in kinds else old.get(name, name): x for name, x in value.items()
    }
    built = {name: _built(kinds.get(name), x) for name, x in named.items()}
    for name in built.keys() & {field for owner, field in OLD_VALUES if owner is kind}:
        built[name] = OLD_VALUES[kind, name].get(built[name], built[name])
    return kind(**built)
