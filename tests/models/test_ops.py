"""The operations of networks: the choice of their backend, and XLA's own implementations."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.errors import UserError
from unimix_jax.models import ops, resnet
from unimix_jax.models.init import initialise

from .. import quick

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def doubling(monkeypatch):
    """Register a backend whose convolution is 1 x 1 only, and twice that of XLA; return the kernels' sizes it saw."""
    monkeypatch.setattr(ops, "_BACKENDS", dict(ops._BACKENDS))
    sizes = []

    def conv2d(x, kernel, stride, groups):
        sizes.append(len(kernel))
        return 2 * ops._XLA["conv2d"](x, kernel, stride, groups) if len(kernel) == 1 else NotImplemented

    ops.register("doubling", {"conv2d": conv2d})
    return sizes


X, KERNEL = np.ones((1, 2, 2, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)


def test_a_backend_computes_what_it_supports_and_xla_the_rest(doubling):
    assert "doubling" in ops.backends()
    with ops.use("doubling"):
        assert ops.conv2d(X, KERNEL)[0, 0, 0, 0] == 2
        assert ops.conv2d(X, np.ones((3, 3, 1, 1), np.float32))[0, 0, 0, 0] == 4
        assert ops.max_pool(X)[0, 0, 0, 0] == 1
    assert ops.conv2d(X, KERNEL)[0, 0, 0, 0] == 1
    assert doubling == [1, 3]


def test_one_compiled_function_is_compiled_again_for_another_backend(doubling):
    function = jax.jit(ops.conv2d)
    values = []
    for backend in ("xla", "doubling", "xla", "doubling"):
        with ops.use(backend):
            values.append(float(function(X, KERNEL)[0, 0, 0, 0]))
    assert values == [1, 2, 1, 2]
    assert len(doubling) == 1  # traced once for each backend


def test_the_backend_of_a_step_is_the_one_inside_of_it(doubling):
    """An outer choice changes nothing, whether at the first call or later, and in a cached inner function."""
    inner = jax.jit(ops.conv2d)
    steps = {backend: jax.jit(ops.using(backend, lambda x: inner(x, KERNEL))) for backend in ("xla", "doubling")}
    for outer in ("doubling", "xla"):
        with ops.use(outer):
            assert [float(steps[backend](X)[0, 0, 0, 0]) for backend in ("xla", "doubling", "xla")] == [1, 2, 1]


def test_gradients_are_of_the_backend_of_the_forward_pass(doubling):
    gradient = jax.jit(jax.grad(ops.using("doubling", lambda kernel: ops.conv2d(X, kernel).sum())))
    assert gradient(KERNEL)[0, 0, 0, 0] == 8


def test_a_choice_is_of_its_thread(doubling):
    values = []
    with ops.use("doubling"):
        thread = threading.Thread(target=lambda: values.append(float(ops.conv2d(X, KERNEL)[0, 0, 0, 0])))
        thread.start()
        thread.join()
    assert values == [1]


def test_a_choice_ends_with_an_exception(doubling):
    with pytest.raises(ZeroDivisionError), ops.use("doubling"):
        raise ZeroDivisionError
    assert ops.conv2d(X, KERNEL)[0, 0, 0, 0] == 1


def test_wrong_backends_get_a_sentence():
    with pytest.raises(UserError, match=r"unknown backend \(config.parallel.ops\) 'cuda'"), ops.use("cuda"):
        pass
    with pytest.raises(ValueError, match="'xla' cannot be replaced"):
        ops.register("xla", {})
    with pytest.raises(ValueError, match="no operation 'conv3d'; a backend computes some of conv2d, max_pool"):
        ops.register("mine", {"conv3d": None})


@pytest.mark.slow
def test_a_network_computes_every_operation_by_the_backend(monkeypatch):
    """Also with blocks that compute their activations again, and in both forms of a block."""
    called = []

    def counting(operation):
        return lambda *arguments: called.append(operation) or NotImplemented

    monkeypatch.setattr(ops, "_BACKENDS", dict(ops._BACKENDS))
    ops.register("counting", {operation: counting(operation) for operation in ops.OPERATIONS})
    for block in (resnet.BasicBlock, resnet.Bottleneck):
        network = resnet.ImageNetResNet(3, blocks=(1, 1), block=block, remat=True)
        variables = initialise(network, (8, 8, 3), 0)
        called.clear()
        apply = functools.partial(network.apply, train=True, mutable=["batch_stats"])
        jax.eval_shape(ops.using("counting", apply), variables, np.ones((2, 8, 8, 3), np.float32))
        kernels = [path for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]) if leaf.ndim == 4]
        assert called.count("max_pool") == 1
        assert called.count("conv2d") == called.count("batch_norm") == len(kernels)


def test_relu_is_a_relu_and_hands_nan_on():
    x = np.float32([-1.0, -0.0, 0.0, 2.0, np.nan])
    value, slope = jax.jit(lambda x: (ops.select_relu(x), jax.vmap(jax.grad(ops.select_relu))(x[:4])))(x)
    np.testing.assert_array_equal(value, [0, 0, 0, 2, np.nan])
    np.testing.assert_array_equal(slope, [0, 0, 0, 1])
    text = jax.jit(ops.select_relu).lower(x).as_text()
    assert "select" in text  # a maximum costs a third of a CPU step
    assert "maximum" not in text


def test_xla_computes_the_layers_of_flax():
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((2, 7, 6, 8), np.float32), random.standard_normal((3, 3, 4, 6), np.float32)

    @jax.jit
    def both(x, kernel):
        layer = nn.Conv(6, (3, 3), 2, 1, feature_group_count=2, use_bias=False)
        norm = nn.BatchNorm(use_running_average=False, use_bias=False, use_scale=False, epsilon=0.1)
        y, updated = norm.apply(
            {"batch_stats": {"mean": jnp.zeros(8), "var": jnp.zeros(8)}}, x, mutable=["batch_stats"]
        )
        z, mean, variance = ops.batch_norm(x, jnp.ones(8), jnp.zeros(8), relu=True, epsilon=0.1)
        again = ops.batch_norm_inference(x, jnp.ones(8), jnp.zeros(8), mean, variance, relu=True, epsilon=0.1)
        return [
            (ops.conv2d(x, kernel, 2, 2), layer.apply({"params": {"kernel": kernel}}, x)),
            (z, nn.relu(y)),
            (again, nn.relu(y)),
            (0.01 * mean, updated["batch_stats"]["mean"]),
            (0.01 * variance, updated["batch_stats"]["var"]),
        ]

    for a, b in both(x, kernel):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_without_the_folder_of_cpu_kernels_and_its_line_everything_works(tmp_path):
    (line,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "cpu_kernels" in line]
    assert line.strip() == '"unimix_jax.cpu_kernels",'
    shutil.copytree(ROOT / "unimix_jax", tmp_path / "unimix_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tmp_path / "unimix_jax" / "cpu_kernels")
    # An editable installation would find the folder of the clone.
    # One process runs both commands: to start takes longer than to train.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f} {type(f)}'.lower()]\n"
        "from unimix_jax.main import main\n"
        "codes = [main(sys.argv), main([*sys.argv[:-1], sys.argv[-1] + '2', '--config.parallel.ops=cpu_kernels'])]\n"
        "sys.exit(codes != [0, 2])"
    )
    command = [sys.executable, "-c", code, "--config=digits_lt.py", "--report=no", "--config.epochs=1"]
    command += ["--config.network=resnet8", f"--workdir={tmp_path / 'run'}"]
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in quick.options().items())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "predictions.npz").is_file()
    assert re.search("CPU kernels cannot be used: this installation does not have them", run.stderr)
    assert "which cannot be used here: this installation does not have them" in run.stderr
