"""Fresh parameters, made where they are to lie."""

import jax
from jax import Array
from jax.sharding import Mesh

from jspec.models.protocol import Model, Params
from jspec.sharding import RULES, Rules, check, shardings


def initial(model: Model, key: Array, *, mesh: Mesh | None = None, rules: Rules = RULES) -> Params:
    """Those of `model.init`; on a mesh each device makes its own pieces."""
    if mesh is None:
        return jax.jit(model.init)(key)
    check(mesh, model.config, rules)
    return jax.jit(model.init, out_shardings=shardings(mesh, model.axes(), rules))(key)
