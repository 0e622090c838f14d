"""Names of axes, and the one table that says on which axis of a mesh each of them lives."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, tuple[str, ...]]

RULES: Rules = {
    "batch": ("data", "fsdp"),
    "width": ("fsdp",),
    "feedforward": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocabulary": ("tensor",),
    "draft_vocabulary": ("tensor",),
}
AXES = ("data", "fsdp", "tensor")
# Of a model that every device has all of, as a draft's that is too small to be cut.
REPLICATED: Rules = {}
# An axis that lives wherever the computation puts it.
ANYWHERE = PartitionSpec.UNCONSTRAINED


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of all devices: `data` copies of the parameters, which `fsdp` and `tensor` cut.

    Code that runs under `jax.set_mesh` of it lays out its batches and caches by the same table.
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


def read_mesh(text: str) -> Mesh | None:
    """`data=2,tensor=4` as a mesh of all devices; none where nothing is asked for."""
    sizes = read_sizes(text)
    return make_mesh(**sizes) if sizes else None


def read_sizes(text: str) -> dict[str, int]:
    """`data=2,tensor=4` as numbers by axis, those that are not named left out."""
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
    """Raises `ValueError` if `mesh` does not divide what it would cut.

    Args:
      sizes: a model's config, or a head's module, whose fields are names of the table.
    """
    for name, homes in _uncut(mesh.shape, sizes, rules):
        cut, ways = " x ".join(homes), math.prod(mesh.shape[home] for home in homes)
        raise ValueError(
            f"mesh {cut}={ways} does not divide {name}={getattr(sizes, name)}: take a divisor of "
            "it; a draft may be whole on every device (rules=REPLICATED, --replicate-draft)"
        )


def divides(ways: Mapping[str, int], sizes: Any, rules: Rules = RULES) -> bool:
    """Whether a mesh of so many devices along each axis can cut what has these `sizes`."""
    return not any(_uncut(ways, sizes, rules))


def widest(sizes: Any, among: Sequence[int] = tuple(2**n for n in range(13))) -> int:
    """The most devices along `tensor`, of those numbers, that can cut what has these `sizes`."""
    alone = dict.fromkeys(AXES, 1)
    return max(count for count in among if divides({**alone, "tensor": count}, sizes))


def _uncut(
    ways: Mapping[str, int], sizes: Any, rules: Rules
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names that cannot be cut, and along which axes they would be."""
    for name, homes in rules.items():
        size = getattr(sizes, name, None)
        if size is not None and size % math.prod(ways[home] for home in homes):
            yield name, homes


class Named(nn.Partitioned):
    """A parameter and its names, which Flax would take for those of a mesh and constrain it by."""

    def unbox(self, apply_constraint: bool = True) -> Any:
        return self.value


def named(init: nn.initializers.Initializer, *axes: str | None) -> nn.initializers.Initializer:
    """`init`, remembering the names of the axes of what it makes."""

    def initialise(*arguments: Any) -> Named:
        return Named(init(*arguments), axes)

    return initialise


def axes(variables: Any) -> Any:
    """The axis names of parameters made by `named` initialisers, as a tree of `PartitionSpec`."""
    return nn.get_partition_spec(variables)


def shardings(mesh: Mesh, names: Any, rules: Rules = RULES) -> Any:
    """A tree of axis names, as `Model.axes` returns it, turned into `NamedSharding`s on `mesh`.

    Names that the table does not hold are replicated.
    """

    def place(names: PartitionSpec) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(rules.get(name) for name in names)))

    return jax.tree.map(place, names, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """`x`, laid out by the names of its axes; untouched where no mesh is in context.

    An axis is cut as far as the mesh divides it: a batch of one is on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def home(axis: Any, size: int) -> Any:
        if axis is None or axis is ANYWHERE:
            return axis
        return cutting(axis, size, mesh.shape) or None

    spec = PartitionSpec(*map(home, axes, x.shape))
    return jax.lax.with_sharding_constraint(x, spec)


def cutting(axis: str, size: int, ways: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh that cut one of `size`: as many as divide it."""
    homes = RULES.get(axis, ())
    while size % math.prod(ways[home] for home in homes):
        homes = homes[:-1]
    return homes


def rows_to_look_up(table: jax.Array, count: int) -> jax.Array:
    """`table` `[V, D]`, laid out so that a batch of `count` can look up its rows.

    Where what cuts the batch cuts the rows as well each device needs whole ones, and the table is
    gathered; else it stays where it is, and the pieces of what is looked up are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not {*RULES["width"]} & {*cutting("batch", count, mesh.shape)}:
        return table
    return constrain(table, ANYWHERE, None)
