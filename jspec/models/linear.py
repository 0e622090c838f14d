"""Matrices."""

import jax
from flax import linen as nn
from jax import Array

from jspec.sharding import named


class Linear(nn.Module):
    """`x @ weight.T`; the weight is `[out, in]`, as files hold it."""

    features: int
    axes: tuple[str, str]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        weight = self.param("weight", named(init, *self.axes), (self.features, x.shape[-1]))
        y = jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
        if self.use_bias:
            bias = named(nn.initializers.zeros, self.axes[0])
            y = y + self.param("bias", bias, (self.features,))[None, None]
        return y
