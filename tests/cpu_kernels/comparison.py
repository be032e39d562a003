"""What the tests of the CPU kernels share."""

import jax
import numpy as np
import pytest

from unimix_jax.cpu_kernels import processor

from .. import quick

needs_kernels = pytest.mark.skipif(bool(processor.unsupported()), reason=processor.unsupported())
THREADS = 2


def pulling(function, compiler=jax.jit):
    """Return one compiled function for a function's value, and its gradients for random slopes."""

    @compiler
    def both(slopes, *arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, *pull(slopes)

    def pulled(*arguments):
        out = jax.eval_shape(function, *arguments)
        slopes = np.random.default_rng(9).standard_normal(out.shape).astype(out.dtype)
        return [np.asarray(x, np.float64) for x in both(slopes, *arguments)]

    return pulled


def pulled(function, *arguments):
    """Return a function's value, and its gradients for random slopes."""
    return pulling(function)(*arguments)


def exact(function, *arguments):
    """Return the same of plain operations in float64, where it matters little what compiles them."""
    return pulling(function, quick.jit)(*arguments)


def assert_close(arrays, expected, rtol):
    """Compare arrays by the largest number of each."""
    for a, b in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


@pytest.fixture
def short_vectors(monkeypatch):
    """Let programs be those of a processor without AVX-512."""
    import llvmlite.binding as llvm

    processor.target()
    machine = llvm.Target.from_default_triple().create_target_machine("haswell", opt=3, jit=True)
    monkeypatch.setattr(processor, "target", lambda: (machine, False, "haswell"))
