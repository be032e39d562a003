"""The layers of a CPU: the plain ones' values and gradients, layer by layer and over whole updates."""

import ctypes
import functools
import pathlib
import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax import workdir
from unimix_jax.batch import Batch
from unimix_jax.cpu_kernels import assembly
from unimix_jax.cpu_kernels import batch_norm as cpu
from unimix_jax.cpu_kernels import convolution as native
from unimix_jax.methods import losses, mixing
from unimix_jax.methods.method import Stage
from unimix_jax.models import layers, resnet
from unimix_jax.training import optim, steps

from .. import quick

needs_native = pytest.mark.skipif(bool(assembly.missing()), reason=assembly.missing())

# Images, rows and columns, input and output channels, size of the kernel, stride: what the networks have, and rims.
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
    (1, (7, 7), 128, 512, 3, 1),  # a gradient that is split by its places
]


def plain_convolution(x, kernel, stride):
    pads = ((kernel.shape[0] // 2,) * 2,) * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def pulling(function, compiler=jax.jit):
    """One program for a function's value, and the gradients of its arguments for slopes that are anything."""

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
    return pulling(function)(*arguments)


def exact(function, *arguments):
    """The same of the plain layers in float64, where what compiles them matters little."""
    return pulling(function, quick.jit)(*arguments)


def same(found, expected, rtol):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def test_on_the_processors_they_are_made_for_nothing_here_is_skipped():
    """The test extra brings llvmlite there: a skip elsewhere has a reason, there it hides a broken installation."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split() if sys.platform.startswith("linux") else []
    if platform.machine() == "x86_64" and {"avx2", "fma"} <= set(flags):
        assert assembly.missing() == ""


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution_and_its_gradients_are_the_plain_ones(shape):
    n, sides, inputs, outputs, size, stride = shape
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((n, *sides, inputs)), random.standard_normal((size, size, inputs, outputs))
    of = functools.partial(cpu.convolve, stride=stride)
    with jax.enable_x64(True):
        expected = exact(functools.partial(plain_convolution, stride=stride), x, kernel)
        same(pulled(of, x, kernel), expected, 1e-13)
    same(pulled(of, x.astype(np.float32), kernel.astype(np.float32)), expected, 1e-5)


@pytest.fixture
def narrow(monkeypatch):
    """Let programs be those of a processor without AVX-512."""
    import llvmlite.binding as llvm

    assembly._machine()
    machine = llvm.Target.from_default_triple().create_target_machine("haswell", opt=3, jit=True)
    monkeypatch.setattr(assembly, "_machine", lambda: (machine, False, "haswell"))


@needs_native
@pytest.mark.parametrize("shape", [(3, (14, 14), 8, 24, 3, 1), (2, (9, 7), 3, 8, 7, 2)])
def test_a_processor_with_short_vectors_computes_the_same(narrow, shape):
    assert native.takes(jnp.dtype("float32"), 8)
    test_a_convolution_and_its_gradients_are_the_plain_ones(shape)
    x = np.maximum(np.random.default_rng(0).standard_normal((2, 7, 9, 8), np.float32), 0)
    same(pulled(cpu.max_pool, x), pulled(plain_pool, x), 0)


@needs_native
@pytest.mark.parametrize(("side", "channels"), [(32, 16), (8, 128)])  # split by images, and by places of the kernel
def test_no_number_of_threads_changes_a_bit(monkeypatch, side, channels):
    random = np.random.default_rng(0)
    x = random.standard_normal((32, side, side, channels), np.float32)
    kernel = random.standard_normal((3, 3, channels, channels), np.float32)
    found = []
    for threads in (1, 2, 5, 2):
        monkeypatch.setattr(assembly, "threads", lambda threads=threads: threads)
        assert native._workers(x.size * 9 * channels) == threads
        program = pulling(lambda x, k: cpu.convolve(x, k, 1))
        found += [program(x, kernel) for _ in range(3)]
    for each in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, each, found[0])


@needs_native
def test_threads_that_ask_for_the_same_program_get_one(monkeypatch):
    made, original = [], assembly._registered
    monkeypatch.setattr(assembly, "_registered", lambda *program: made.append(program) or original(*program))
    x, kernel = np.ones((3, 11, 13, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: np.asarray(cpu.convolve(x, kernel, 1)), range(4)))
    assert len(made) == 1
    assert all(each[1, 5, 5, 0] == 9 * 16 for each in found)


@needs_native
@pytest.mark.parametrize("pool", ["at once", "late", "refuses"])
def test_a_program_needs_no_worker_beside_its_caller(pool):
    """The handler, called as XLA calls it, with a pool that does what XLA's seldom does."""

    def write(code):
        """Add 1 to eight vectors, a piece each."""
        offset = code.times("%piece", code.lanes)
        one = code.everywhere("1.0")
        value = code.load(code.at(code.data("%in", 0), offset))
        code.store(code.let(f"fadd {code.vector} {value}, {one}"), code.at(code.data("%out", 0), offset))
        return 8

    name, text = assembly._program(write, (), "test", "float32", 3)
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(assembly._loaded(assembly._compiled(text), name))
    x, out = (
        np.arange(8 * assembly.lanes("float32"), dtype=np.float32),
        np.zeros(8 * assembly.lanes("float32"), np.float32),
    )
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    asked, forgotten, late = [], [], []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def schedule(order):
        size, _, context, work, state = (ctypes.c_uint64 * 5).from_address(order)
        asked.append((size, context))
        if pool == "refuses":
            return 4242
        (late.append if pool == "late" else lambda call: call())(lambda: task(work)(state))
        return None

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def destroy(error):
        forgotten.append(tuple((ctypes.c_uint64 * 3).from_address(error)))

    def buffers(array):
        buffer = (ctypes.c_uint64 * 6)(48, 0, 11, array.ctypes.data, 1, 0)
        return buffer, (ctypes.c_uint64 * 1)(ctypes.addressof(buffer))

    api, frame = (ctypes.c_uint64 * 20)(), (ctypes.c_uint64 * 20)()
    api[8], api[17] = (ctypes.cast(f, ctypes.c_void_p).value for f in (destroy, schedule))
    given, made = buffers(x), buffers(out)
    frame[2], frame[3] = ctypes.addressof(api), 77
    frame[9], frame[14] = ctypes.addressof(given[1]), ctypes.addressof(made[1])
    assert handler(ctypes.addressof(frame)) is None
    np.testing.assert_array_equal(out, x + 1)
    out[:] = 0
    for call in late:
        call()
    assert not out.any()
    assert asked == [(40, 77)] * 2
    assert forgotten == ([(24, 0, 4242)] * 2 if pool == "refuses" else [])


def described(code):
    """A program of one piece that does nothing."""
    return 1


@needs_native
def test_a_program_names_the_interface_for_which_it_is_written_not_the_caller_s():
    """The handler, asked for its metadata as a later XLA asks."""
    name, text = assembly._program(described, (), "described", "float32", 1)
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(assembly._loaded(assembly._compiled(text), name))
    frame, extension = (ctypes.c_uint64 * 20)(), (ctypes.c_uint64 * 4)()
    api, metadata = (ctypes.c_uint32 * 40)(), (ctypes.c_uint32 * 16)()
    api[8:10] = 7, 9  # XLA_FFI_Api.api_version
    frame[1], frame[2] = ctypes.addressof(extension), ctypes.addressof(api)
    extension[1], extension[3] = 1, ctypes.addressof(metadata)
    assert handler(ctypes.addressof(frame)) is None
    assert (tuple(metadata[6:8]), *metadata[:6], *metadata[8:]) == ((0, 3), *[0] * 14)


@needs_native
def test_xla_refuses_a_program_for_an_interface_that_it_does_not_speak(monkeypatch):
    assert jax.devices()  # before JAX has a backend it keeps what is registered until then
    monkeypatch.setattr(assembly, "INTERFACE", (0, 99))
    with pytest.raises(RuntimeError, match=r"API version \(0.99\) is incompatible"):
        assembly._registered(described, (), "described", "float32", 1)


@needs_native
def test_examples_one_after_the_other_are_the_batch():
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((4, 6, 6, 16), np.float32), random.standard_normal((3, 3, 16, 16), np.float32)
    found = jax.vmap(lambda image: cpu.convolve(image[None], kernel, 1)[0])(x)
    np.testing.assert_array_equal(found, cpu.convolve(x, kernel, 1))


@needs_native
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
        native.forward(x, kernel, 1, (1, 1))


@needs_native
@pytest.mark.parametrize("g", [np.ones((1, 4, 4, 16), np.float32), np.ones((2, 4, 4, 12), np.float32)])
def test_no_gradient_leaves_its_arrays(g):
    with pytest.raises(ValueError, match="no program for"):
        native.kernel_gradient(np.ones((2, 4, 4, 16), np.float32), g, 1, 3)
    with pytest.raises(ValueError, match="no program for"):
        native.max_pool_gradient(np.ones(g.shape, np.uint8), g, (2, 8, 8, g.shape[3]))
    place = np.ones((2, 4, 4, 16), np.uint8)
    for wrong in (place[:1], place.astype(np.int32)):
        with pytest.raises(ValueError, match="no program for"):
            native.max_pool_gradient(wrong, np.ones((2, 4, 4, 16), np.float32), (2, 8, 8, 16))


@needs_native
@pytest.mark.parametrize("shape", [(2, 8, 8, 16), (3, 7, 9, 32), (1, 1, 1, 16), (1, 2, 1, 48)])
def test_max_pooling_is_the_plain_one_with_ties(shape):
    x = np.maximum(np.random.default_rng(0).standard_normal(shape, np.float32), 0)
    same(pulled(cpu.max_pool, x), pulled(plain_pool, x), 0)


@needs_native
def test_max_pooling_hands_on_what_is_not_finite():
    x = np.zeros((1, 5, 5, 16), np.float32)
    x[0, 1, 1, 3], x[0, 4, 4, 5], x[0, 2, 2, :2] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(cpu.max_pool(x), plain_pool(x))


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 6, 16), (8, 3)])
def test_normalisation_and_its_gradients_are_the_plain_ones(shape, residual, activate):
    random = np.random.default_rng(0)
    scale, bias = random.uniform(0.5, 2, shape[-1]), random.standard_normal(shape[-1])
    x = 3 + 2 * random.standard_normal(shape)
    arguments = (x, scale, bias, *([random.standard_normal(shape)] if residual else []))

    def of(function, x, scale, bias, shortcut=None):
        return function(x, scale, bias, shortcut, activate, None, 1e-5)[0]

    with jax.enable_x64(True):
        expected = exact(functools.partial(of, layers.normalise), *arguments)
        same(pulled(functools.partial(of, cpu.normalise), *arguments), expected, 1e-13)
        statistics = jax.jit(lambda x: cpu.normalise(x, scale, bias, None, activate, None, 1e-5)[1:])(x)
        over = tuple(range(x.ndim - 1))
        same(statistics, (x.mean(over), x.var(over)), 1e-12)
    single = [argument.astype(np.float32) for argument in arguments]
    same(pulled(functools.partial(of, cpu.normalise), *single), expected, 1e-5)


def test_a_normalisation_keeps_nan():
    x = np.ones((2, 2, 2, 16), np.float32)
    x[0, 0, 0, 0] = np.nan
    out, _, _ = cpu.normalise(x, np.ones(16, np.float32), np.zeros(16, np.float32), None, True, None, 1e-5)
    assert np.isnan(np.asarray(out)[..., 0]).all()
    assert np.isfinite(np.asarray(out)[..., 1:]).all()


class TwoStages(resnet.CifarResNet):
    """The network of small images without its third stage, whose layers are those of the second."""

    blocks: int = 1

    @nn.compact
    def __call__(self, x, train, mix=None):
        x = layers.Convolution(16, 1, self.dtype, kernels=self.kernels, name="conv1")(x)
        x = layers.BatchNorm(self.axis, kernels=self.kernels, name="bn1")(x, train, activate=True)
        block = functools.partial(resnet.BasicBlock, shortcut=resnet.subsampled)
        return resnet._classified(self, x, train, resnet._unmixed, block, (1, 1), 16)


NETWORKS = {
    "cifar": TwoStages,
    "photographs": functools.partial(resnet.ImageNetResNet, blocks=(1,), block=resnet.Bottleneck),
}


@functools.cache
def update(network, kernels, dtype):
    """The change of every parameter after one step by Bayias of 8 mixed images of 16 x 16, as float64."""
    counts, random = np.array([50, 20, 5]), np.random.default_rng(0)
    images = random.integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
    labels = random.integers(0, 3, (2, 8)).astype(np.int32)
    view = np.arange(8, dtype=np.int32)
    share = random.uniform(0.1, 0.9, 8)

    def mixer(keys, image_a, image_b, label_a, label_b):
        """Mix by given factors: to draw them takes long to compile, and no layer takes part in it."""
        weight = share.astype(dtype)
        by_image = weight[:, None, None, None]
        return mixing.Mixed(by_image * image_a + (1 - by_image) * image_b, label_a, label_b, weight)

    loss = functools.partial(losses.bayias, train_prior=counts / counts.sum())
    stage = Stage("test", 0, 1, loss, mixer, "given", "given", np.ones(3, np.float32))
    # Images come in as what they are after normalisation: it is in float32 whatever the rest is in.
    recipe = steps.Recipe(optim.sgd(0.9, 2e-4), np.zeros(3, np.float32), np.full(3, 1 / 128, np.float32), 0, False)
    network = NETWORKS[network](3, kernels=kernels, dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        variables = resnet.initialise(network, (16, 16, 3), 0)
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
        batch = Batch(images[0], labels[0], view, images[1], labels[1], view + 8)
        numbers = steps.Numbers(np.uint32(3), np.asarray(0.1, dtype), np.ones(3, dtype))

        def step(variables, batch, numbers):
            state = steps.first_state(variables, recipe.optimiser)
            return state, steps.train_step(state, batch, numbers, stage=stage, network=network, recipe=recipe)[0]

        compiler = quick.jit if (kernels, dtype) == ("plain", "float64") else jax.jit  # as for `exact`
        before, after = jax.device_get(compiler(step)(variables, batch, numbers))
    leaves = zip(*map(jax.tree.leaves, (before[1:3], after[1:3])), strict=True)
    return np.concatenate([np.ravel(b - a) for a, b in leaves]).astype(np.float64)


FORMS = ["cpu", pytest.param("native", marks=needs_native)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "kernels"), [("cifar", "cpu"), *(pytest.param(n, "native", marks=needs_native) for n in NETWORKS)]
)
def test_a_whole_update_in_float64_is_the_plain_one(network, kernels):
    expected, found = update(network, "plain", "float64"), update(network, kernels, "float64")
    assert np.linalg.norm(expected) > 0.01
    assert np.linalg.norm(found - expected) < 1e-10 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", FORMS)
def test_a_whole_update_in_float32_is_as_near_to_float64_as_the_plain_one(kernels):
    """Two float32 programs cannot agree better: an input of relu within rounding of 0 falls on either side."""
    exact = update("cifar", "plain", "float64")
    error = {k: np.linalg.norm(update("cifar", k, "float32") - exact) for k in ("plain", kernels)}
    assert error[kernels] < 2 * error["plain"]


def keep_compiled_in(folder):
    jax.config.update("jax_compilation_cache_dir", folder)


@needs_native
def test_a_program_is_compiled_once_and_a_damaged_one_again(tmp_path, request):
    request.addfinalizer(lambda before=jax.config.jax_compilation_cache_dir: keep_compiled_in(before))
    keep_compiled_in(str(tmp_path))
    text = "define i64 @answer() { ret i64 42 }\n"
    first = assembly._compiled(text)
    (path,) = tmp_path.iterdir()
    assert workdir.read_cached(tmp_path, path.name) == first == assembly._compiled(text)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert workdir.read_cached(tmp_path, path.name) is None
    assert assembly._compiled(text) == first == workdir.read_cached(tmp_path, path.name)
    assert assembly._loaded(first, "answer")


@needs_native
def test_half_precision_is_left_to_xla():
    """Convolutions in bfloat16 are, whatever the images come in."""
    network = resnet.build("resnet8", 3, dtype=jnp.bfloat16, kernels="native")
    variables = resnet.initialise(network, (8, 8, 3), 0)
    images = np.ones((2, 8, 8, 3), np.float32)
    logits, expected = (
        jax.jit(functools.partial(form.apply, train=True, mutable=["batch_stats"]))(variables, images)[0]
        for form in (network, network.clone(kernels="plain"))
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.05)


@needs_native
def test_first_values_need_no_program(monkeypatch):
    monkeypatch.setattr(assembly, "registered", None)
    resnet.initialise(resnet.build("resnet8", 3, kernels="native"), (8, 8, 3), 0)
