"""Several processes of one run: how they find each other, agree, stop together, and go on as another number of them."""

import http.server
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from unimix_jax import cli, errors
from unimix_jax.config import parse
from unimix_jax.metrics.predictions import read_predictions
from unimix_jax.training import preemption, processes, rundir, unreadable
from unimix_jax.training.processes import Cluster
from unimix_jax.training.run import run

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a,b", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
SLURM |= {"SLURM_LOCALID": "0"}
BATCH = {"BATCH_TASK_INDEX": "1", "BATCH_TASK_COUNT": "2"}
NODES = {"BATCH_MAIN_NODE_HOSTNAME": "a", "BATCH_NODE_COUNT": "2", "BATCH_NODE_INDEX": "0"}


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ((None, None, None), {}, None),
        (("a:1", 4, 3), {}, Cluster("a:1", 4, 3, source="the options")),
        ((None, 1, None), SLURM, None),
        (("a:1", 4, 3), {"UNIMIX_PROCESSES": "2"}, Cluster("a:1", 4, 3, source="the options")),
        (
            (None, None, None),
            {"UNIMIX_COORDINATOR": "b:2", "UNIMIX_PROCESSES": "2", "UNIMIX_PROCESS": "0"},
            Cluster("b:2", 2, 0, source="the variables"),
        ),
        ((None, None, None), SLURM, Cluster(source="Slurm")),
        (
            (None, None, None),
            SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"},
            Cluster(source="Slurm", local_devices=(0, 1, 2)),
        ),
        (
            (None, None, None),
            SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            Cluster(source="Slurm"),
        ),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "1"}, None),
        (
            (None, None, None),
            {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"},
            None,
        ),  # not inside of srun
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "a,b"}, Cluster(source="the TPU pod")),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (
            (None, None, None),
            {"KUBERNETES_SERVICE_HOST": "k", "JOB_COMPLETION_INDEX": "0"},
            Cluster(source="Kubernetes"),
        ),
        ((None, None, None), BATCH | NODES, Cluster("a:8476", 2, 0, source="Cloud Batch")),
        ((None, None, None), BATCH | {"BATCH_TASK_COUNT": "1"}, None),
    ],
)
def test_processes_are_found_by_options_then_variables_then_the_machine(options, environ, expected):
    assert processes.find(*options, environ) == expected


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        (("a:1", None, None), {}, "--coordinator needs --processes and --process as well"),
        (("a:1", 2, 2), {}, "--process is 2; it must be 0 to 1, below --processes"),
        (("a", 2, 1), {}, "--coordinator is a; it must be HOST:PORT of process 0"),
        ((None, None, None), {"UNIMIX_PROCESSES": "two"}, "UNIMIX_PROCESSES and UNIMIX_PROCESS must be whole numbers"),
        ((None, None, None), BATCH, "without BATCH_HOSTS_FILE"),
        (
            (None, None, None),
            SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_NTASKS_PER_NODE": "2"},
            "Slurm starts 2 processes on this machine, each of which sees 4 GPUs",
        ),
    ],
)
def test_what_does_not_name_all_processes_is_refused(options, environ, message):
    with pytest.raises(errors.UserError, match=message.replace("(", r"\(")):
        processes.find(*options, environ)


def test_the_hosts_of_cloud_batch_are_those_of_its_file(tmp_path):
    path, name = tmp_path / "hosts", socket.gethostname()
    path.write_text(f"# of the group\nfirst 10.0.0.1\n\n{name} 10.0.0.2\n")
    environ = {**BATCH, "BATCH_HOSTS_FILE": str(path)}
    assert processes.find(None, None, None, environ) == Cluster("first:8476", 2, 1, source="Cloud Batch")
    path.write_text("first\nsecond\n")
    with pytest.raises(errors.UserError, match="stands 0 times among the 2 of"):
        processes.find(None, None, None, environ)


def test_one_process_agrees_with_itself():
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    assert processes.exchanged("") == [""]
    assert processes.from_first(lambda: {"a": 1}) == {"a": 1}
    assert (processes.all_of(True), processes.all_of(False)) == (True, False)
    processes.check_agreement({"a": 1}, "nothing")
    with processes.joined(None, 1.0):
        assert processes.leave(75) == 75


@pytest.fixture
def metadata_server(monkeypatch):
    """A metadata server as Google's; answers of `preempted` come from a list, and "absent" refuses."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(503 if answer == "absent" else 200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_):
            pass

    asked, answers = [], ["FALSE"]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    yield answers, asked
    server.shutdown()


def test_a_machine_that_is_taken_away_asks_for_a_stop(metadata_server, monkeypatch):
    answers, asked = metadata_server
    answers[:] = ["FALSE", "absent", "TRUE"]
    monkeypatch.setattr(preemption, "_PATIENCE", 0.01)
    stop, notice = threading.Event(), preemption.Notice()
    with preemption.heeded(stop, notice):
        assert stop.wait(10)
    assert 25 < notice.left() <= 30
    assert len(asked) == 3
    assert asked[0][1] == "Google"
    assert asked[0][0].startswith("/computeMetadata/v1/instance/preempted?wait_for_change=true")


def test_elsewhere_nobody_is_asked(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(preemption, "_PRODUCT", pathlib.Path("/not/there"))
    monkeypatch.setattr(processes, "metadata", lambda *_, **__: pytest.fail("it asks"))
    with preemption.heeded(threading.Event(), preemption.Notice()):
        assert not preemption.on_google()


def test_the_time_that_is_left_counts_from_the_first_notice(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    unknown, known = preemption.Notice(), preemption.Notice(30)
    for notice in (unknown, known):
        notice.begin()
    now[0] += 10
    known.begin(30)
    assert (unknown.left(), known.left()) == (None, 20)


def argv(workdir, *more):
    common = ["--config=digits_lt.py:method=unimix_bayias", f"--workdir={workdir}", "--config.batch_size=16"]
    common += ["--config.network=tiny:Tiny"]
    common += ["--config.parallel.ops=xla", "--config.log_every=1", "--config.epochs=2", "--config.eval_every=1"]
    return [*common, *more]


class Group:
    """Processes of a run on this machine, each with two virtual devices."""

    def __init__(self, folder, count, arguments):
        self.folder, port = folder, _free_port()
        environ = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTEST_ADDOPTS")}
        environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        environ |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
        self.outputs = [folder / f"output_{i}.txt" for i in range(count)]
        self.running = []
        for i, output in enumerate(self.outputs):
            several = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={i}"]
            own = arguments[i] if isinstance(arguments[0], list) else arguments
            with output.open("w") as file:
                command = [sys.executable, "-m", "unimix_jax.main", *several, *own, "--report=no"]
                self.running.append(subprocess.Popen(command, cwd=folder, env=environ, stdout=file, stderr=file))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()

    def wait_for_lines(self, path, lines):
        for _ in range(1200):
            if path.exists() and path.read_bytes().count(b"\n") >= lines:
                return
            if any(process.poll() is not None for process in self.running):
                break
            time.sleep(0.1)
        pytest.fail("\n".join(output.read_text() for output in self.outputs))

    def codes(self):
        return [process.wait(120) for process in self.running]

    def last_lines(self):
        return [output.read_text().splitlines()[-1] for output in self.outputs]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


NETWORK = """
from unimix_jax.models.resnet import CifarResNet

class Tiny(CifarResNet):
    blocks: int = 0  # the first layers and the head
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a network that is compiled in a second, and normalises over the batch of all processes."""
    (tmp_path / "tiny.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("tiny", None)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_a_run_of_two_processes_stops_as_one_and_goes_on_in_one(folder):
    """SIGTERM to one of them; the last state is that of a run that was never divided, but for rounding."""
    arguments = argv(folder / "two", "--config.parallel.timeout=60")
    with Group(folder, 2, arguments) as group:
        group.wait_for_lines(folder / "two" / "metrics.jsonl", 5)
        group.running[1].send_signal(signal.SIGTERM)
        assert group.codes() == [75, 75], group.last_lines()
    stopped = rundir.read_metrics(folder / "two" / "metrics.jsonl")
    steps = stopped[-1]["step"]
    assert 5 <= steps < 42
    for line in group.last_lines():
        assert line == f"stopped: at step {steps} of 42, saved; --workdir={folder / 'two'} goes on"
    assert {path.name for path in (folder / "two").iterdir()} >= {"log.txt", "log_1.txt"}
    both = run(parse(["main", *argv(folder / "two", "--config.parallel.devices=8")]).config, folder / "two")
    one = run(parse(["main", *argv(folder / "one", "--config.parallel.devices=1")]).config, folder / "one")
    losses = [
        np.array([line["loss"] for line in rundir.read_metrics(folder / name / "metrics.jsonl") if "loss" in line])
        for name in ("one", "two")
    ]
    assert [len(of) for of in losses] == [42, 42]
    np.testing.assert_allclose(losses[1][:10], losses[0][:10], rtol=1e-5)
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
    assert both["test"]["accuracy"] == pytest.approx(one["test"]["accuracy"], abs=0.01)
    predictions = [read_predictions(folder / name / "predictions.npz") for name in ("one", "two")]
    np.testing.assert_array_equal(predictions[0].labels, predictions[1].labels)


@pytest.mark.slow
def test_when_one_dies_the_others_end_with_a_sentence(folder):
    with Group(folder, 2, argv(folder / "run", "--config.parallel.timeout=10")) as group:
        group.wait_for_lines(folder / "run" / "metrics.jsonl", 2)
        group.running[0].kill()
        assert group.codes() == [-9, 75]
    assert group.last_lines()[1].startswith("stopped: another process of this run has ended, or cannot be reached")


@pytest.mark.slow
def test_processes_of_different_configs_end_alike(folder):
    workdir = folder / "run"
    arguments = [argv(workdir, "--config.parallel.timeout=60"), argv(workdir, "--config.seed=3")]  # timeouts may differ
    with Group(folder, 2, arguments) as group:
        assert group.codes() == [2, 2]
    for line in group.last_lines():
        assert "differ in their configs: seed is 0 in process 0, 3 in process 1; start all of them alike" in line
    assert not (workdir / "config.json").exists()


@pytest.mark.slow
def test_a_process_that_does_not_come_is_waited_for_no_longer_than_said(folder):
    command = [sys.executable, "-m", "unimix_jax.main", *argv(folder / "run", "--config.parallel.timeout=2")]
    command += [f"--coordinator=127.0.0.1:{_free_port()}", "--processes=2", "--process=0"]
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == errors.FAILED
    assert "not all processes of the run came within 2 s" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_a_save_that_would_not_be_ready_is_not_begun(folder, monkeypatch):
    from unimix_jax.training import checkpoints, loggers

    monkeypatch.setattr(checkpoints.Duration, "watch", lambda self, manager, step: setattr(self, "seconds", 40.0))
    stop, notice = threading.Event(), preemption.Notice(30)
    calls = iter(range(1000))
    monkeypatch.setattr(loggers.Loggers, "update", lambda self, steps: stop.set() if next(calls) == 25 else None)
    config = parse(["main", *argv(folder / "run", "--config.checkpoint.every=1", "--config.parallel.devices=1")]).config
    with pytest.raises(errors.AllInterrupted, match="at step 26 of 42, not saved, for the last save took 40 s; .*21"):
        run(config, folder / "run", stop, notice=notice)
    assert (folder / "run" / "checkpoints" / "21").exists()
    assert not (folder / "run" / "checkpoints" / "26").exists()


def test_a_stop_knows_since_when_it_is_asked_for():
    before = time.monotonic()
    request = cli.StopRequest()
    assert request.since is None
    request.set()
    first = request.since
    request.set()
    assert before <= first == request.since
    notice = preemption.Notice(30)
    notice.begin(since=first - 10)
    assert notice.left() <= 20


def test_an_abort_is_of_another_process_only_if_jax_says_so(tmp_path, monkeypatch):
    log = tmp_path / "log_1.txt"
    monkeypatch.setattr(processes.os, "readlink", lambda _: str(log))
    log.write_text("x" * 100_000 + "because the JAX distributed service detected fatal errors. This most likely")
    sentence, code = processes._why_aborted()
    assert (sentence.partition(" of this run")[0], code) == ("stopped: another process", errors.INTERRUPTED)
    log.write_text("F1 hlo.cc:1] Check failed: a == b")
    assert processes._why_aborted() == (
        f"error: a library has ended this process; see the end of {log}",
        errors.FAILED,
    )


def test_the_lists_of_all_processes_count_each_image_once(tmp_path):
    (tmp_path / "unreadable.txt").write_text("a.png\nb.png\n")
    (tmp_path / "unreadable_1.txt").write_text("b.png\nc.png\n")
    assert unreadable.count(tmp_path) == 3


def test_an_address_is_no_run_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError, match="gs://bucket/run is an address; it must be a folder"):
        rundir.create("gs://bucket/run")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_results_of_a_stage_that_are_gone_are_written_again(folder):
    command = argv(folder / "run", "--config.parallel.devices=1", "--config.method.stages.retrained.epochs=1")
    command[0] = "--config=digits_lt.py:method=crt"
    config = parse(["main", *command]).config
    result = run(config, folder / "run")
    file = folder / "run" / "stages" / "plain" / "metrics.json"
    before = file.read_bytes()
    shutil.rmtree(file.parent)
    assert run(config, folder / "run") == result
    assert file.read_bytes() == before
