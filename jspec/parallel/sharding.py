"""Names of axes, and the one table that says which axes of a mesh shard each of them."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, tuple[str, ...]]

# Axes of parameters have the names of the config's fields, which hold their sizes.
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "hidden_size": ("fsdp",),
    "intermediate_size": ("tensor",),
    "num_attention_heads": ("tensor",),
    "num_key_value_heads": ("tensor",),
    "vocab_size": ("tensor",),
    "draft_vocab_size": ("tensor",),
}
AXES = ("data", "fsdp", "tensor")
# For a model that every device holds whole, such as a draft that is too small to shard.
REPLICATED: Rules = {}
# For an axis that may be sharded as the computation likes.
ANYWHERE = PartitionSpec.UNCONSTRAINED


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of all devices: `data` copies of the parameters, sharded over `fsdp` and `tensor`.

    Code that runs under `jax.set_mesh(mesh)` shards its batches and caches by the same table.
    Raises `ValueError` unless the three multiply to the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if min(sizes.values()) < 1:
        raise ValueError(f"mesh {asked}: every axis has at least one device")
    devices = jax.device_count()
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh {asked} has {math.prod(sizes.values())} devices, and there are {devices}: "
            f"the three multiply to {devices}, as tensor={devices} does"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Runs what is inside on the mesh, if there is one."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def read_mesh(text: str) -> Mesh | None:
    """`data=2,tensor=4` as a mesh of all devices; None for an empty text."""
    sizes = read_sizes(text)
    return make_mesh(**sizes) if sizes else None


def read_sizes(text: str) -> dict[str, int]:
    """`data=2,tensor=4` as the number of devices by axis.

    >>> read_sizes("data=2,tensor=4")
    {'data': 2, 'tensor': 4}
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or not re.fullmatch("[0-9]{1,9}", size) or axis in sizes:
            raise ValueError(
                f"mesh={part!r}: write each of {', '.join(AXES)} at most once, such as tensor=4"
            )
        sizes[axis] = int(size)
    return sizes


def check(mesh: Mesh, sizes: Any, rules: Rules = RULES) -> None:
    """Raises `ValueError` if `mesh` does not divide an axis that it would shard.

    Args:
      sizes: a model's config, or a head's module, whose fields are names of the table.
    """
    for name, mesh_axes in _undivided(mesh.shape, sizes, rules):
        axes, ways = " x ".join(mesh_axes), math.prod(mesh.shape[axis] for axis in mesh_axes)
        raise ValueError(
            f"mesh {axes}={ways} does not divide {name}={getattr(sizes, name)}: take a divisor of "
            "it; a draft may be whole on every device (rules=REPLICATED, --replicate-draft)"
        )


def divides(ways: Mapping[str, int], sizes: Any, rules: Rules = RULES) -> bool:
    """Whether a mesh with so many devices along each axis can shard what has these `sizes`."""
    return not any(_undivided(ways, sizes, rules))


def most_tensor_devices(sizes: Any, among: Sequence[int] = tuple(2**n for n in range(13))) -> int:
    """The largest number in `among` of devices along `tensor` that can shard these `sizes`."""
    single = dict.fromkeys(AXES, 1)
    return max(count for count in among if divides({**single, "tensor": count}, sizes))


def _undivided(
    ways: Mapping[str, int], sizes: Any, rules: Rules
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of axes that the mesh does not divide, and its axes that would shard them."""
    for name, mesh_axes in rules.items():
        size = getattr(sizes, name, None)
        if size is not None and size % math.prod(ways[axis] for axis in mesh_axes):
            yield name, mesh_axes


class Named(nn.Partitioned):
    """A parameter and the names of its axes.

    Flax would take them for axes of the mesh in context and constrain the parameter by them.
    """

    def unbox(self, apply_constraint: bool = True) -> Any:  # noqa: ARG002
        """The parameter."""
        return self.value


def named(init: nn.initializers.Initializer, *axes: str | None) -> nn.initializers.Initializer:
    """`init` in float32, whose parameters remember the names of their axes."""

    def initialize(key: jax.Array, shape: Any, dtype: Any = np.float32) -> Named:
        return Named(init(key, shape, dtype), axes)

    return initialize


def axes(variables: Any) -> Any:
    """The axis names of parameters made by `named` initialisers, as a tree of `PartitionSpec`."""
    return nn.get_partition_spec(variables)


def shardings(mesh: Mesh, names: Any, rules: Rules = RULES) -> Any:
    """The `NamedSharding`s on `mesh` for a tree of axis names, as `Model.axes` returns it.

    Axes that are not in the table are replicated.
    """

    def place(names: PartitionSpec) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(rules.get(name) for name in names)))

    return jax.tree.map(place, names, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """`x`, sharded by the names of its axes; unchanged where no mesh is in context.

    An axis is sharded as far as the mesh divides it: a batch of one is on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def placed(axis: Any, size: int) -> Any:
        if axis is None or axis is ANYWHERE:
            return axis
        return mesh_axes_of(axis, size, mesh.shape) or None

    spec = PartitionSpec(*map(placed, axes, x.shape))
    return jax.lax.with_sharding_constraint(x, spec)


def mesh_axes_of(axis: str, size: int, ways: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh that shard an axis of `size`: as many as divide it."""
    mesh_axes = RULES.get(axis, ())
    while size % math.prod(ways[name] for name in mesh_axes):
        mesh_axes = mesh_axes[:-1]
    return mesh_axes


def rows_to_look_up(table: jax.Array, count: int) -> jax.Array:
    """`table` `[V, D]`, sharded so that a batch of `count` can look up its rows.

    Where the same axes of the mesh shard the batch and the rows, each device needs whole rows and
    the table is gathered. Otherwise it stays in place, and the parts of the result are gathered.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not {*RULES["hidden_size"]} & {*mesh_axes_of("batch", count, mesh.shape)}:
        return table
    return constrain(table, ANYWHERE, None)
