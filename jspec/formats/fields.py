"""Fields of a `config.json`, read with their types; what is wrong with one is said in a line."""

import sys
from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]
LARGEST = 2**31 - 1  # sizes and tokens are counted in int32


def number(fields: Fields, name: str, default: float | None = None, kind: type = int) -> Any:
    """A positive number: the field, or the default where it is absent or null.

    >>> number({"hidden_size": 64}, "hidden_size")
    64
    """
    value = fields.get(name)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{name} is missing: every configuration of this model_type has it")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))) or not value > 0:
        raise ValueError(f"{name}={value!r} must be a positive {kind.__name__}")
    most = LARGEST if kind is int else sys.float_info.max
    if value > most:
        raise ValueError(f"{name}={str(value)[:40]} is more than {most}")
    return kind(value)


def count(fields: Fields, name: str) -> int:
    """A whole number that may be 0."""
    return 0 if fields.get(name) == 0 else number(fields, name)


def optional(fields: Fields, name: str, kind: type = int) -> Any:
    """A positive number, or None where the field is absent or null."""
    return None if fields.get(name) is None else number(fields, name, kind=kind)


def flag(fields: Fields, name: str, default: bool = False) -> bool:
    """True or false: the field, or the default where it is absent or null."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be true or false")
    return default if value is None else value


def choice(fields: Fields, name: str, known: tuple[str, ...], default: str) -> str:
    """One of the known words: the field, or the default where it is absent."""
    value = fields.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={value!r} is not read: {', '.join(known)} is")
    return value


def refuse(fields: Fields, **neutral: Any) -> None:
    """Raises `ValueError` for fields that change what is computed and that nothing here reads.

    `neutral` names them, each with the value that changes nothing; null changes nothing either.
    """
    for name, value in neutral.items():
        if fields.get(name) not in (None, value):
            raise ValueError(f"{name}={fields[name]!r} is not read: {value!r} is")
