"""Running on a mesh, and beside the other processes of a launch."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh


@contextlib.contextmanager
def placed(mesh: "Mesh | None") -> Iterator[None]:
    """Runs what is inside on the mesh, if there is one."""
    import jax

    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh):
        yield


def joined() -> bool:
    """Joins the launch; whether this is its first process, the one that speaks."""
    import jax

    from jspec.parallel.launch import join

    join()
    return jax.process_index() == 0
