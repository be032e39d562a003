"""One device, eight devices, shard_map and pmap: the same update."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax import settings
from unimix_jax.batch import Batch
from unimix_jax.data import sampling
from unimix_jax.errors import UserError
from unimix_jax.methods import method
from unimix_jax.methods.rows import ROWS
from unimix_jax.models import assembly, resnet
from unimix_jax.training import optim, parallel, steps

from .. import quick

pytestmark = pytest.mark.usefixtures("quick_compilation")
COUNTS = np.array([50, 20, 5])
# Every layer there is, of which a CPU has forms: convolutions with a stride and without, max-pooling, a residual.
network = functools.partial(resnet.ImageNetResNet, 3, blocks=(1,))
RECIPE = steps.Recipe(optim.sgd(0.9, 2e-4), np.float32([0.5]), np.float32([0.25]), 1, True)


@functools.cache
def stages(name):
    """The stages of a row for COUNTS."""
    return method.build(
        ROWS[name],
        COUNTS,
        name=name,
        epochs=10,
        steps_per_epoch=1,
        rules={"order": sampling.ORDERS, "partners": sampling.PARTNERS},
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
def compiled(count, how, axis, kernels):
    step = functools.partial(steps.train_step, stage=STAGE, network=network(axis=axis, kernels=kernels), recipe=RECIPE)
    return parallel.distribute(step, jax.devices()[:count], how)


def start():
    variables = resnet.initialise(network(), (8, 8, 1), seed=0)
    return steps.first_state(variables, RECIPE.optimiser)


NUMBERS = steps.Numbers(np.uint32(3), np.float32(0.1), np.ones(3, np.float32))


@functools.cache
def update(count, how, axis=parallel.AXIS, kernels="plain"):
    """The change of every parameter and statistic after one step, and the sums."""
    devices, state = jax.devices()[:count], start()
    after, sums = compiled(count, how, axis, kernels)(
        parallel.replicate(state, devices), parallel.place(batch(), devices, how), NUMBERS
    )
    before = (state.params, state.batch_stats)
    return jax.tree.map(lambda a, b: np.asarray(b) - a, before, (after.params, after.batch_stats)), jax.device_get(sums)


def same_update(found, expected, rtol):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=rtol * largest), found, expected)


NATIVE = [
    pytest.param(8, how, "native", marks=pytest.mark.skipif(bool(assembly.missing()), reason="none here"))
    for how in ("shard_map", "pmap")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "how", "kernels"),
    [(8, "shard_map", "plain"), *NATIVE],
)
def test_update_is_the_same_on_any_devices(count, how, kernels):
    (expected, expected_sums), (found, sums) = update(1, "shard_map"), update(count, how, kernels=kernels)
    # float32 sums in another order; measured 1e-7 to 4e-7 of the largest entry.
    same_update(found, expected, rtol=5e-6)
    for name, (total, weight) in expected_sums.items():
        np.testing.assert_allclose(sums[name][0], total, rtol=1e-6)
        assert sums[name][1] == weight == 16


@pytest.mark.slow
def test_update_is_that_of_the_plain_step_without_an_axis():
    plain = functools.partial(steps.train_step, stage=STAGE, network=network(), recipe=RECIPE, axis=None)
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
    step, devices = compiled(1, "shard_map", parallel.AXIS, "plain"), jax.devices()[:1]
    placed = parallel.place(batch(), devices)
    update(1, "shard_map")
    before = step._cache_size()
    for seed, rate in ((4, 0.1), (5, 0.01)):
        step(
            parallel.replicate(start(), devices),
            placed,
            NUMBERS._replace(seed=np.uint32(seed), learning_rate=np.float32(rate)),
        )
    assert step._cache_size() == before == 1


@pytest.mark.parametrize("how", parallel.WRAPPINGS)
def test_split_results_come_back_in_order(how):
    devices = jax.devices()[:8]
    double = parallel.distribute(
        lambda factor, x, *, axis: factor * x, devices, how, split=(False, True), split_result=True
    )
    x = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    out = double(parallel.replicate(jnp.float32(2), devices), parallel.place(x, devices, how))
    np.testing.assert_array_equal(out, 2 * x)


def test_unknown_wrappings_and_missing_devices_are_refused():
    with pytest.raises(UserError, match="unknown wrapping"):
        parallel.distribute(lambda x, *, axis: x, jax.devices(), "xmap", split=(False,))
    with pytest.raises(UserError, match=r"parallel.devices is 9, but this process has 8"):
        parallel.local_devices(9)


def test_the_environment_names_what_bits_depend_on():
    here = parallel.environment(jax.devices(), "shard_map", "plain")
    assert parallel.environment(jax.devices(), "pmap", "plain")["compiler_options"] == {}
    assert here["jax"] == jax.__version__
    assert here["cores"] >= 1
    assert isinstance(here["compiler_options"], dict)


def test_the_compiler_options_are_known_to_a_tested_jaxlib():
    if jax.__version__.startswith("0.10."):
        assert parallel.compiler_options() == parallel._CPU_OPTIONS
        assert "xla_cpu_experimental_ynn_fusion_type" in parallel.compiler_options()


@pytest.fixture
def untried(monkeypatch, tmp_path):
    """Forget what is known of native programs, here and in the cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    parallel._no_native.cache_clear()
    yield monkeypatch
    parallel._no_native.cache_clear()
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
@pytest.mark.skipif(bool(assembly.missing()), reason="no native programs here")
def test_native_programs_are_tried_in_another_process_once(untried):
    assert parallel.kernels(jax.devices(), "off") == "cpu"
    assert parallel.kernels(jax.devices(), "auto") == "native"
    untried.setattr(parallel.subprocess, "run", None)  # neither the process nor the cache asks again
    assert parallel.kernels(jax.devices(), "on") == "native"


@pytest.mark.skipif(bool(assembly.missing()), reason="no native programs here")
def test_a_trial_is_made_on_several_threads_and_its_answer_kept(untried, tmp_path, caplog):
    trials = []

    def run(command, env, **_):
        trials.append(env["NPROC"])
        return types.SimpleNamespace(stdout="differs", stderr="", returncode=0)

    untried.setattr(parallel.subprocess, "run", run)
    for _ in range(2):
        with caplog.at_level("INFO"):
            assert parallel.kernels(jax.devices(), "auto") == "cpu"
        assert "a trial of them ended with code 0: differs" in caplog.text
        caplog.clear()
        parallel._no_native.cache_clear()
    assert trials == ["4"]
    # Another source, another trial.
    untried.setattr(parallel.inspect, "getsource", lambda _: "other")
    assert parallel.kernels(jax.devices(), "auto") == "cpu"
    assert len(trials) == 2


TRACEBACK = """\
Traceback (most recent call last):
  File "native.py", line 3, in <module>
jaxlib._jax.XlaRuntimeError: INTERNAL: the reason
  more of it
--------------------
For simplicity, JAX has removed its internal frames from the traceback of the following exception.
"""


@pytest.mark.skipif(bool(assembly.missing()), reason="no native programs here")
@pytest.mark.parametrize(
    ("code", "out", "told", "trials"),
    [
        (1, TRACEBACK, "code 1: jaxlib._jax.XlaRuntimeError: INTERNAL: the reason", 1),
        (-11, "LLVM ERROR: no such thing", "code -11: LLVM ERROR: no such thing", 1),
        (1, "a sentence on something else", "code 1: a sentence on something else", 2),
        (1, "", "code 1: it said nothing", 2),
    ],
)
def test_a_trial_that_fails_is_told_by_its_error_and_kept_if_that_says_why(untried, caplog, code, out, told, trials):
    filters = []

    def run(command, env, **_):
        filters.append(env["JAX_TRACEBACK_FILTERING"])
        return types.SimpleNamespace(stdout="", stderr=out, returncode=code)

    untried.setattr(parallel.subprocess, "run", run)
    for _ in range(2):
        with caplog.at_level("INFO"):
            assert parallel.kernels(jax.devices(), "auto") == "cpu"
        assert caplog.messages[-1].endswith(f"a trial of them ended with {told}")
        parallel._no_native.cache_clear()
    assert filters == ["off"] * trials


@pytest.mark.parametrize(
    ("given", "cores", "found"),
    [({}, 1, "1"), ({"NPROC": ""}, 3, "3"), ({"NPROC": "4"}, 1, "4"), ({"PJRT_NPROC": "4"}, 1, None), ({}, 0, None)],
)
def test_threads_are_the_config_s_where_the_environment_names_none(monkeypatch, given, cores, found):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    monkeypatch.setattr(parallel, "_keep_heap", lambda: None)
    parallel.prepare_runtime(cores)
    assert parallel.os.environ.get("NPROC") == found
    assert assembly.threads() == int(given.get("PJRT_NPROC") or found or len(parallel.os.sched_getaffinity(0)))
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
    monkeypatch.setattr(parallel.importlib.metadata, "entry_points", lambda group: entry_points)
    monkeypatch.setattr(parallel.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(parallel, "_keep_heap", lambda: kept.append(True))
    for name in ("NPROC", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        with parallel.runtime(3):
            assert parallel.os.environ.get("NPROC") == "3"
            assert assembly.threads() == 3
    finally:
        jax.config.update("jax_platforms", before)
    assert kept == [True] * on_cpu
    assert "NPROC" not in parallel.os.environ


@pytest.mark.parametrize(
    ("attribute", "value", "why"),
    [
        ("_AGREES", "import os; os.abort()", "ended with code -6"),
        ("_AGREES", "print('differs')", "differs"),
        ("_TESTED_JAXLIB", ("0.1.",), "none of those with which they were tested"),
        ("assembly", types.SimpleNamespace(missing=lambda: "there is no LLVM"), "there is no LLVM"),
    ],
)
@pytest.mark.skipif(bool(assembly.missing()), reason="no native programs here")
def test_without_native_programs_a_run_goes_on_and_says_why(untried, caplog, attribute, value, why):
    untried.setattr(parallel, attribute, value)
    with caplog.at_level("INFO"):
        assert parallel.kernels(jax.devices(), "auto") == "cpu"
    assert why in caplog.text
    if attribute != "_TESTED_JAXLIB":  # which "on" overrules
        with pytest.raises(UserError, match=r"parallel\.native is on.*" + why):
            parallel.kernels(jax.devices(), "on")


def test_native_programs_are_for_cpus():
    device = types.SimpleNamespace(platform="gpu")
    assert parallel.kernels([device], "auto") == parallel.kernels([device], "off") == "plain"
    with pytest.raises(UserError, match="no CPUs"):
        parallel.kernels([device], "on")


@pytest.mark.parametrize("devices", [8, 16, 32])
@pytest.mark.parametrize("name", settings.shipped_configs())
def test_every_shipped_config_runs_on_the_devices_of_one_host_or_several(name, devices):
    texts = {
        "cifar_lt.py": ("", "dataset=cifar100", "method=unimix_bayias_code"),
        "imagenet_lt.py": ("", "network=resnet50", "recipe=usual"),
        "inat2018.py": ("", "recipe=usual"),
    }
    for text in texts.get(name, ("",)):
        config = settings.parse(["main", f"--config={name}:{text}"]).config
        parallel.check_batch(config.batch_size, devices, config.accumulate)
        block = parallel.rounded_up(config.eval_batch_size, devices)
        assert block % devices == 0
        assert 0 <= block - config.eval_batch_size < devices


@pytest.mark.parametrize(
    ("size", "devices", "parts", "message"),
    [
        (30, 8, 1, r"not a multiple of the 8 devices; set it to 24 or 32, or choose another number of devices"),
        (5, 8, 1, r"set it to 8, or"),
        (64, 3, 4, r"the 3 devices times 4 parts of config.accumulate; set it to 60 or 72, or"),
        (5, 1, 2, r"the 1 device times 2 parts of config.accumulate; set it to 4 or 6$"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_the_nearest_that_can(size, devices, parts, message):
    with pytest.raises(UserError, match=message):
        parallel.check_batch(size, devices, parts)
