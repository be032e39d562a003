"""Several processes of one run: how they find each other, what they agree on, how all of them end. No jax at import.

One process is the usual case, in which nothing here does anything. With several, each has its devices and the same
command; JAX's coordination service, which process 0 holds, passes short texts between them.
"""

import contextlib
import ctypes
import itertools
import json
import logging
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from unimix_jax import cli, errors
from unimix_jax.errors import AllInterrupted, Failure, Interrupted, UserError

_log = logging.getLogger(__name__)

_HEARTBEAT = 60.0  # seconds without a sign of a process, at most, after which it counts as dead
_WAIT = 24 * 3600.0  # for what another process does; if it dies, JAX ends this one
_TELLING = 10.0  # seconds for which process 0 stays at most, so that another one learns why the run ends
_VARIABLES = ("UNIMIX_COORDINATOR", "UNIMIX_PROCESSES", "UNIMIX_PROCESS")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # inside of srun
_BATCH_PORT = 8476
# What JAX raises where a process of a collective operation is gone.
_OF_PEERS = (
    "connection reset",
    "closed by peer",
    "socket closed",
    "remote process exited",
    "stopped sending heartbeats",
)
_JAX_LOST = b"JAX distributed service detected fatal errors"  # what it writes before it aborts
_LOOKED_AT = 1 << 16  # bytes at the end of a log
_LOST = (
    "another process of this run has ended, or cannot be reached (see its log); the last checkpoint is kept: start all "
    "processes again to go on"
)


class Cluster(NamedTuple):
    """How the processes of a run find each other."""

    coordinator: str = ""  # HOST:PORT of process 0; "" where JAX finds everything by itself
    count: int = 0
    index: int = 0
    local_devices: tuple[int, ...] | None = None  # GPUs of this process, None for all
    source: str = ""  # of this


_joined: Cluster | None = None
_silenced: Any = None  # a context that is never left
_number = itertools.count()


def find(
    coordinator: str | None, processes: int | None, process: int | None, environ: Mapping[str, str] = os.environ
) -> Cluster | None:
    """Return how this process finds the others; None if it is alone.

    The options of the command line come first, then UNIMIX_COORDINATOR, UNIMIX_PROCESSES and UNIMIX_PROCESS, then what
    JAX finds (Slurm inside of srun, Open MPI, TPU pods, Kubernetes), then Cloud Batch's variables.

    Args:
      coordinator: HOST:PORT of process 0.
      processes: how many there are.
      process: the number of this one, from 0.
      environ: the environment.

    Raises:
      UserError: some of the three are missing or wrong; several tasks of Cloud Batch without a file of hosts.

    Example: on the second of two machines.
      >>> find("10.0.0.1:8476", 2, 1, {}).index
      1
    """
    options = dict(zip(("--coordinator", "--processes", "--process"), (coordinator, processes, process), strict=True))
    values = {name: value for name, value in options.items() if value is not None}
    where = "the options"
    if not values:
        where, values = "the variables", {name: environ[name] for name in _VARIABLES if environ.get(name)}
        options = dict.fromkeys(_VARIABLES)
    if values:
        return _explicit(where, [*options], values)
    if words := _known_to_jax(environ):
        return Cluster(source=words, local_devices=_gpus_of_slurm(environ) if words == "Slurm" else None)
    return _of_cloud_batch(environ)


def _explicit(where: str, names: list[str], values: Mapping[str, Any]) -> Cluster | None:
    address, count, index = names
    try:
        numbers = {name: int(values[name]) for name in (count, index) if name in values}
    except ValueError:
        raise UserError(f"{count} and {index} must be whole numbers") from None
    if numbers.get(count) == 1 and numbers.get(index, 0) == 0:
        return None
    if missing := [name for name in names if name not in values]:
        raise UserError(f"{' and '.join(values)} need{'s' if len(values) == 1 else ''} {' and '.join(missing)} as well")
    if not 0 <= numbers[index] < numbers[count]:
        raise UserError(f"{index} is {numbers[index]}; it must be 0 to {numbers[count] - 1}, below {count}")
    host, colon, port = str(values[address]).rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"{address} is {values[address]}; it must be HOST:PORT of process 0")
    return Cluster(str(values[address]), numbers[count], numbers[index], source=where)


def _known_to_jax(environ: Mapping[str, str]) -> str:
    """Return what JAX finds the other processes by, "" for nothing."""
    if all(environ.get(name) for name in _SLURM) and environ["SLURM_NTASKS"] != "1":
        return "Slurm"
    if environ.get("OMPI_MCA_orte_hnp_uri") and environ.get("OMPI_COMM_WORLD_SIZE") != "1":
        return "Open MPI"
    if environ.get("KUBERNETES_SERVICE_HOST") and environ.get("JOB_COMPLETION_INDEX"):
        return "Kubernetes"
    hosts = environ.get("TPU_WORKER_HOSTNAMES") or environ.get("TPU_PROCESS_ADDRESSES") or ""
    if "," in hosts or environ.get("MEGASCALE_COORDINATOR_ADDRESS") or _on_tpu_pod(environ):
        return "the TPU pod"
    return ""


def _on_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Return whether this is a worker of a Cloud TPU of several, as the metadata server says."""
    if environ.get("TPU_SKIP_MDS_QUERY") or not any(pathlib.Path("/dev").glob("accel[0-9]*")):
        return False
    workers = metadata("instance/attributes/worker-network-endpoints", environ)
    return workers is not None and "," in workers


def metadata(path: str, environ: Mapping[str, str] = os.environ, timeout: float = 3.0) -> str | None:
    """Return a value of Google's metadata server; None where there is none.

    Args:
      path: below computeMetadata/v1/.
      environ: the environment; GCE_METADATA_HOST names another server.
      timeout: in seconds.
    """
    import urllib.request

    host = environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    request = urllib.request.Request(f"http://{host}/computeMetadata/v1/{path}", headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as reply:
            return reply.read(65536).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None


def _gpus_of_slurm(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the GPUs of a process under Slurm, where JAX would take the one of its number only."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", environ.get("SLURM_STEP_GPUS", ""))
    gpus = len([text for text in visible.split(",") if text.strip()])
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_NTASKS_PER_NODE") or "1"
    tasks = int(tasks.partition("(")[0].partition(",")[0])
    if gpus <= 1 or tasks == 1:
        return tuple(range(gpus)) or None
    if tasks == gpus:
        return None  # JAX's own choice: one each
    raise UserError(
        f"Slurm starts {tasks} processes on this machine, each of which sees {gpus} GPUs; start one, or one for each"
    )


def _of_cloud_batch(environ: Mapping[str, str], port: int = _BATCH_PORT) -> Cluster | None:
    """Return the cluster of the tasks of a Cloud Batch job, one a machine."""
    if "BATCH_TASK_INDEX" not in environ or int(environ.get("BATCH_TASK_COUNT", "1")) == 1:
        return None
    names = ("BATCH_MAIN_NODE_HOSTNAME", "BATCH_NODE_COUNT", "BATCH_NODE_INDEX")
    if all(environ.get(name) for name in names):
        host, count, index = (environ[name] for name in names)
        return Cluster(f"{host}:{port}", int(count), int(index), source="Cloud Batch")
    path = environ.get("BATCH_HOSTS_FILE")
    if not path:
        raise UserError("Cloud Batch started several tasks without BATCH_HOSTS_FILE; set requireHostsFile in the job")
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    hosts = [words[0] for line in lines if (words := line.partition("#")[0].split())]
    own = {socket.gethostname().partition(".")[0], environ.get("HOSTNAME", "").partition(".")[0]}
    at = [i for i, host in enumerate(hosts) if host.partition(".")[0] in own]
    if len(at) != 1:
        raise UserError(
            f"this machine stands {len(at)} times among the {len(hosts)} of {path}; it must stand there once"
        )
    return Cluster(f"{hosts[0]}:{port}", len(hosts), at[0], source="Cloud Batch")


def count() -> int:
    """Return the number of processes of this run."""
    return _joined.count if _joined else 1


def index() -> int:
    """Return the number of this process, from 0."""
    return _joined.index if _joined else 0


def is_first() -> bool:
    """Return whether this process writes the run directory: number 0."""
    return index() == 0


def own(devices: Sequence) -> list:
    """Return those of some devices of JAX that this process has."""
    return [device for device in devices if count() == 1 or device.process_index == index()]


@contextlib.contextmanager
def joined(cluster: Cluster | None, timeout: float) -> Iterator[None]:
    """Join the other processes of the run, and leave them together at the end.

    An error of one ends the others with the same sentence. If one dies, the others end with a sentence and 75.

    Args:
      cluster: of `find`; None for one process.
      timeout: seconds for all to come.

    Yields:
      Nothing.

    Raises:
      UserError: JAX does not find the others.
      Failure: they did not come.
      AllInterrupted: of what runs inside.
      Interrupted: another process is gone.
    """
    global _joined
    if cluster is None:
        yield
        return
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # its handler of SIGTERM would replace ours, silently
    _initialise(cluster, timeout)
    _joined = cluster._replace(count=_state().num_processes, index=_state().process_id)
    threading.Thread(target=_end_if_another_fails, daemon=True, name="watch").start()
    try:
        yield
    except AllInterrupted:
        _leave_together()
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error).lower() for word in _OF_PEERS):
            raise Interrupted(_LOST) from error
        _tell(error)
        raise
    _leave_together()


def _initialise(cluster: Cluster, timeout: float) -> None:
    """Connect to the other processes.

    Raises:
      UserError: JAX does not find them.
      Failure: they did not come; JAX aborts as often as it raises then.
    """
    import jax

    global _at_abort
    options: dict[str, Any] = {"local_device_ids": cluster.local_devices}
    if cluster.coordinator:
        options |= {"coordinator_address": cluster.coordinator, "cluster_detection_method": "deactivate"}
        options |= {"num_processes": cluster.count, "process_id": cluster.index}
    seconds = max(1, round(timeout))
    who = f"{cluster.index} of {cluster.count} at {cluster.coordinator}" if cluster.coordinator else cluster.source
    absent = (
        f"not all processes of the run came within {seconds} s (this is {who}); see that all are started and reach "
        "process 0, or set --config.parallel.timeout"
    )
    _at_abort = f"error: {absent}", errors.FAILED
    _end_with_sentence_at_abort()
    with tempfile.NamedTemporaryFile() as log, cli.redirect_library_output(log.name):  # of pages that JAX prints
        try:
            jax.distributed.initialize(
                **options,
                initialization_timeout=seconds,
                heartbeat_timeout_seconds=round(min(_HEARTBEAT, max(timeout, 5))),
                shutdown_timeout_seconds=seconds,
            )
        except ValueError as error:
            raise UserError(
                f"{cluster.source} names several processes, but JAX does not find them ({error}); give --coordinator, "
                "--processes and --process"
            ) from None
        except Exception as error:  # of several types
            raise Failure(f"{absent}: {str(error).partition(chr(10))[0]}") from None
    _at_abort = None


def _why_aborted() -> tuple[str, int]:
    """Return what to say at an abort, and the exit code: JAX wrote into the log whether another process is gone."""
    log = ""
    with contextlib.suppress(OSError):
        log = os.readlink("/proc/self/fd/2")  # of the run, to which the output of libraries goes
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOOKED_AT))
            if _JAX_LOST not in file.read():
                return f"error: a library has ended this process; see the end of {log}", errors.FAILED
    return f"stopped: {_LOST}", errors.INTERRUPTED


def _leave_together() -> None:
    """Leave when all processes do: process 0 holds the service that the others need, and may still write the report."""
    import jax

    exchanged("")
    _silence()
    with contextlib.suppress(Exception):  # the run is over; what fails here changes nothing
        jax.distributed.shutdown()


def _silence() -> None:
    """Drop what libraries print from now on: JAX's pages on processes that leave."""
    global _silenced
    _silenced = cli.redirect_library_output(os.devnull)
    _silenced.__enter__()


def leave(code: int) -> int:
    """Return an exit code; after several processes end this one with it, for the interpreter's own end may hang."""
    if _joined is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def _state() -> Any:
    """Return what JAX knows of the processes, before it has devices; it has no public name."""
    from jax._src import distributed

    return distributed.global_state


def _client() -> Any:
    """Return the client of JAX's coordination service."""
    return _state().client


def exchanged(text: str) -> list[str]:
    """Return the texts of all processes, by their number; each calls this the same number of times, in the same order.

    Args:
      text: of this process.
    """
    if count() == 1:
        return [text]
    client, number = _client(), next(_number)
    client.key_value_set(f"unimix/{number}/{index()}", "=" + text)  # an empty text cannot be read
    return [client.blocking_key_value_get(f"unimix/{number}/{i}", round(1e3 * _WAIT))[1:] for i in range(count())]


def from_first(function: Callable[[], Any]) -> Any:
    """Return what a function returns in process 0, a value of JSON; the others do not call it.

    Args:
      function: of no arguments.
    """
    if count() == 1:
        return function()
    return json.loads(exchanged(json.dumps(function()) if is_first() else "")[0])


def all_of(flag: bool) -> bool:
    """Return whether a flag is set in all processes."""
    return all(text == "1" for text in exchanged(str(int(flag))))


def check_agreement(values: Mapping[str, Any], what: str) -> None:
    """Refuse to go on where another process has other values.

    Args:
      values: by name; compared as texts.
      what: they are, for the sentence.

    Raises:
      UserError: a value differs, in all processes alike.
    """
    own = {name: str(value) for name, value in values.items()}
    texts = [json.loads(text) for text in exchanged(json.dumps(own))]
    for i, other in enumerate(texts):
        for name in sorted(texts[0].keys() | other.keys()):
            if texts[0].get(name) != other.get(name):
                raise UserError(
                    f"the processes of this run differ in {what}: {name} is {texts[0].get(name, 'absent')} in process "
                    f"0, {other.get(name, 'absent')} in process {i}; start all of them alike"
                )


def _tell(error: BaseException) -> None:
    """Tell the other processes why this one ends, and stay until they know."""
    _silence()
    sentence, code = cli.sentence_and_code(error) or (f"error: {errors.described(error)}", errors.FAILED)
    about = {"process": index(), "sentence": sentence, "code": code}
    with contextlib.suppress(Exception):  # another one told first, or the service is gone
        _client().key_value_set("unimix/failed", json.dumps(about))
    _let_others_know(sentence, code)


def _let_others_know(sentence: str, code: int) -> None:
    """Return when this process may end: process 0, by which the others learn of the end, when all of them know."""
    global _at_abort
    _at_abort = sentence, code  # JAX may abort as soon as another process is gone
    with contextlib.suppress(Exception):
        if not is_first():
            _client().key_value_set(f"unimix/knows/{index()}", "=")
        for i in range(1, count() if is_first() else 1):
            _client().blocking_key_value_get(f"unimix/knows/{i}", round(1e3 * _TELLING))


def _end_if_another_fails() -> None:
    """Wait until a process tells that it fails; then end this one with its sentence and code."""
    client = _client()
    while True:
        try:
            about = json.loads(client.blocking_key_value_get("unimix/failed", round(1e3 * _WAIT)))
        except Exception:  # the service is gone: the run is over, or JAX ends this process
            return
        if about["process"] == index():
            return
        sentence = f"process {about['process']} has ended the run, {about['sentence']}"
        _say(sentence)
        _silence()
        _let_others_know("", about["code"])
        os._exit(about["code"])


_at_abort: tuple[str, int] | None = None  # what to say, and the exit code; None for `_why_aborted`


def _end_with_sentence_at_abort() -> None:
    """End with a sentence and an exit code where JAX aborts: as it does when another process is dead.

    The handler is one of C, for JAX aborts in a thread of its own, where Python's handlers do not run.
    """
    if os.name == "nt":
        return
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _abort_handler(number: int) -> None:
    sentence, code = _at_abort or _why_aborted()
    _say(sentence)
    os._exit(code)


def _say(sentence: str) -> None:
    if not sentence:
        return
    stream = cli.terminal()  # the process's own standard error goes to the log
    stream.write(f"{errors.printable(sentence)}\n")
    stream.flush()
