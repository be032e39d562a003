"""Convolutions by programs: values and gradients are those of XLA's."""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.cpu_kernels import convolution, executable
from unimix_jax.models import init, networks, ops

from .comparison import THREADS, assert_close, exact, needs_kernels, pulled, pulling, short_vectors  # noqa: F401

pytestmark = needs_kernels

# Images, rows and columns, input and output channels, size of the kernel, stride: what the networks have, and edges.
SHAPES = [
    (3, (32, 32), 16, 16, 3, 1),
    (2, (16, 16), 32, 64, 3, 2),
    (3, (8, 8), 64, 64, 3, 1),
    (5, (17, 12), 3, 32, 7, 2),  # a stem, odd sides, three kinds of padding
    (4, (8, 8), 24, 48, 1, 2),
    (4, (5, 9), 64, 16, 1, 1),
    (3, (9, 6), 16, 32, 3, 2),
    (2, (6, 10), 16, 16, 5, 3),
    (3, (1, 1), 1, 16, 3, 2),  # images of one pixel
    (2, (2, 3), 16, 16, 7, 1),  # a kernel larger than the image
    (1, (7, 7), 128, 512, 3, 1),  # a gradient whose work is divided by taps
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution_and_its_gradients_are_those_of_xla(shape):
    n, sides, inputs, outputs, size, stride = shape
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((n, *sides, inputs)), random.standard_normal((size, size, inputs, outputs))
    own = functools.partial(convolution.convolve, stride=stride, threads=THREADS)
    with jax.enable_x64(True):
        expected = exact(functools.partial(ops.conv2d, stride=stride), x, kernel)
        assert_close(pulled(own, x, kernel), expected, 1e-13)
    assert_close(pulled(own, x.astype(np.float32), kernel.astype(np.float32)), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, (14, 14), 8, 24, 3, 1), (2, (9, 7), 3, 8, 7, 2)])
@pytest.mark.usefixtures("short_vectors")
def test_a_processor_with_short_vectors_computes_the_same(shape):
    assert executable.supports(jnp.dtype("float32"), 8)
    test_a_convolution_and_its_gradients_are_those_of_xla(shape)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "channels"), [(32, 16), (8, 128)])  # divided by images, and by taps of the kernel
def test_no_number_of_threads_changes_a_bit(side, channels):
    random = np.random.default_rng(0)
    x = random.standard_normal((32, side, side, channels), np.float32)
    kernel = random.standard_normal((3, 3, channels, channels), np.float32)
    results = []
    for threads in (1, 2, 5, 2):
        assert executable.worker_count(x.size * 9 * channels, threads) == threads
        both = pulling(functools.partial(convolution.convolve, stride=1, threads=threads))
        results += [both(x, kernel) for _ in range(3)]
    for each in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, each, results[0])


def test_threads_that_ask_for_the_same_program_get_one(monkeypatch):
    compiled, original = [], executable._registered
    monkeypatch.setattr(executable, "_registered", lambda *program: compiled.append(program) or original(*program))
    x, kernel = np.ones((3, 11, 13, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: np.asarray(convolution.convolve(x, kernel, 1, THREADS)), range(4)))
    assert len(compiled) == 1
    assert all(each[1, 5, 5, 0] == 9 * 16 for each in results)


@pytest.mark.slow
def test_examples_one_after_the_other_are_the_batch():
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((4, 6, 6, 16), np.float32), random.standard_normal((3, 3, 16, 16), np.float32)
    results = jax.vmap(lambda image: convolution.convolve(image[None], kernel, 1, THREADS)[0])(x)
    np.testing.assert_array_equal(results, convolution.convolve(x, kernel, 1, THREADS))


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        (np.ones((2, 4, 4, 16), np.float32), np.ones((3, 3, 16, 16))),
        (np.ones((2, 4, 4, 16), np.float32), np.ones((3, 3, 16, 12), np.float32)),
        (np.ones((2, 4, 4, 16), np.float32), np.ones((3, 3, 8, 16), np.float32)),
        (np.ones((0, 4, 4, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)),
    ],
)
def test_no_program_leaves_its_arrays(x, kernel):
    with jax.enable_x64(True), pytest.raises(ValueError, match="no program for"):
        convolution.forward(x, kernel, 1, (1, 1), THREADS)


@pytest.mark.parametrize("g", [np.ones((1, 4, 4, 16), np.float32), np.ones((2, 4, 4, 12), np.float32)])
def test_no_gradient_leaves_its_arrays(g):
    with pytest.raises(ValueError, match="no program for"):
        convolution.kernel_gradient(np.ones((2, 4, 4, 16), np.float32), g, 1, 3, THREADS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "outputs", "groups"), [("bfloat16", 16, 1), ("float16", 16, 1), ("float32", 12, 1), ("float32", 16, 2)]
)
def test_what_has_no_program_is_left_to_xla(dtype, outputs, groups):
    x, kernel = jnp.ones((2, 4, 4, 16), dtype), jnp.ones((3, 3, 16 // groups, outputs), dtype)
    assert convolution.conv2d(x, kernel, 1, groups, threads=THREADS) is NotImplemented


@pytest.mark.slow
def test_half_precision_is_left_to_xla_in_a_whole_network(monkeypatch):
    """Convolutions in bfloat16 are, whatever dtype the images have."""
    from unimix_jax import cpu_kernels

    monkeypatch.setitem(ops._BACKENDS, "cpu_kernels", cpu_kernels.implementations(THREADS))
    network = networks.build("resnet8", 3, dtype=jnp.bfloat16)
    variables = init.initialise(network, (8, 8, 3), 0)
    images = np.ones((2, 8, 8, 3), np.float32)
    apply = functools.partial(network.apply, train=True, mutable=["batch_stats"])
    logits, expected = (jax.jit(ops.using(backend, apply))(variables, images)[0] for backend in ("cpu_kernels", "xla"))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.05)
