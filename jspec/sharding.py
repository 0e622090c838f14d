"""Names of axes, and the one table that says on which axis of the mesh each of them lives."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

RULES: Mapping[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "width": "fsdp",
    "feedforward": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocabulary": "tensor",
}


def named(init: nn.initializers.Initializer, *axes: str | None) -> nn.initializers.Initializer:
    """`init`, remembering the names of the axes of what it makes."""
    return nn.with_partitioning(init, axes)


def axes(variables: Any) -> Any:
    """The axis names of parameters made by `named` initialisers, as a tree of `PartitionSpec`."""
    return nn.get_partition_spec(variables)


def spec(*axes: str | None) -> PartitionSpec:
    """Where an array with these axes lives. Names that the table does not hold are replicated."""
    return PartitionSpec(*(RULES.get(axis) if axis else None for axis in axes))


def shardings(mesh: jax.sharding.Mesh, names: Any) -> Any:
    """A tree of axis names, as `axes` returns it, turned into `NamedSharding`s on `mesh`."""

    def place(names: PartitionSpec) -> NamedSharding:
        return NamedSharding(mesh, spec(*names))

    return jax.tree.map(place, names, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, laid out by the names of its axes; untouched where no mesh is in context."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))
