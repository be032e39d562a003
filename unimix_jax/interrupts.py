"""Signals that ask a run to stop. Standard library only: caught before anything heavy is imported."""

import contextlib
import logging
import os
import signal
import threading

_log = logging.getLogger(__name__)
# Those that this system has.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


@contextlib.contextmanager
def caught():
    """Turn the first signal into an event, which the run looks at after each step; the second leaves at once.

    A signal that was ignored when the process began stays so: that is how `nohup` protects a run.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # Python hands signals to the main thread only
        return

    def handle(number, _):
        if stopped.is_set():
            os._exit(128 + number)
        stopped.set()
        _log.info("stopping after this step; a second signal leaves at once, without saving")

    before = {number: signal.getsignal(number) for number in SIGNALS}
    # None: a handler that Python did not set, and could not set again.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignored() -> None:
    """Ignore these signals in this process, a worker: a terminal sends them to all, and the run ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
