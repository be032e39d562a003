"""The operations with gradients of their own, against XLA's gradients of XLA's operations, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.models import accelerator, ops

from .. import quick


def of_both(function, *arguments, **options):
    """The results of a function of `ops` with the backend and without, each under one `jit`."""
    ops.register("accelerator", accelerator.IMPLEMENTATIONS)
    results = []
    with jax.enable_x64(True):
        for backend in ("accelerator", "xla"):
            with ops.use(backend):
                results.append(quick.jit(functools.partial(function, **options))(*arguments))
    return results


def same(pair):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), *pair)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(pair))


def gradients(x, kernel, weights, stride):
    return jax.value_and_grad(lambda x, kernel: (ops.conv2d(x, kernel, stride) * weights).sum(), (0, 1))(x, kernel)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_convolutions_and_their_gradients_are_xla_s(size, stride):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, 7, 8, 3)), random.normal(size=(size, size, 3, 4))
    weights = random.normal(size=(2, -(-7 // stride), -(-8 // stride), 4))
    same(of_both(gradients, x, kernel, weights, stride=stride))


@pytest.mark.parametrize("same_images", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_replicates_have_the_gradients_of_each_alone(size, stride, same_images):
    random = np.random.default_rng(1)
    x, kernel = random.normal(size=(3, 2, 7, 8, 3)), random.normal(size=(3, size, size, 3, 4))
    weights = random.normal(size=(3, 2, -(-7 // stride), -(-8 // stride), 4))
    if same_images:
        x = x[0]
    axes, one = (None if same_images else 0, 0, 0), functools.partial(gradients, stride=stride)

    def each_alone(x, kernel, weights):
        rows = zip(jnp.broadcast_to(x, (3, *x.shape[-4:])), kernel, weights, strict=True)
        return jax.tree.map(lambda *results: jnp.stack(results), *[one(*row) for row in rows])

    ops.register("accelerator", accelerator.IMPLEMENTATIONS)
    with jax.enable_x64(True):
        together = quick.jit(ops.using("accelerator", jax.vmap(one, in_axes=axes)))
        same((together(x, kernel, weights), quick.jit(each_alone)(x, kernel, weights)))
        # One convolution in groups makes the kernels' gradients; by XLA's rule none has groups of the batch.
        assert "batch_group_count = 3" in together.lower(x, kernel, weights).as_text()
        assert "batch_group_count = 3" not in quick.jit(jax.vmap(one, in_axes=axes)).lower(x, kernel, weights).as_text()


@pytest.mark.parametrize(
    ("shape", "residual", "relu"),
    [((4, 8, 8, 3), True, True), ((4, 3, 3, 2), False, True), ((5, 3, 3, 2), False, False)],
)
def test_normalisation_and_its_gradients_are_xla_s(shape, residual, relu):
    random = np.random.default_rng(2)
    x, other, weights = random.normal(2, 3, (3, *shape))
    scale, bias = random.normal(size=(2, shape[-1]))

    def loss(x, scale, bias, other):
        out, mean, variance = ops.batch_norm(x, scale, bias, other if residual else None, relu)
        return (out * weights).sum(), (mean, variance)

    same(of_both(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True), x, scale, bias, other))


def test_nan_stays_nan_and_groups_are_left_to_xla():
    out = accelerator.batch_norm(jnp.full((4, 2), jnp.nan), jnp.ones(2), jnp.zeros(2), None, True, None, 1e-5)[0]
    assert np.isnan(out).all()
    assert accelerator.conv2d(jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 2, 4)), 1, 2) is NotImplemented


@pytest.mark.parametrize("rows", [1, 63, 64, 100, 128 * 64, 6400])
def test_sums_of_channels_are_those_of_all_rows(rows):
    a, b = np.random.default_rng(3).integers(0, 9, (2, rows, 3)).astype(np.float32)
    np.testing.assert_array_equal(accelerator._sums_of_channels(jnp.asarray(a), jnp.asarray(b)), [a.sum(0), b.sum(0)])
