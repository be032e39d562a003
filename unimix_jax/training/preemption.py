"""The notice that a virtual machine of Google will be taken away, and whether a save still fits before that. No jax."""

import contextlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Iterator, Mapping

from unimix_jax.training import processes

_log = logging.getLogger(__name__)

_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")
_PREEMPTED = "instance/preempted?wait_for_change=true&timeout_sec=60"
_GOOGLE_NOTICE = 30.0  # seconds from the notice to the end of a spot machine
_PATIENCE = 10.0  # seconds between questions that the server did not answer


class Notice:
    """When this machine ends, as far as it is known."""

    def __init__(self, seconds: float = 0.0):
        """Begin without a notice.

        Args:
          seconds: from a signal to stop to the end of the machine; 0 if unknown.
        """
        self.seconds = seconds
        self._end: float | None = None

    def begin(self, seconds: float = 0.0, since: float | None = None) -> None:
        """Count, unless it has begun.

        Args:
          seconds: to the end of the machine; 0 for those that are known from before.
          since: when the signal came, by `time.monotonic`; None for now.
        """
        seconds = seconds or self.seconds
        if self._end is None and seconds:
            self._end = (time.monotonic() if since is None else since) + seconds

    def left(self) -> float | None:
        """Return the seconds that are left; None if no end is known."""
        return None if self._end is None else self._end - time.monotonic()


def on_google(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this is a virtual machine of Google, or GCE_METADATA_HOST names a metadata server."""
    if environ.get("GCE_METADATA_HOST"):
        return True
    with contextlib.suppress(OSError):
        return _PRODUCT.read_text().startswith("Google")
    return False


@contextlib.contextmanager
def heeded(stop_requested: threading.Event, notice: Notice) -> Iterator[None]:
    """Ask for a stop when the metadata server says that this machine is taken away.

    Args:
      stop_requested: set then, as by a signal.
      notice: begins then.

    Yields:
      Nothing.
    """
    if not on_google():
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            answer = processes.metadata(_PREEMPTED, timeout=70)
            if answer is not None and answer.strip().upper() == "TRUE":
                _log.warning("this machine is taken away; stopping after this step")
                notice.begin(_GOOGLE_NOTICE)
                stop_requested.set()
                return
            if answer is None:
                ended.wait(_PATIENCE)

    threading.Thread(target=watch, daemon=True, name="preemption").start()
    try:
        yield
    finally:
        ended.set()
