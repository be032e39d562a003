"""What every command does with its answer: print it, or say in one sentence why there is none. Terminal only."""

import contextlib
import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable

from unimix_jax import errors

_terminal = None  # the user's standard error while `others_aside` has sent that of the process elsewhere
_unwritten = None  # the error of an answer, or a part of one, that standard output did not take


def answered(work: Callable[[], str]) -> int:
    """Do a command's work, print the text it returns, and return the exit code.

    Mistakes, failures and interruptions go to standard error in one sentence. The code is right whatever the standard
    streams are: closed, full, or without a reader.
    """
    global _unwritten
    _unwritten = None
    with _standard_streams():
        code = _code(work)
        fault = _unwritten or _flushed(sys.stdout)
        if fault is not None and code == errors.COMPLETE:
            why = fault.strerror or fault
            code = _told(f"error: the work is done, but standard output cannot be written ({why})", errors.FAILED)
        _flushed(sys.stderr)
    return code


def _code(work: Callable[[], str]) -> int:
    try:
        text = work()
    except errors.UserError as error:
        return _told(f"error: {error}", errors.MISTAKE)
    except errors.RanAway as error:
        return _told(f"error: {error}", errors.RAN_AWAY)
    except errors.Failure as error:
        return _told(f"error: {error}", errors.FAILED)
    except errors.Interrupted as error:
        return _told(f"stopped: {error}", errors.INTERRUPTED)
    except KeyboardInterrupt:
        return _told("stopped", errors.INTERRUPTED)
    except OSError as error:
        code = errors.FAILED if errors.of_the_disk(error) else errors.MISTAKE
        return _told(f"error: {error.filename or 'a file'}: {error.strerror or error}", code)
    show(text)
    return errors.COMPLETE


def asks_for_help(argv: list[str]) -> bool:
    """Whether a command line, argv[0] the program's name, asks for its help."""
    return any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in argv[1:])


def show(text: str) -> None:
    """Print lines of text; characters that standard output cannot encode are escaped.

    What cannot be written is dropped, and `answered` says so at the end; that nobody reads any more is no fault.
    """
    global _unwritten
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    lines = errors.printable(text, lines=True).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(lines, flush=True)
    except OSError as error:
        _unwritten = _unwritten or _fault(error)
        _flushed(sys.stdout)


def terminal():
    """Return the user's standard error as a stream; what cannot be written there is dropped."""
    return _Terminal(_terminal or sys.stderr)


@contextlib.contextmanager
def others_aside(path: str | os.PathLike):
    """Append what libraries print to standard error to a file; what goes to `terminal` still reaches the user.

    Threads and native code of libraries print tracebacks and warnings where no `except` reaches them. Where standard
    error is not that of the process (a notebook, a test), nothing is changed. What an exception held of libraries is
    gone when it leaves, for futures print their own tracebacks when they are collected.

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
    _flushed(sys.stderr)
    kept = os.dup(2)
    os.dup2(file, 2)
    os.close(file)
    # Line by line: what was said must be there when the process is killed.
    _terminal = os.fdopen(kept, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)
    try:
        yield
    except BaseException as error:
        _forget_locals(error)
        raise
    finally:
        _flushed(sys.stderr)  # into the file, or nowhere if that is full
        os.dup2(kept, 2)
        _terminal = None
        os.close(kept)


def _forget_locals(error: BaseException) -> None:
    """Drop the variables of the functions that an exception, or one that it follows, has left; its lines stay."""
    waiting, seen = [error], set()
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            waiting += [error.__cause__, error.__context__]
    gc.collect()


class _Terminal:
    """A text stream that lets nobody know when it cannot be written: training goes on, and log.txt has it all."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def __eq__(self, other) -> bool:
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


def _told(sentence: str, code: int) -> int:
    stream = terminal()
    stream.write(errors.printable(sentence) + "\n")
    stream.flush()
    return code


@contextlib.contextmanager
def _standard_streams():
    """See that there are three standard streams: those that are closed read and write nothing.

    Else the next file that is opened would get the number of one of them, and a library's message would go into it.
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


def _flushed(stream) -> OSError | None:
    """Write what a stream still holds; what cannot be written is dropped, and the fault returned.

    Python itself would end with a code of its own for what is left.
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
    """Return the error, None if it says that nobody reads any more; Windows has its own word for that."""
    return None if error.errno == (errno.EINVAL if os.name == "nt" else errno.EPIPE) else error
