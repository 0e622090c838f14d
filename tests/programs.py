"""What traced programs do."""

from collections.abc import Iterator
from typing import Any


def products(program: Any) -> Iterator[tuple]:
    """The shapes that a program multiplies, those of its inner programs too."""
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(variable.aval.shape for variable in equation.invars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)
