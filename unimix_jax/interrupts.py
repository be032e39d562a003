"""Signals that ask a run to stop. Standard library only: caught before anything heavy is imported."""

import contextlib
import logging
import os
import signal
import threading

_log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def caught():
    """Turn the first signal into an event, which the run looks at after each step; the second leaves at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # Python hands signals to the main thread only
        return

    def handle(number, _):
        if stopped.is_set():
            os._exit(128 + number)
        stopped.set()
        _log.info("stopping after this step; a second signal leaves at once, without saving")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
