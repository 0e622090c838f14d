"""The mesh that the command line asks for."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh

AXES = ("data", "fsdp", "tensor")


def read_mesh(parts: Sequence[str]) -> "Mesh | None":
    """`("data=2", "tensor=4")` as a mesh of all devices; none where nothing is asked for."""
    from jspec.sharding import make_mesh

    sizes: dict[str, int] = {}
    for part in parts:
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.isdigit() or axis in sizes:
            raise ValueError(
                f"mesh={part!r}: write each of {', '.join(AXES)} at most once, such as tensor=4"
            )
        sizes[axis] = int(size)
    return make_mesh(**sizes) if sizes else None


@contextlib.contextmanager
def placed(mesh: "Mesh | None") -> Iterator[None]:
    """Runs what is inside on the mesh, if there is one."""
    import jax

    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh):
        yield
