import functools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from unimix_jax.data import loading, sampling, workers
from unimix_jax.data.views import Reading
from unimix_jax.errors import Failure

READING = Reading(size=8, resize=10, min_area=0.5, skip_unreadable=False, threads=1, workers=0)


def gone(number):
    """Whether a process is no longer there, or a zombie of which only its parent has not heard."""
    try:
        os.kill(number, 0)
        return pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_suspended_worker_is_told_and_a_killed_one_ends_the_run(photographs, monkeypatch):
    """The worker is suspended before its first image, and killed once it was said that it is waited for."""
    monkeypatch.setattr(workers, "_PATIENCE", 0.2)
    class_index = sampling.sorted_by_class(photographs.labels)
    indices_of = functools.partial(sampling.indices, class_index, seed=0, batch_size=4)
    options = {"rows": range(4), "partners": False, "seed": 0, "reading": READING._replace(workers=1)}
    made = loading.batches(photographs, class_index, indices_of, range(10**6), **options)
    next(made)
    (worker,) = workers.multiprocessing.active_children()
    told = []
    monkeypatch.setattr(workers._log, "warning", lambda text, *values: told.append(text % values))
    os.kill(worker.pid, signal.SIGSTOP)

    def kill_when_told():
        while len(told) < 2:
            time.sleep(0.05)
        os.kill(worker.pid, signal.SIGKILL)

    threading.Thread(target=kill_when_told).start()
    with pytest.raises(Failure, match="a worker process that reads images has ended or was killed"):
        for _ in made:
            pass
    assert all(f"for an image from the worker processes {worker.pid}: is" in line for line in told[:2])
    assert gone(worker.pid)
    assert not any(thread.name == "patience" for thread in threading.enumerate())


PARENT = """
import multiprocessing, sys, time
from unimix_jax.data import workers
def work(said):
    workers._begin_worker(0, 1)
    said.put(multiprocessing.current_process().pid)
    time.sleep(1000)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    context.Process(target=work, args=(said,), daemon=True).start()
    print(said.get(), flush=True)
    time.sleep(1000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_end_with_a_killed_parent_and_with_no_signal_of_the_terminal(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    root = str(pathlib.Path(__file__).resolve().parents[2])
    command, environment = [sys.executable, tmp_path / "parent.py"], {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = int(parent.stdout.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker, number)
        assert not gone(worker)
        parent.kill()
        parent.stdout.read()  # until the worker, who holds it too, has ended
    assert gone(worker)
