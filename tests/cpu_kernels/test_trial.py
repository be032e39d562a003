"""The trial that decides whether the CPU kernels are used."""

import types

import jax
import numpy as np
import pytest

from unimix_jax.cpu_kernels import convolution, pooling, trial

from .comparison import needs_kernels

pytestmark = needs_kernels


@pytest.fixture
def untried(monkeypatch, tmp_path):
    """Forget the result of a trial, here and in the cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    trial.unavailable.cache_clear()
    yield monkeypatch
    trial.unavailable.cache_clear()
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_kernels_agree_where_they_can_be_used():
    assert trial.unavailable() == ""  # by a trial that other tests of this machine need too


@pytest.mark.slow
def test_kernels_are_tried_in_another_process_once(untried, tmp_path):
    other = tmp_path / "other" / "unimix_jax"  # another package of that name where the user works
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    untried.chdir(other.parent)
    untried.setattr(trial, "_SCRIPT", trial._SCRIPT.replace("trial.agrees()", "trial.agrees"))  # to try takes seconds
    assert trial.unavailable() == ""
    untried.setattr(trial.subprocess, "run", None)  # neither this process nor the cache asks again
    trial.unavailable.cache_clear()
    assert trial.unavailable() == trial.unavailable(any_jaxlib=True) == ""


def test_a_trial_is_made_on_several_threads_and_its_answer_kept(untried):
    trials = []

    def run(command, env, **_):
        trials.append(env["NPROC"])
        return types.SimpleNamespace(stdout="differs", stderr="", returncode=0)

    untried.setattr(trial.subprocess, "run", run)
    for _ in range(2):
        assert trial.unavailable() == "the trial of them ended with code 0: differs"
        trial.unavailable.cache_clear()
    assert trials == ["4"]
    # Another source, another trial.
    untried.setattr(trial.inspect, "getsource", lambda _: "other")
    assert "differs" in trial.unavailable()
    assert len(trials) == 2


TRACEBACK = """\
Traceback (most recent call last):
  File "trial.py", line 3, in <module>
jaxlib._jax.XlaRuntimeError: INTERNAL: the reason
  more of it
--------------------
For simplicity, JAX has removed its internal frames from the traceback of the following exception.
"""


@pytest.mark.parametrize(
    ("code", "out", "told", "trials"),
    [
        (1, TRACEBACK, "code 1: jaxlib._jax.XlaRuntimeError: INTERNAL: the reason", 1),
        (-11, "LLVM ERROR: no such thing", "code -11: LLVM ERROR: no such thing", 1),
        (1, "a sentence on something else", "code 1: a sentence on something else", 2),
        (1, "", "code 1: it printed nothing", 2),
    ],
)
def test_a_trial_that_fails_is_described_by_its_error_and_kept_if_that_says_why(untried, code, out, told, trials):
    filters = []

    def run(command, env, **_):
        filters.append(env["JAX_TRACEBACK_FILTERING"])
        return types.SimpleNamespace(stdout="", stderr=out, returncode=code)

    untried.setattr(trial.subprocess, "run", run)
    for _ in range(2):
        assert trial.unavailable() == f"the trial of them ended with {told}"
        trial.unavailable.cache_clear()
    assert filters == ["off"] * trials


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("_SCRIPT", "import os; os.abort()", "ended with code -6"),
        ("_SCRIPT", "print('differs')", "differs"),
        ("_TESTED_JAXLIB", ("0.1.",), "none of the versions with which they were tested"),
        ("processor", types.SimpleNamespace(unsupported=lambda: "there is no LLVM"), "there is no LLVM"),
    ],
)
def test_kernels_are_unavailable_for_a_reason(untried, attribute, value, reason):
    untried.setattr(trial, attribute, value)
    assert reason in trial.unavailable()


def test_an_untested_jaxlib_is_tried_where_the_kernels_are_required(untried):
    untried.setattr(trial, "_TESTED_JAXLIB", ())
    untried.setattr(trial, "_SCRIPT", "print('agrees')")
    assert trial.unavailable() != ""
    assert trial.unavailable(any_jaxlib=True) == ""


def test_a_trial_sees_the_source_of_every_module_that_makes_programs():
    folder = trial.pathlib.Path(trial.__file__).parent
    modules = {trial.pathlib.Path(module.__file__).stem for module in trial._MODULES}
    assert modules == {path.stem for path in folder.glob("*.py")} - {"__init__", "normalisation", "trial"}


@pytest.mark.slow
@pytest.mark.parametrize("module", [convolution.programs, pooling])
def test_wrong_programs_are_noticed(monkeypatch, module):
    """A multiplication that is left out, a window that is too small."""
    if module is pooling:
        monkeypatch.setattr(pooling, "_window", lambda code, position, side: (code.add(1, 0), code.add(2, 0)))
    else:
        monkeypatch.setattr(module.Code, "multiply_add", lambda code, a, b, c: code.sum(b, c))
    monkeypatch.setattr(pooling.executable, "_NAMES", {})
    assert not trial.agrees()


@pytest.mark.slow
def test_the_references_are_the_operations_of_xla():
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((2, 7, 8, 4), np.float32), random.standard_normal((3, 3, 4, 5), np.float32)
    from unimix_jax.models import ops

    for own, reference, arguments in (
        (lambda x, kernel: ops.conv2d(x, kernel, 2), lambda *a: trial._conv2d(*a, 2), (x, kernel)),
        (ops.max_pool, trial._max_pool, (x,)),
    ):
        out, pull = jax.vjp(own, *arguments)
        slopes = random.standard_normal(out.shape, np.float32)
        for a, b in zip((out, *pull(slopes)), reference(*arguments, slopes), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
