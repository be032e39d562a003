"""Signals: stopping and killing a run changes nothing of what it ends at."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from unimix_jax import storage
from unimix_jax.errors import Interrupted
from unimix_jax.training.devices import ops_backend
from unimix_jax.training.run import run

from .. import quick
from .digits_runs import config, numbers_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")]
ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_second_signal_leaves_at_once():
    code = (
        "import os, signal; from unimix_jax import cli\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which the tests may run, ignores it\n"
        "with cli.graceful_stop() as stop_requested:\n"
        "    os.kill(os.getpid(), signal.SIGHUP); assert stop_requested.is_set(); print('caught', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still here', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "caught\n")


def test_a_signal_before_the_first_step_stops_the_run(tmp_path):
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Interrupted, match="before the first step"):
        run(config(), tmp_path, stopped)
    assert storage.read_json(tmp_path / "run.json")["state"] == "stopped"


# Parts of a user: a network's stem, which is traced in half of the time, and a logger that leaves time for a signal.
PARTS = """
import time
from unimix_jax.models import resnet

class Stem(resnet.CifarResNet):
    blocks: int = 0

class Waits:
    def __init__(self, **about):
        pass

    def log(self, record):
        time.sleep(0.1)

    def finish(self):
        pass
"""


def command(directory, cache):
    """A longer run in a process of its own."""
    argv = [sys.executable, "-m", "unimix_jax.main", "--config=digits_lt.py", f"--workdir={directory}", "--report=no"]
    argv += ["--config.epochs=10", "--config.checkpoint.every=2", "--config.eval_every=5", "--config.log_every=10"]
    argv += ["--config.network=my_parts:Stem", "--config.loggers=jsonl,progress,my_parts:Waits"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "NPROC"))}
    (cache.parent / "my_parts.py").write_text(PARTS)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(cache.parent), os.environ.get("PYTHONPATH"))))
    environment["XLA_FLAGS"] = " ".join(f"--{name}={str(value).lower()}" for name, value in quick.options().items())
    return argv, environment | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}


def compiled_in(cache):
    """The programs that a cache keeps, those of XLA and the trial of the CPU kernels."""
    return {path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith("-atime")}


def newest(directory):
    """The step of the last checkpoint; 0 if there is none."""
    return max((int(p.name) for p in directory.glob("checkpoints/*") if p.name.isdigit()), default=0)


def stop_after(directory, cache, steps, number):
    """Start or go on, send a signal once there is a checkpoint of `steps` more steps; return the exit code."""
    argv, environment = command(directory, cache)
    before = newest(directory)
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 120
        while run.poll() is None:
            assert time.monotonic() < deadline
            if newest(directory) >= before + steps:
                run.send_signal(number)
                break
            time.sleep(0.005)
        return run.wait(60)


def test_a_run_stopped_and_killed_ends_at_the_bits_of_one_that_was_not(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    if ops_backend(jax.devices(), "auto") == "cpu_kernels":  # the trial of this machine need not be made again
        trials = list(pathlib.Path(jax.config.jax_compilation_cache_dir).glob("cpu_kernels-trial-*"))
        assert trials
        for trial in trials:
            shutil.copy(trial, cache)
    argv, environment = command(tmp_path / "whole", cache)
    done = subprocess.run([*argv, "--timings"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"run directory: {tmp_path / 'whole'}" in done.stdout
    assert "step 110/110" in done.stderr  # plain lines without a terminal
    for part in ("import", "data", "compile", "steps", "evaluation", "checkpoints", "report", "in all"):
        assert re.search(rf"^{part} +\d+\.\d\d s$", done.stdout, flags=re.M)
    programs = compiled_in(cache)
    assert programs

    broken = tmp_path / "broken"
    assert stop_after(broken, cache, 22, signal.SIGTERM) == 75
    assert storage.read_json(broken / "run.json")["state"] == "stopped"
    assert stop_after(broken, cache, 22, signal.SIGKILL) == -9
    assert storage.read_json(broken / "run.json")["state"] == "running"
    argv, environment = command(broken, cache)
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "resuming at step" in done.stderr
    assert len(storage.read_json(broken / "run.json")["starts"]) == 3
    assert numbers_of(broken) == numbers_of(tmp_path / "whole")
    assert compiled_in(cache) == programs  # nothing was compiled but by the first of four starts
