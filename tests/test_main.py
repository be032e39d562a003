"""The command line: what a newcomer gets wrong, and what help costs."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from unimix_jax import cli, errors, main
from unimix_jax.report import build
from unimix_jax.training import run as run_module

DIGITS = "--config=configs/digits_lt.py"


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """Return run(*argv) -> (exit code, standard output, standard error); nothing goes to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*argv):
        code = main.main(["main", *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def given(tmp_path):
    """Files and folders that the table below names."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("no config")
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "typed.py").write_text(
        "from unimix_jax.config import default, use_method\n"
        "def get_config():\n"
        "    config = default()\n"
        "    use_method(config, 'erm')\n"
        "    del config.epochs\n"
        "    config.epochs = '3'\n"
        "    return config\n"
    )
    (tmp_path / "other.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'a': 1})\n"
    )
    images = {"train_images": np.zeros((4, 8, 8), np.uint8), "test_images": np.zeros((2, 8, 8), np.uint8)}
    np.savez(tmp_path / "negative.npz", train_labels=np.array([0, 1, -1, 0]), test_labels=np.array([0, 1]), **images)
    np.savez(tmp_path / "gap.npz", train_labels=np.array([0, 2, 0, 2]), test_labels=np.array([0, 1]), **images)
    images["test_images"] = np.zeros((2, 9, 8), np.uint8)
    np.savez(tmp_path / "shape.npz", train_labels=np.array([0, 1, 0, 1]), test_labels=np.array([0, 1]), **images)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param([], "--config is missing; give one of arrays.py", id="no config"),
        pytest.param(["--config=configs/digit.py"], "which is not there; shipped: arrays.py", id="absent config"),
        pytest.param(["--config={given}/folder"], "which is a folder", id="a folder as config"),
        pytest.param(["--config={given}/text.txt"], "which is not a Python file", id="text as config"),
        pytest.param(["--config={given}/broken.py"], "is not Python", id="a config with a syntax error"),
        pytest.param(["--config={given}/raises.py"], "division by zero", id="a config that raises"),
        pytest.param(["--config={given}/empty.py"], "get_config", id="a config without get_config"),
        pytest.param(["--config={given}/other.py"], "made by unimix_jax.config.default", id="another config"),
        pytest.param([DIGITS, "--config.eval_evry=1"], "did you mean 'eval_every'", id="unknown key"),
        pytest.param(
            [DIGITS, "--config.optim.learning_rat=1"], "did you mean 'optim.learning_rate'", id="unknown inner key"
        ),
        pytest.param(
            [DIGITS, "--config.epochs=many"], "config.epochs is 'many'; it must be a whole number", id="wrong type"
        ),
        pytest.param(
            [DIGITS, "--config.epochs=1.5"], "config.epochs is '1.5'; it must be a whole number", id="float for int"
        ),
        pytest.param([DIGITS + ":methd=erm"], "did you mean 'method'", id="unknown argument"),
        pytest.param([DIGITS + ":method=unimx"], "unknown method 'unimx'", id="unknown method"),
        pytest.param([DIGITS + ":imbalance=.05"], "must be the largest class divided by the smallest", id="imbalance"),
        pytest.param([DIGITS, "--worksdir=x"], "worksdir", id="unknown flag"),
        pytest.param([DIGITS, "extra"], "unexpected argument 'extra'", id="stray argument"),
        pytest.param([DIGITS, "--config.method.name=erm"], "after the colon", id="method by override"),
        pytest.param([DIGITS, "--config.method.stages.mixed.mixer.alpha=0"], "in .01..100", id="alpha 0"),
        pytest.param([DIGITS, "--config.method.stages.mixed.mixer.alpha=nan"], "must be finite", id="alpha nan"),
        pytest.param(
            [DIGITS, "--config.method.stages.mixed.pair_sampler.class_exponent=-99"], "in -10..10", id="exponent"
        ),
        pytest.param([DIGITS, "--config.method.head=round"], "unknown head", id="unknown head"),
        pytest.param([DIGITS, "--config.data.source=cifar10"], "has no field data.dir", id="source without its fields"),
        pytest.param([DIGITS, "--config.method.stages.plain.loss=focal"], "write loss.name", id="a loss without name"),
        pytest.param(["--config=configs"], "which is a folder", id="the folder of configs"),
        pytest.param(["--config={given}/typed.py"], "config.epochs is '3'", id="a config with another type"),
        pytest.param([DIGITS, "--config.network=resnet9"], "unknown network", id="unknown network"),
        pytest.param([DIGITS, "--config.test_prior=unifrom"], "test_prior is 'unifrom'", id="unknown prior"),
        pytest.param([DIGITS, "--config.data.source=digit"], "unknown data source", id="unknown source"),
        pytest.param([DIGITS, "--config.data.imbalance=1000"], "leaves no training image", id="class without images"),
        pytest.param(
            [DIGITS, "--config.batch_size=30"],
            "not a multiple of the 8 devices; set it to 24 or 32",
            id="batch and devices",
        ),
        pytest.param([DIGITS, "--config.parallel.devices=9"], "this process has 8 devices", id="too many devices"),
        pytest.param([DIGITS, "--workdir={given}/text.txt"], "cannot write the run directory", id="file as workdir"),
        pytest.param([DIGITS, "--workdir=/proc/runs"], "cannot write the run directory", id="unwritable workdir"),
        pytest.param([DIGITS, "--workdir={given}"], "holds other files", id="somebody's folder as workdir"),
        pytest.param(
            ["--config=configs/cifar_lt.py", "--config.data.dir={given}"], "cifar10 is not under", id="missing files"
        ),
        pytest.param(["--config=configs/cifar_lt.py:dataset=cifar20"], "unknown dataset 'cifar20'", id="dataset"),
        pytest.param(["--config=configs/arrays.py"], "--config.data.file=FILE.npz", id="no file of arrays"),
        pytest.param(
            ["--config=configs/arrays.py", "--config.data.file={given}/negative.npz"], "label -1", id="negative label"
        ),
        pytest.param(
            ["--config=configs/arrays.py", "--config.data.file={given}/gap.npz"], "in class 1", id="gap in labels"
        ),
        pytest.param(
            ["--config=configs/arrays.py", "--config.data.file={given}/shape.npz"], "of one size", id="other shape"
        ),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2_before_anything_is_compiled(
    command, given, tmp_path, compilations, argv, message
):
    argv = [argument.replace("{given}", str(given)) for argument in argv]
    if not any(argument.startswith("--workdir") for argument in argv):
        argv.append(f"--workdir={tmp_path / 'run'}")
    code, out, err = command(*argv)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert compilations() == 0


def test_compilations_are_counted(compilations):
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert compilations() == 1


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_help(command, flag):
    code, out, err = command(flag)
    assert (code, err) == (0, "")
    assert "--config=FILE" in out
    assert "digits_lt.py" in out


@pytest.mark.parametrize("argv", [["--help"], ["--config=nowhere.py"], [DIGITS, "--config.epochs=0"]])
def test_help_and_mistakes_import_no_jax(argv):
    code = (
        "import sys; from unimix_jax import main; code = main.main(['main', *sys.argv[1:]]);"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'sklearn', 'grain', 'tensorflow_datasets'} & set(sys.modules);"
        "print(code, sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] in ("0 []", "2 []")


@pytest.fixture
def trained(monkeypatch):
    """Training that takes no step, with a result."""
    values = {"accuracy": 0.5, "ece": 0.1, "mce": 0.2, "many": 0.5, "medium": 0.5, "few": 0.5, "groups": "thirds"}
    monkeypatch.setattr(run_module, "run", lambda *_: {"test": {**values, "images": 10}})


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ([], "report: written"),
        (["--report=now"], "report: written"),
        (["--report=later"], "report: python -m unimix_jax.evaluate '--workdir={tmp}/a run' writes it"),
        (["--report=no"], "report: none"),
    ],
)
def test_the_report_is_written_when_it_is_wanted(command, trained, monkeypatch, tmp_path, flag, said):
    made = []
    monkeypatch.setattr(build, "write_run_report", lambda directory: made.append(directory) or "written")
    code, out, err = command(DIGITS, f"--workdir={tmp_path}/a run", *flag)
    assert (code, err) == (0, "")
    assert out.endswith(said.replace("{tmp}", str(tmp_path)) + "\n")
    assert len(made) == (said == "report: written")


def test_another_time_for_the_report_is_refused(command):
    code, _, err = command(DIGITS, "--report=soon")
    assert code == 2
    assert "now|later|no" in err


def test_a_report_that_cannot_be_written_is_no_success(command, trained, monkeypatch, tmp_path):
    def refused(_):
        raise errors.UserError("figures is there already")

    monkeypatch.setattr(build, "write_run_report", refused)
    code, out, err = command(DIGITS, f"--workdir={tmp_path}/run")
    assert code == 74
    assert "accuracy" in out  # what the run found is said all the same
    assert err == "error: the run is complete, but its report is not written: figures is there already\n"


@pytest.mark.parametrize("number", cli.STOP_SIGNALS)
def test_a_signal_that_was_ignored_stays_so(number):
    before = signal.signal(number, signal.SIG_IGN)  # as nohup, or a shell's &, starts a process
    try:
        with cli.graceful_stop() as stopped:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) == signal.SIG_IGN
            assert not stopped.is_set()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_called_as_a_library_leaves_the_process_as_it_was(command, trained, monkeypatch, tmp_path):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")

    def state():
        handlers = {number: signal.getsignal(number) for number in cli.STOP_SIGNALS}
        return dict(os.environ), [getattr(jax.config, name) for name in options], handlers, (sys.stdout, sys.stderr)

    before, inside = state(), []
    monkeypatch.setattr(run_module, "run", lambda *_, run=run_module.run: inside.append(state()) or run())
    assert command(DIGITS, "--report=no", f"--workdir={tmp_path}/run")[0] == 0
    assert state() == before
    assert all(now != then for now, then in zip(inside[0][1:3], before[1:3], strict=True))


@pytest.mark.slow
def test_measuring_needs_nothing_that_windows_lacks(tmp_path):
    """Windows has no fcntl, no resource, fewer signals: they are hidden here."""
    np.savez(tmp_path / "good.npz", logits=2 * np.eye(4), labels=np.arange(4))
    code = (
        "import os, signal, sys\n"
        "for name in ('fcntl', 'resource', 'grp', 'pwd', 'termios'): sys.modules[name] = None\n"
        "for name in ('SIGHUP', 'SIGKILL', 'SIGSTOP', 'SIGCONT', 'SIGUSR1'): delattr(signal, name)\n"
        "for name in ('sched_getaffinity', 'fork', 'getuid'): delattr(os, name)\n"
        "from unimix_jax import evaluate, main\n"
        "from unimix_jax.data import download, loading\n"
        "from unimix_jax import metrics\n"
        "from unimix_jax.training import runtime\n"
        "assert runtime.peak_memory_mib() is None\n"
        "assert main.main(['main', '--help']) == 0\n"
        "sys.exit(evaluate.main(['evaluate', *sys.argv[1:]]))"
    )
    argv = [f"--predictions={tmp_path}/good.npz", "--samples=0"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "accuracy" in done.stdout
