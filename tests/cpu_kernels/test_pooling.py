"""Max-pooling by programs: values and gradients are those of XLA's."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.cpu_kernels import pooling
from unimix_jax.models import ops

from .comparison import THREADS, assert_close, needs_kernels, pulled, short_vectors  # noqa: F401

pytestmark = needs_kernels
own = functools.partial(pooling.pool, threads=THREADS)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 8, 8, 16), (3, 7, 9, 32), (1, 1, 1, 16), (1, 2, 1, 48)])
def test_max_pooling_is_that_of_xla_with_ties(shape):
    x = np.maximum(np.random.default_rng(0).standard_normal(shape, np.float32), 0)
    assert_close(pulled(own, x), pulled(ops.max_pool, x), 0)


@pytest.mark.usefixtures("short_vectors")
def test_a_processor_with_short_vectors_computes_the_same():
    x = np.maximum(np.random.default_rng(0).standard_normal((2, 7, 9, 8), np.float32), 0)
    assert_close(pulled(own, x), pulled(ops.max_pool, x), 0)


def test_max_pooling_hands_on_what_is_not_finite():
    x = np.zeros((1, 5, 5, 16), np.float32)
    x[0, 1, 1, 3], x[0, 4, 4, 5], x[0, 2, 2, :2] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(own(x), ops.max_pool(x))


@pytest.mark.parametrize("g", [np.ones((1, 4, 4, 16), np.float32), np.ones((2, 4, 4, 12), np.float32)])
def test_no_gradient_leaves_its_arrays(g):
    with pytest.raises(ValueError, match="no program for"):
        pooling.gradient(np.ones(g.shape, np.uint8), g, (2, 8, 8, g.shape[3]), THREADS)
    taps = np.ones((2, 4, 4, 16), np.uint8)
    for wrong in (taps[:1], taps.astype(np.int32)):
        with pytest.raises(ValueError, match="no program for"):
            pooling.gradient(wrong, np.ones((2, 4, 4, 16), np.float32), (2, 8, 8, 16), THREADS)


@pytest.mark.parametrize(("dtype", "channels"), [("bfloat16", 16), ("float32", 12)])
def test_what_has_no_program_is_left_to_xla(dtype, channels):
    assert pooling.max_pool(jnp.ones((2, 4, 4, channels), dtype), threads=THREADS) is NotImplemented
