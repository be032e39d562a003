"""The frame of every command: errors become one sentence and an exit code, a signal asks a run to stop.

Standard library only: signals are handled before anything heavy is imported.
"""

import contextlib
import errno
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from unimix_jax import errors

_log = logging.getLogger(__name__)

_terminal = None  # the user's standard error while `redirect_library_output` sends that of the process to a file
_unwritten = None  # the error with which standard output refused a text


def run_command(work: Callable[[], str]) -> int:
    """Run a command, print the text that it returns, and return the exit code.

    Mistakes, failures and interruptions go to standard error in one sentence. The exit code is right even if the
    standard streams are closed, full, or without a reader.

    Args:
      work: does the work and returns the text to print.

    Returns:
      The exit code (see `errors`).
    """
    global _unwritten
    _unwritten = None
    with _standard_streams(), _modules_of_current_folder():
        code = _code(work)
        fault = _unwritten or _flush(sys.stdout)
        if fault is not None and code == errors.COMPLETE:
            why = fault.strerror or fault
            code = _fail(f"error: the work is done, but standard output cannot be written ({why})", errors.FAILED)
        _flush(sys.stderr)
    return code


@contextlib.contextmanager
def _modules_of_current_folder() -> Iterator[None]:
    """Let "module:object" name a file of the current folder, as under `python -m`; an installed command does not."""
    try:
        folder = os.getcwd()
    except OSError:  # it was deleted
        folder = None
    if folder is None or {"", folder} & {*sys.path}:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _code(work: Callable[[], str]) -> int:
    try:
        text = work()
    except BaseException as error:
        if (known := sentence_and_code(error)) is None:
            raise
        return _fail(*known)
    if text:
        echo(text)
    return errors.COMPLETE


def sentence_and_code(error: BaseException) -> tuple[str, int] | None:
    """Return how a command ends by an exception: what it says, and its exit code; None for a fault of the program.

    Args:
      error: what was raised.
    """
    for kind, word, code in (
        (errors.UserError, "error: ", errors.MISTAKE),
        (errors.NonFiniteError, "error: ", errors.NON_FINITE),
        (errors.Failure, "error: ", errors.FAILED),
        (errors.Interrupted, "stopped: ", errors.INTERRUPTED),
    ):
        if isinstance(error, kind):
            return f"{word}{error}", code
    if isinstance(error, KeyboardInterrupt):
        return "stopped", errors.INTERRUPTED
    if isinstance(error, SystemExit):  # of a user's function, in whose place a run would go on
        return f"error: a function of yours ends the program: {errors.described(error)}", errors.MISTAKE
    if isinstance(error, OSError):
        code = errors.FAILED if errors.is_disk_failure(error) else errors.MISTAKE
        return f"error: {error.filename or 'a file'}: {error.strerror or error}", code
    return None


def asks_for_help(argv: list[str]) -> bool:
    """Return whether a command line, whose argv[0] is the program's name, asks for help."""
    return any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in argv[1:])


def echo(text: str) -> None:
    """Print lines of text; escape characters that standard output cannot encode.

    Text that cannot be written is dropped, and `run_command` reports it at the end. A closed reader is not a fault.

    Args:
      text: one line or several.
    """
    global _unwritten
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    lines = errors.printable(text, lines=True).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(lines, flush=True)
    except OSError as error:
        _unwritten = _unwritten or _fault(error)
        _flush(sys.stdout)


def terminal() -> "_Terminal":
    """Return the user's standard error as a stream that drops text which cannot be written."""
    return _Terminal(_terminal or sys.stderr)


@contextlib.contextmanager
def redirect_library_output(path: str | os.PathLike) -> Iterator[None]:
    """Send what libraries print to standard error to a file; text for `terminal` still reaches the user.

    Threads and native code of libraries print tracebacks and warnings that no `except` can catch. If standard error is
    not that of the process (in a notebook or a test), nothing is changed. Objects of libraries that an exception holds
    are dropped before it leaves, because futures print their own tracebacks when they are collected.

    Args:
      path: of the file, to which lines are appended.

    Yields:
      Nothing.

    Raises:
      OSError: the file cannot be opened.
    """
    global _terminal
    try:
        own = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        own = False
    if not own or _terminal is not None:
        yield
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    _flush(sys.stderr)
    kept = os.dup(2)
    os.dup2(file, 2)
    os.close(file)
    # Line by line: what was said must be there when the process is killed.
    _terminal = os.fdopen(kept, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)
    try:
        yield
    except BaseException as error:
        _drop_locals(error)
        raise
    finally:
        _flush(sys.stderr)  # into the file, or nowhere if that is full
        os.dup2(kept, 2)
        _terminal = None
        os.close(kept)


def _drop_locals(error: BaseException) -> None:
    """Drop the local variables of the frames of an exception, and of those that it follows; the lines stay."""
    waiting, seen = [error], set()
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            waiting += [error.__cause__, error.__context__]
    gc.collect()


class _Terminal:
    """A text stream that ignores failed writes: training continues, and log.txt has every line."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Terminal) and self.stream is other.stream

    def __hash__(self) -> int:
        return id(self.stream)

    def isatty(self) -> bool:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return self.stream.isatty()
        return False

    def write(self, text: str) -> None:
        # RuntimeError: a signal's handler writes while the main program does.
        with contextlib.suppress(AttributeError, OSError, ValueError, RuntimeError):
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError, RuntimeError):
            self.stream.flush()


def _fail(sentence: str, code: int) -> int:
    stream = terminal()
    stream.write(errors.printable(sentence) + "\n")
    stream.flush()
    return code


@contextlib.contextmanager
def _standard_streams():
    """Replace standard streams that are closed by ones that read and write nothing.

    Otherwise the next file that is opened would get the number of a closed stream, and messages of libraries would be
    written into that file.
    """
    names = ("stdin", "stdout", "stderr")
    before = {name: getattr(sys, name) for name in names}
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    with contextlib.ExitStack() as stack:
        for name in names:
            if before[name] is None:
                mode = "r" if name == "stdin" else "w"
                stream = os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8", errors="backslashreplace")
                setattr(sys, name, stack.enter_context(stream))
        try:
            yield
        finally:
            for name in names:
                if before[name] is None:
                    setattr(sys, name, None)


def _flush(stream) -> OSError | None:
    """Flush a stream and drop text that cannot be written, or Python would end with an exit code of its own.

    Returns:
      The error of text that was dropped; None if nothing was.
    """
    try:
        stream.flush()
    except ValueError:  # closed
        return None
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
            stream.flush()
        os.close(nowhere)
        return _fault(error)
    return None


def _fault(error: OSError) -> OSError | None:
    """Return the error, or None if it only says that the reader is gone, for which Windows has another number."""
    return None if error.errno == (errno.EINVAL if os.name == "nt" else errno.EPIPE) else error


# The signals that ask a run to stop, of those that this system has.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


class StopRequest(threading.Event):
    """An event that knows since when it is set."""

    since: float | None = None  # by `time.monotonic`

    def set(self) -> None:
        """Set it; the first time counts."""
        self.since = time.monotonic() if self.since is None else self.since
        super().set()


@contextlib.contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Turn the first signal into an event that the run checks after each step; the second signal ends at once.

    A signal that was ignored when the process started stays ignored: this is how `nohup` protects a run.

    Yields:
      The event.
    """
    stop_requested = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested  # Python hands signals to the main thread only
        return

    def handle(number, _):
        if stop_requested.is_set():
            os._exit(128 + number)
        stop_requested.set()
        _log.info("stopping after this step; a second signal leaves at once, without saving")

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    # None: a handler that Python did not set, and could not set again.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield stop_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """Ignore the stop signals in a worker: a terminal sends them to all processes, and the run ends its workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
