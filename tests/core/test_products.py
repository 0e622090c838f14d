"""Products: right in every dtype, for few rows and many, and so are their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.core.products import FEW_ROWS, contract, project, score

ROWS = 1, 2, 5, FEW_ROWS, FEW_ROWS + 1
DTYPES = jnp.float32, jnp.bfloat16, jnp.float16


def operands(rows: int, dtype, *, inputs: int = 48, outputs: int = 80):
    rng = np.random.default_rng(rows)
    shapes = (1, rows, inputs), (outputs, inputs)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def in_float64(x, weight) -> np.ndarray:
    return np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T


@pytest.mark.law
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_adds_up_in_float32_and_is_rounded_once(rows, dtype):
    x, weight = operands(rows, dtype)
    wanted = in_float64(x, weight)
    wide = project(x, weight, jnp.float32)
    # 48 products of about 1, each added with an error of half of float32's last place.
    np.testing.assert_allclose(wide, wanted, atol=48 * 8 * 2**-24)
    assert wide.dtype == jnp.float32
    narrow = project(x, weight)
    assert narrow.dtype == dtype
    np.testing.assert_array_equal(narrow, wide.astype(dtype))


@pytest.mark.parametrize("shape", [(16,), (1, 16), (3, 16), (2, 3, 16)])
def test_leading_axes_stay_as_they_are(shape):
    rng = np.random.default_rng(0)
    x, weight = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=(8, 16)))
    found = project(x, weight)
    assert found.shape == (*shape[:-1], 8)
    np.testing.assert_allclose(found, in_float64(x, weight), atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_gradients_are_those_of_the_product(rows, dtype):
    x, weight = operands(rows, dtype)
    share = jnp.asarray(np.random.default_rng(1).normal(size=(1, rows, 80)), dtype)

    def loss(x, weight):
        return (project(x, weight).astype(jnp.float32) * share.astype(jnp.float32)).sum()

    of_x, of_weight = jax.grad(loss, (0, 1))(x, weight)
    assert (of_x.dtype, of_weight.dtype) == (dtype, dtype)
    wide = np.asarray(share, np.float64)[0]
    step = 2**-7 if dtype == jnp.bfloat16 else 1e-5
    wanted = wide @ np.asarray(weight, np.float64)
    np.testing.assert_allclose(of_x[0].astype(jnp.float32), wanted, rtol=step, atol=step)
    wanted = wide.T @ np.asarray(x, np.float64)[0]
    np.testing.assert_allclose(of_weight.astype(jnp.float32), wanted, rtol=step, atol=step)


def test_no_product_of_a_bfloat16_gradient_reads_widened_weights():
    x, weight = operands(64, jnp.bfloat16)
    program = jax.make_jaxpr(jax.grad(lambda *a: project(*a).sum(), (0, 1)))(x, weight)
    products = [one for one in program.eqns if one.primitive.name == "dot_general"]
    assert len(products) == 2  # of x and of the weight
    for one in products:
        assert {operand.aval.dtype for operand in one.invars} == {jnp.dtype("bfloat16")}


def test_a_row_in_bfloat16_has_the_same_bits_whatever_rows_are_beside_it():
    x, weight = operands(64, jnp.bfloat16, inputs=192, outputs=320)
    whole = np.asarray(project(x, weight, jnp.float32))[0]
    for count in (1, 2, 3, 4, 8, 16, 33):
        for first in (0, 5):
            part = np.asarray(project(x[:, first : first + count], weight, jnp.float32))[0]
            np.testing.assert_array_equal(part, whole[first : first + count])


def test_contract_adds_up_in_float32():
    x, weight = operands(7, jnp.bfloat16)
    found = contract("bri,oi->bro", x, weight)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, in_float64(x, weight), atol=48 * 8 * 2**-24)


@pytest.mark.law
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4])
def test_queries_meet_the_keys_of_their_own_head(rows, dtype):
    rng = np.random.default_rng(2)
    query = jnp.asarray(rng.normal(size=(2, 3, 2, rows, 8)), dtype)
    key = jnp.asarray(rng.normal(size=(2, 3, 20, 8)), dtype)
    found = score(query, key)
    assert (found.shape, found.dtype) == ((2, 3, 2, rows, 20), jnp.float32)
    wide = np.asarray(query, np.float64), np.asarray(key, np.float64)
    np.testing.assert_allclose(found, np.einsum("bkgtc,bksc->bkgts", *wide), atol=8 * 8 * 2**-24)
