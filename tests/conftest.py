"""One process, eight virtual CPU devices, the smallest networks; compiled functions are shared by fixtures."""

import functools
import importlib
import importlib.metadata
import os
import pathlib
import platform
import sys

# Compiled programs are kept for the tests that follow, for processes that tests start, and for the next run of the
# suite, which takes half of the time with them; JAX reads this as it starts. JAX finds a program by all that it is made
# of, but a folder for each version and processor makes sure that no other one's are read.
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    _cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unimix_jax" / "tests"
    _made_for = importlib.metadata.version("jaxlib"), platform.python_version(), platform.machine(), platform.node()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache / "-".join(_made_for))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# numpy's products on small arrays take a quarter of the processor's time without threads that wait for each other, the
# more so where several workers share the cores; the library reads this as it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# A command that runs inside of this process leaves its threads as they are.
os.environ.setdefault(
    "NPROC", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
)

# Every compilation of this process, in the order of their ends.
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(seconds) if event.endswith("backend_compile_duration") else None
)

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Return golden(name): the arrays of tests/golden/NAME.npz."""

    def load(name):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture(scope="module")
def quick_compilation():
    """Let the steps of runs be compiled as `quick.jit` compiles, for tests of what is computed by whom."""
    from unimix_jax.training import runtime

    from . import quick

    with pytest.MonkeyPatch.context() as patch:
        for name, value in quick.OPTIONS.items():
            patch.setitem(runtime._CPU_OPTIONS, name, value)
        runtime.compiler_options.cache_clear()
        yield
    runtime.compiler_options.cache_clear()


@pytest.fixture(scope="module")
def shared_programs():
    """Let the runs of a test file share the programs that are alike, see `programs`."""
    from unimix_jax.training import loop, predict

    from . import programs

    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, predict):
            patch.setattr(module, "distribute", programs.distribute)
        yield


@pytest.fixture
def unoptimised():
    """Let XLA optimise nothing in the programs that the product compiles by itself during a test."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def undrawn(monkeypatch):
    """Let the files of pictures hold no picture, where what is drawn is not looked at: to draw takes seconds."""
    from unimix_jax.report import files

    monkeypatch.setattr(files.plots, "image", lambda figure, kind: f"a {kind}".encode())


@pytest.fixture
def without_distributions(monkeypatch):
    """Leave the class distributions of mixed images out of a report, for which programs are compiled."""
    from unimix_jax.report import build

    monkeypatch.setattr(build, "_class_distributions", lambda outputs: None)


@pytest.fixture
def unsampled(monkeypatch):
    """Leave the intervals out of the report that a run writes at its end."""
    from unimix_jax.report.build import evaluation  # which has read the type of the options

    monkeypatch.setattr(evaluation, "Options", functools.partial(evaluation.Options, samples=0))


@pytest.fixture(scope="module")
def stem():
    """Let a config name the stem of a network, its first layers and the head, as `network=stem`."""
    from unimix_jax.models import networks, resnet

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "stem", functools.partial(resnet.CifarResNet, blocks=0))
        yield


@pytest.fixture(scope="session")
def fuzz():
    """The benchmark of damaged files, as a module; it imports another one of its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pathlib.Path(__file__).resolve().parents[1] / "benchmarks")
        yield importlib.import_module("fuzz")
    for name in ("fuzz", "damage"):
        sys.modules.pop(name, None)


@pytest.fixture
def compilations():
    """Return count(): how many programs have been compiled since the test began."""
    before = len(COMPILED)
    return lambda: len(COMPILED) - before
