"""Dotted changes to a frozen dataclass: `steps=100 model.layers=2`."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

Config = TypeVar("Config")
WORDS = {"true": True, "false": False}


def override(config: Config, changes: Sequence[str]) -> Config:
    """`config` with each change made, typed as its field is, all of them at once.

    Raises `ValueError` for a field that is not there, listing those that are, and for a value that
    its type does not take. A field of several values takes them with spaces between, numbers with
    commas as well.
    """
    wanted: dict[str, Any] = {}
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is no change: write field=value, as in steps=100")
        branch = wanted
        *above, last = path.split(".")
        for name in above:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{change!r}: {name} is already given a value of its own")
        branch[last] = text
    return _replace(config, wanted, "")


def _replace(config: Any, wanted: dict[str, Any], prefix: str) -> Any:
    fields = {field.name for field in dataclasses.fields(config)}
    kinds = typing.get_type_hints(type(config))
    values = {}
    for name, value in wanted.items():
        path = prefix + name
        if name not in fields:
            there = ", ".join(prefix + field.name for field in dataclasses.fields(config))
            raise ValueError(f"{path} is no field: there are {there}")
        current = getattr(config, name)
        if not isinstance(value, dict):
            values[name] = _read(path, value, kinds[name])
        elif dataclasses.is_dataclass(current):
            values[name] = _replace(current, value, path + ".")
        else:
            raise ValueError(f"{path}={current!r} has no fields of its own: give it a value")
    return dataclasses.replace(config, **values)


def _read(path: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for in a field of this type."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            one = typing.get_args(kind)[0]
            spaced = text if one is str else text.replace(",", " ")
            return tuple(_read(path, word, one) for word in spaced.split())
        if kind is bool and text.lower() in WORDS:
            return WORDS[text.lower()]
        if kind in (int, float, str):
            try:
                return kind(text)
            except ValueError:
                continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ValueError(f"{path}={text!r} must be of type {names}")
