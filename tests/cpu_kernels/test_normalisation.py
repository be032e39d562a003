"""Normalisation with a gradient of its own: values and gradients are those of XLA's; it needs no program."""

import functools

import jax
import numpy as np
import pytest

from unimix_jax.cpu_kernels import normalisation
from unimix_jax.models import ops

from .comparison import assert_close, exact, pulled


@pytest.mark.slow
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 6, 16), (8, 3)])
def test_normalisation_and_its_gradients_are_those_of_xla(shape, residual, relu):
    random = np.random.default_rng(0)
    scale, bias = random.uniform(0.5, 2, shape[-1]), random.standard_normal(shape[-1])
    x = 3 + 2 * random.standard_normal(shape)
    arguments = (x, scale, bias, *([random.standard_normal(shape)] if residual else []))

    def of(function, x, scale, bias, shortcut=None):
        return function(x, scale, bias, shortcut, relu, None, 1e-5)[0]

    with jax.enable_x64(True):
        expected = exact(functools.partial(of, ops.batch_norm), *arguments)
        assert_close(pulled(functools.partial(of, normalisation.batch_norm), *arguments), expected, 1e-13)
        statistics = jax.jit(lambda x: normalisation.batch_norm(x, scale, bias, None, relu, None, 1e-5)[1:])(x)
        over = tuple(range(x.ndim - 1))
        assert_close(statistics, (x.mean(over), x.var(over)), 1e-12)
    single = [argument.astype(np.float32) for argument in arguments]
    assert_close(pulled(functools.partial(of, normalisation.batch_norm), *single), expected, 1e-5)


@pytest.mark.slow
def test_a_normalisation_keeps_nan():
    x = np.ones((2, 2, 2, 16), np.float32)
    x[0, 0, 0, 0] = np.nan
    scale, bias = np.ones(16, np.float32), np.zeros(16, np.float32)
    out, _, _ = normalisation.batch_norm(x, scale, bias, None, True, None, 1e-5)
    assert np.isnan(np.asarray(out)[..., 0]).all()
    assert np.isfinite(np.asarray(out)[..., 1:]).all()
