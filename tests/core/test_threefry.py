"""The numbers are those of `jax.random`."""

import functools

import jax
import numpy as np
import pytest

from jspec.core.threefry import gumbel

pytestmark = pytest.mark.law


def test_the_noise_is_that_of_jax_random():
    keys = jax.random.split(jax.random.key(91), 3)
    counts = np.array([0, 7, 2**31 - 1], np.int32)
    drawn = jax.jit(jax.vmap(functools.partial(gumbel, size=1000)))(keys, counts)
    for key, count, row in zip(keys, counts, drawn, strict=True):
        expected = jax.random.gumbel(jax.random.fold_in(key, count), (1000,))
        # One part in 10^6: the two compiled programs may take their logarithms by other kernels.
        np.testing.assert_allclose(row, expected, rtol=1e-6)
