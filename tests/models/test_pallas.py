"""The kernels for GPUs, interpreted on the CPU, against XLA's normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from unimix_jax.models import accelerator, ops, pallas

from .. import quick

ROUNDING = {"float32": 1e-6, "bfloat16": 2**-8}  # half of the last bit of bfloat16 is 2 ** -9


@pytest.fixture(autouse=True)
def backends():
    ops.register("accelerator", accelerator.IMPLEMENTATIONS)
    ops.register("interpreted", pallas.implementations(interpret=True))


def drawn(shape, dtype, seed=0):
    """x, scale, bias, residual, and the weights of the results."""
    random = np.random.default_rng(seed)
    x, other, weights = (jnp.asarray(array, dtype) for array in random.normal(1, 2, (3, *shape)))
    scale, bias = random.normal(size=(2, shape[-1])).astype(np.float32)
    return x, scale, bias, other, weights


def differentiated(x, scale, bias, other, weights, *, residual=True, relu=True, axis=None):
    """The result and the statistics, then the gradients of x, scale, bias and the residual."""

    def loss(x, scale, bias, other):
        out, *statistics = ops.batch_norm(x, scale, bias, other if residual else None, relu, axis)
        return (out * weights).sum(), (out, statistics)

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(x, scale, bias, other)
    return *results, gradients


def of(backend, *arguments, function=differentiated, **options):
    with ops.use(backend):
        return quick.jit(functools.partial(function, **options))(*arguments)


def assert_close(results, expected, rounding):
    for a, b in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * rounding * max(np.abs(b).max(), 1))


def kernels(function, *arguments):
    """How many kernels a function calls."""
    return str(jax.make_jaxpr(function)(*arguments)).count("pallas_call[")


@pytest.mark.parametrize(
    ("dtype", "residual", "relu"),
    [
        ("float32", True, True), ("float32", False, True), ("float32", True, False), ("bfloat16", True, True),
        ("bfloat16", False, True),
    ],
)  # fmt: skip
def test_normalisation_and_its_gradients_are_xla_s(dtype, residual, relu):
    arguments, options = drawn((4, 8, 6, 8), dtype), {"residual": residual, "relu": relu}
    results = of("interpreted", *arguments, **options)
    assert results[0].dtype == results[2][0].dtype == dtype
    with jax.enable_x64(True):
        exact = of("xla", *(np.asarray(array, np.float64) for array in arguments), **options)
    assert_close(results, exact, ROUNDING[dtype])


@pytest.mark.parametrize("residual", [True, False])
def test_a_program_may_have_several_blocks_of_rows(residual, monkeypatch):
    arguments = drawn((4, 16, 8, 8), "float32", 1)
    expected = of("accelerator", *arguments, residual=residual)
    monkeypatch.setattr(pallas, "_ELEMENTS", 256)
    monkeypatch.setattr(pallas, "_PROGRAMS", 4)
    monkeypatch.setattr(pallas, "_SUMS", 32)
    assert_close(of("interpreted", *arguments, residual=residual), expected, ROUNDING["float32"])


@pytest.mark.parametrize("residual", [True, False])
def test_replicates_have_what_each_has_alone(residual):
    arguments = jax.tree.map(lambda *arrays: jnp.stack(arrays), *[drawn((4, 4, 4, 8), "float32", i) for i in range(3)])
    one = functools.partial(differentiated, residual=residual)
    together = of("interpreted", *arguments, function=jax.vmap(one))
    assert_close(together, of("accelerator", *arguments, function=jax.vmap(one)), ROUNDING["float32"])


def test_nan_stays_nan():
    x = jnp.full((16, 8), jnp.nan)
    assert np.isnan(pallas.batch_norm(x, jnp.ones(8), jnp.zeros(8), None, True, None, 1e-5, interpret=True)[0]).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "count"),
    [((4, 4, 8), "float32", 1), ((5, 3, 8), "float32", 0), ((4, 4, 6), "float32", 0), ((4, 4, 4), "float32", 0)],
)
def test_other_shapes_are_left_to_the_accelerator_s_normalisation(shape, dtype, count):
    x, scale, bias, *_ = drawn(shape, dtype)
    assert kernels(lambda x: ops.batch_norm(x, scale, bias)[0], x) == 0  # XLA's
    with ops.use("interpreted"):
        assert kernels(lambda x: ops.batch_norm(x, scale, bias)[0], x) == count


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (2, 0)])
def test_the_kernels_are_for_batches_that_one_device_has(devices, count):
    x, scale, bias, *_ = drawn((32, 8), "float32")
    spec = PartitionSpec("batch")
    sharded = jax.shard_map(
        lambda x: ops.batch_norm(x, scale, bias, axis="batch")[0],
        mesh=Mesh(np.array(jax.devices()[:devices]), ("batch",)),
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    with ops.use("interpreted"):
        assert kernels(sharded, x) == count
