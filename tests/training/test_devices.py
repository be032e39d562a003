"""One device, eight devices, shard_map and pmap: the same update."""

import functools
import importlib.metadata
import importlib.util
import logging
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.config import parse, shipped_configs
from unimix_jax.data.types import Batch
from unimix_jax.errors import UserError
from unimix_jax.methods import build
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.models import accelerator, init, ops, resnet
from unimix_jax.training import augmentations, optim, runtime
from unimix_jax.training.devices import (
    AXIS,
    SPMD,
    check_batch,
    distribute,
    local_devices,
    ops_backend,
    replicate,
    rounded_up,
    shard,
)
from unimix_jax.training.runtime import threads
from unimix_jax.training.step import StepConfig, StepInputs, first_state, train_step

from .. import quick

pytestmark = pytest.mark.usefixtures("quick_compilation")
COUNTS = np.array([50, 20, 5])
# Every layer there is, that a backend computes: convolutions with a stride and without, max-pooling, a residual.
network = functools.partial(resnet.ImageNetResNet, 3, blocks=(1,))
CROP_AND_FLIP = functools.partial(augmentations.crop, pad=1), functools.partial(augmentations.flip, flip=True)
STEP_CONFIG = StepConfig(
    optim.sgd(momentum=0.9, weight_decay=2e-4), np.float32([0.5]), np.float32([0.25]), CROP_AND_FLIP
)


@functools.cache
def stages(name):
    """The stages of a row for COUNTS."""
    return build.build(
        RECIPES[name],
        COUNTS,
        name=name,
        epochs=10,
        steps_per_epoch=1,
        test_prior=np.full(3, 1 / 3),
    ).stages


STAGE = stages("unimix_bayias")[0]


def batch(size=16):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, size, 8, 8, 1), np.uint8)
    labels = random.integers(0, 3, (2, size)).astype(np.int32)
    view = np.arange(size, dtype=np.int32)
    return Batch(images[0], labels[0], view, images[1], labels[1], view + size)


@functools.cache
def compiled(count, how, axis, backend):
    if backend == "cpu_kernels":
        ops.register(backend, importlib.import_module("unimix_jax.cpu_kernels").implementations(threads()))
    if backend == "accelerator":
        ops.register(backend, accelerator.IMPLEMENTATIONS)
    step_config = STEP_CONFIG._replace(ops=backend)
    step = functools.partial(train_step, stage=STAGE, network=network(axis=axis), config=step_config)
    return distribute(step, jax.devices()[:count], how)


def start():
    variables = init.initialise(network(), (8, 8, 1), seed=0)
    return first_state(variables, STEP_CONFIG.optimiser)


NUMBERS = StepInputs(np.uint32(3), np.float32(0.1), np.ones(3, np.float32))


@functools.cache
def update(count, how, axis=AXIS, backend="xla"):
    """The change of every parameter and statistic after one step, and the sums."""
    devices, state = jax.devices()[:count], start()
    after, sums = compiled(count, how, axis, backend)(replicate(state, devices), shard(batch(), devices, how), NUMBERS)
    before = (state.params, state.batch_stats)
    return jax.tree.map(lambda a, b: np.asarray(b) - a, before, (after.params, after.batch_stats)), jax.device_get(sums)


def same_update(found, expected, rtol):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=rtol * largest), found, expected)


def without_cpu_kernels():
    """Why the CPU kernels, an optional package, cannot be tested here; "" if they can."""
    if importlib.util.find_spec("unimix_jax.cpu_kernels") is None:
        return "this copy has no CPU kernels"
    return importlib.import_module("unimix_jax.cpu_kernels.processor").unsupported()


CPU_KERNELS = [
    pytest.param(8, how, "cpu_kernels", marks=pytest.mark.skipif(bool(without_cpu_kernels()), reason="no CPU kernels"))
    for how in ("shard_map", "pmap")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "how", "backend"),
    [(8, "shard_map", "xla"), (8, "shard_map", "accelerator"), *CPU_KERNELS],
)
def test_update_is_the_same_on_any_devices(count, how, backend):
    (expected, expected_sums), (found, sums) = update(1, "shard_map"), update(count, how, backend=backend)
    # float32 sums in another order; measured 1e-7 to 4e-7 of the largest entry.
    same_update(found, expected, rtol=5e-6)
    for name, (total, weight) in expected_sums.items():
        np.testing.assert_allclose(sums[name][0], total, rtol=1e-6)
        assert sums[name][1] == weight == 16


@pytest.mark.slow
def test_update_is_that_of_the_plain_step_without_an_axis():
    plain = functools.partial(train_step, stage=STAGE, network=network(), config=STEP_CONFIG, axis=None)
    state = start()
    after, _ = quick.jit(plain)(state, batch(), NUMBERS)
    found = jax.tree.map(
        lambda a, b: np.asarray(b) - a, (state.params, state.batch_stats), (after.params, after.batch_stats)
    )
    same_update(found, update(1, "shard_map")[0], rtol=5e-6)


@pytest.mark.slow
def test_statistics_of_each_device_alone_are_another_update():
    """The option does something, and the devices still agree on their average."""
    (found, _), (expected, _) = update(8, "shard_map", None), update(1, "shard_map")
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    differences = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), found[0], expected[0]))
    assert max(differences) > 1e-3 * largest
    assert np.isfinite(differences).all()


@pytest.mark.slow
def test_the_same_step_twice_gives_the_same_bits():
    first, _ = update(8, "shard_map")
    second, _ = update.__wrapped__(8, "shard_map")
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
def test_a_new_seed_or_rate_or_a_second_call_compiles_nothing():
    step, devices = compiled(1, "shard_map", AXIS, "xla"), jax.devices()[:1]
    placed = shard(batch(), devices)
    update(1, "shard_map")
    before = step._cache_size()
    for seed, rate in ((4, 0.1), (5, 0.01)):
        step(
            replicate(start(), devices),
            placed,
            NUMBERS._replace(seed=np.uint32(seed), learning_rate=np.float32(rate)),
        )
    assert step._cache_size() == before == 1


@pytest.mark.parametrize("how", SPMD)
def test_split_results_come_back_in_order(how):
    devices = jax.devices()[:8]
    double = distribute(lambda factor, x, *, axis: factor * x, devices, how, split=(None, 0), result=0)
    x = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    out = double(replicate(jnp.float32(2), devices), shard(x, devices, how))
    np.testing.assert_array_equal(out, 2 * x)


@pytest.mark.parametrize("how", SPMD)
def test_each_device_gets_its_share_of_the_axis_that_is_named(how):
    devices = jax.devices()[:8]
    sums = distribute(
        lambda x, *, axis: jax.lax.psum(x * (1 + jax.lax.axis_index(axis)), axis), devices, how, split=(1,)
    )
    x = np.arange(48.0, dtype=np.float32).reshape(3, 16)
    shares = x.reshape(3, 8, 2)  # two columns a device
    np.testing.assert_array_equal(sums(shard(x, devices, how, axis=1)), np.einsum("kds,d->ks", shares, np.arange(1, 9)))


def test_unknown_wrappings_and_missing_devices_are_refused():
    with pytest.raises(UserError, match="unknown wrapping"):
        distribute(lambda x, *, axis: x, jax.devices(), "xmap", split=(None,))
    with pytest.raises(UserError, match=r"parallel.devices is 9, but this process has 8"):
        local_devices(9)


def test_the_environment_names_what_bits_depend_on():
    here = runtime.environment(jax.devices(), "shard_map", "xla")
    assert runtime.environment(jax.devices(), "pmap", "xla")["compiler_options"] == {}
    assert here["jax"] == jax.__version__
    assert here["cpu_threads"] >= 1
    assert isinstance(here["compiler_options"], dict)


def test_the_compiler_options_are_known_to_a_tested_jaxlib():
    if jax.__version__.startswith("0.10."):
        assert runtime.compiler_options() == runtime._CPU_OPTIONS
        assert "xla_cpu_experimental_ynn_fusion_type" in runtime.compiler_options()


def test_options_for_gpus_fall_back_to_what_the_version_of_xla_knows(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    refused = {f"{runtime._GRAPHS},CONVOLUTION"}
    monkeypatch.setattr(runtime, "_is_known", lambda name, value: value not in refused)
    options = runtime.compiler_options.__wrapped__
    graphs = {"xla_gpu_enable_command_buffer": runtime._GRAPHS, "xla_gpu_graph_min_graph_size": 1}
    assert options() == graphs
    assert options(deterministic=True) == graphs | {"xla_gpu_exclude_nondeterministic_ops": True}
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=")
    assert options() == {"xla_gpu_graph_min_graph_size": 1}  # the user's own stays
    refused.add(1)
    with caplog.at_level(logging.INFO):
        assert options() == {}
    assert "does not take xla_gpu_graph_min_graph_size=1, so programs are compiled without" in caplog.text


def test_an_option_that_xla_does_not_know_is_not_taken():
    assert not runtime._is_known("xla_no_such_option", True)


def test_the_memory_of_devices_is_the_largest_of_them():
    devices = [types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n * 2**20}) for n in (3, 5)]
    assert runtime.peak_device_memory_mib(devices) == 5
    assert runtime.peak_device_memory_mib(jax.devices()) is None


@pytest.mark.parametrize(
    ("given", "cpu_threads", "nproc"),
    [({}, 1, "1"), ({"NPROC": ""}, 3, "3"), ({"NPROC": "4"}, 1, "4"), ({"PJRT_NPROC": "4"}, 1, None), ({}, 0, None)],
)
def test_threads_are_the_config_s_where_the_environment_names_none(monkeypatch, given, cpu_threads, nproc):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    monkeypatch.setattr(runtime, "_keep_heap", lambda: None)
    runtime.prepare_runtime(cpu_threads)
    assert os.environ.get("NPROC") == nproc
    assert threads() == int(given.get("PJRT_NPROC") or nproc or len(os.sched_getaffinity(0)))
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.mark.parametrize(
    ("platforms", "entry_points", "packages", "on_cpu"),
    [
        ("cpu", ["cuda"], {"libtpu": []}, True),
        ("cpu,cuda", ["cuda"], {}, True),
        ("cuda,cpu", [], {}, False),
        ("tpu", [], {}, False),
        (None, [], {}, True),
        ("", [], {"jax_plugins": []}, True),
        (None, ["cuda"], {}, False),
        (None, [], {"jax_plugins": ["xla_cuda12"]}, False),
        (None, [], {"libtpu": []}, False),
    ],
)
def test_the_heap_is_for_cpus_and_given_cores_for_all(monkeypatch, tmp_path, platforms, entry_points, packages, on_cpu):
    for package, modules in packages.items():
        (tmp_path / package).mkdir()
        for module in modules:
            (tmp_path / package / f"{module}.py").touch()

    def find_spec(name):
        return types.SimpleNamespace(submodule_search_locations=[str(tmp_path / name)]) if name in packages else None

    kept = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entry_points)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(runtime, "_keep_heap", lambda: kept.append(True))
    for name in ("NPROC", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        with runtime.runtime(3):
            assert os.environ.get("NPROC") == "3"
            assert runtime.threads() == 3
    finally:
        jax.config.update("jax_platforms", before)
    assert kept == [True] * on_cpu
    assert "NPROC" not in os.environ


@pytest.fixture
def reason(monkeypatch):
    """Let the CPU kernels be unavailable for the reason that is set: reason[""]."""
    answers = {}
    cpu_kernels = pytest.importorskip("unimix_jax.cpu_kernels")
    monkeypatch.setattr(cpu_kernels, "unavailable", lambda any_jaxlib: answers[any_jaxlib])
    monkeypatch.setattr(ops, "_BACKENDS", {"xla": ops._XLA})
    return answers


def test_a_run_gets_the_cpu_kernels_where_they_can_be_used(reason):
    reason |= {False: "", True: ""}
    assert ops_backend(jax.devices(), "xla") == "xla"
    assert ops.backends() == ("xla",)
    assert ops_backend(jax.devices(), "auto") == "cpu_kernels"
    assert ops_backend(jax.devices(), "cpu_kernels") == "cpu_kernels"
    assert ops.backends() == ("xla", "cpu_kernels")


def test_without_cpu_kernels_a_run_goes_on_and_says_why(reason, caplog):
    reason |= {False: "there is no LLVM", True: "there is no LLVM"}
    with caplog.at_level("INFO"):
        assert ops_backend(jax.devices(), "auto") == "xla"
    assert "the CPU kernels cannot be used: there is no LLVM" in caplog.text
    with pytest.raises(UserError, match=r"parallel\.ops is cpu_kernels, .*: there is no LLVM; set it to auto"):
        ops_backend(jax.devices(), "cpu_kernels")
    assert ops.backends() == ("xla",)


def test_who_asks_for_cpu_kernels_gets_them_with_a_jaxlib_that_was_not_tested(reason):
    reason |= {False: "jaxlib is too new", True: ""}
    assert ops_backend(jax.devices(), "auto") == "xla"
    assert ops_backend(jax.devices(), "cpu_kernels") == "cpu_kernels"


def test_cpu_kernels_are_for_cpus():
    device = types.SimpleNamespace(platform="gpu")
    assert ops_backend([device], "auto") == "accelerator"
    assert ops_backend([device], "xla") == ops_backend([types.SimpleNamespace(platform="tpu")], "auto") == "xla"
    assert ops_backend(jax.devices(), "accelerator") == "accelerator"
    with pytest.raises(UserError, match="no CPUs"):
        ops_backend([device], "cpu_kernels")


def test_kernels_of_pallas_are_for_gpus():
    assert ops_backend([types.SimpleNamespace(platform="gpu")], "pallas") == "pallas"
    assert "pallas" in ops.backends()
    with pytest.raises(UserError, match="for GPUs only; set it to auto"):
        ops_backend(jax.devices(), "pallas")


@pytest.mark.parametrize("devices", [8, 16, 32])
@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_runs_on_the_devices_of_one_host_or_several(name, devices):
    texts = {
        "cifar_lt.py": ("", "dataset=cifar100", "method=unimix_bayias_code"),
        "imagenet_lt.py": ("", "network=resnet50", "recipe=usual"),
        "inat2018.py": ("", "recipe=usual"),
    }
    for text in texts.get(name, ("",)):
        config = parse(["main", f"--config={name}:{text}"]).config
        check_batch(config.batch_size, devices, config.grad_accum_steps)
        block = rounded_up(config.eval_batch_size, devices)
        assert block % devices == 0
        assert 0 <= block - config.eval_batch_size < devices


@pytest.mark.parametrize(
    ("size", "devices", "parts", "message"),
    [
        (30, 8, 1, r"not a multiple of the 8 devices; set it to 24 or 32, or choose another number of devices"),
        (5, 8, 1, r"set it to 8, or"),
        (64, 3, 4, r"the 3 devices times 4 parts of config.grad_accum_steps; set it to 60 or 72, or"),
        (5, 1, 2, r"the 1 device times 2 parts of config.grad_accum_steps; set it to 4 or 6$"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_the_nearest_that_can(size, devices, parts, message):
    with pytest.raises(UserError, match=message):
        check_batch(size, devices, parts)
