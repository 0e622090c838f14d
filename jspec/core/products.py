"""Matrix products, in forms that are right in every dtype and fast for the few rows of a round.

They add up in float32 and are rounded once. In bfloat16 that is the fast form as well: a CPU with
bfloat16 instructions multiplies pairs of bfloat16 into float32, and XLA leaves these unused where
the result is to be bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

# Up to so many rows a float32 product is faster on a CPU with the weight on the left (two cores of
# an AMD EPYC with AVX2, milliseconds for 48 products with 1536 x 576 weights, right and left: 16.4
# and 12.3 for 2 rows, 17.1 and 10.2 for 4, 24.2 and 19.2 for 16, 47.5 and 44.4 for 64).
FEW_ROWS = 32


def project(x: Array, weight: Array, dtype: jnp.dtype | None = None) -> Array:
    """`x @ weight.T`: `[..., I]` and `[O, I]` -> `[..., O]`, in `dtype` or that of `x`.

    >>> project(jnp.ones((1, 3, 4), jnp.bfloat16), jnp.ones((2, 4), jnp.bfloat16)).shape
    (1, 3, 2)
    """
    return _project(x, weight, dtype or x.dtype)


def contract(axes: str, left: Array, right: Array) -> Array:
    """`jnp.einsum` of two arrays, added up in float32 and returned so."""
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def score(query: Array, key: Array) -> Array:
    """Products of queries with the keys of a cache: `[B, K, G, T, C]` and `[B, K, S, C]` ->
    `[B, K, G, T, S]` float32.

    >>> score(jnp.ones((1, 2, 3, 4, 8)), jnp.ones((1, 2, 16, 8))).shape
    (1, 2, 3, 4, 16)
    """
    return jax.lax.platform_dependent(query, key, cpu=_score_keys_first, default=_score)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x: Array, weight: Array, dtype: jnp.dtype) -> Array:
    rows = x.size // x.shape[-1]
    if rows == 1 and x.dtype != jnp.float32:
        # One row by itself takes another kernel, which reads bfloat16 weights at a tenth of the
        # speed on a CPU.
        y = _row_first(jnp.stack([x, x]), weight)[0]
    elif 1 < rows <= FEW_ROWS and x.dtype == jnp.float32:
        y = jax.lax.platform_dependent(x, weight, cpu=_weight_first, default=_row_first)
    else:
        y = _row_first(x, weight)
    return y.astype(dtype)


def _row_first(x: Array, weight: Array) -> Array:
    axes = ((x.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(x, weight, axes, preferred_element_type=jnp.float32)


def _weight_first(x: Array, weight: Array) -> Array:
    """The same with the weight on the left, which on a CPU is the operand that is read as it lies;
    the other one is rearranged for the kernel first."""
    axes = ((1,), (x.ndim - 1,)), ((), ())
    y = jax.lax.dot_general(weight, x, axes, preferred_element_type=jnp.float32)
    # XLA would exchange the operands in place of moving the axis of the result.
    return jnp.moveaxis(jax.lax.optimization_barrier(y), 0, -1)


def _score(query: Array, key: Array) -> Array:
    return contract("bkgtc,bksc->bkgts", query, key)


def _score_keys_first(query: Array, key: Array) -> Array:
    """The same with the cache on the left, as in `_weight_first`."""
    batch, heads, *_, channels = query.shape
    y = contract("bksc,bkqc->bksq", key, query.reshape(batch, heads, -1, channels))
    y = jnp.swapaxes(jax.lax.optimization_barrier(y), 2, 3)
    return y.reshape(*query.shape[:-1], key.shape[2])


def _project_forward(
    x: Array, weight: Array, dtype: jnp.dtype
) -> tuple[Array, tuple[Array, Array]]:
    return _project(x, weight, dtype), (x, weight)


def _project_backward(
    dtype: jnp.dtype, read: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    """Both products in the dtype of `x`; by jax's own rule the rounded gradient would be widened
    to float32, and the weights with it."""
    del dtype
    x, weight = read
    gradient = gradient.astype(x.dtype)
    axes = tuple(range(x.ndim - 1))
    of_x = jnp.tensordot(gradient, weight, 1, preferred_element_type=jnp.float32)
    of_weight = jnp.tensordot(gradient, x, (axes, axes), preferred_element_type=jnp.float32)
    return of_x.astype(x.dtype), of_weight.astype(weight.dtype)


_project.defvjp(_project_forward, _project_backward)
