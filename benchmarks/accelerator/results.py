"""Jobs inside of a deadline: each result is in a file the moment it is there. Python's standard library only."""

import json
import os
import pathlib
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

LINES, SUMMARY = "results.jsonl", "summary.json"
PARTS = ("machine", "parity", "rates", "runs", "photographs", "variants", "table")  # in the order of their worth


class Job(NamedTuple):
    """Something to measure."""

    name: str
    seconds: float  # that it may take at most, as far as is known before
    work: Callable[[], Any]  # a result has "passed": False where it is not as it must be


class Recorder:
    """Does jobs until a deadline, and writes a line of JSON for each.

    A line has "name", "state" (done; missed: its "passed" is False; failed; left out; stopped), "at" (seconds since
    the start), "seconds", and "result" or "why".
    """

    def __init__(self, folder: pathlib.Path, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.folder, self.results, self.states = folder, {}, {}
        self._seconds, self._clock, self._begun = seconds, clock, clock()
        self._current, self._lock = None, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LINES).write_text("")

    def elapsed(self) -> float:
        return self._clock() - self._begun

    def left(self) -> float:
        return self._seconds - self.elapsed()

    def take(self, job: Job) -> None:
        """Do a job if it can end before the deadline. No failure of one costs the others."""
        if job.seconds > self.left():
            self._write(job.name, "left out", why=f"{self.left():.0f} s are left of {job.seconds:.0f} that it may take")
            return
        begun, self._current = self._clock(), job.name
        try:
            result = job.work()
        except Exception as error:
            traceback.print_exc()
            outcome = {"state": "failed", "why": f"{type(error).__name__}: {str(error)[:1000]}"}
        else:
            self.results[job.name] = result
            passed = not isinstance(result, dict) or result.get("passed", True)
            outcome = {"state": "done" if passed else "missed", "result": result}
        self._current = None
        self._write(job.name, seconds=round(self._clock() - begun, 2), **outcome)

    def leave_out(self, name: str, why: str) -> None:
        """Say that something is not measured."""
        self._write(name, "left out", why=why)

    def stop_at(self, seconds: float, last: Callable[[], None]) -> threading.Timer:
        """End the process so many seconds after the start, whatever it does then, after a call of `last`."""

        def stop():
            try:
                self._write(self._current or "nothing", "stopped", why="it took longer than was left")
                last()
            finally:
                os._exit(3)

        timer = threading.Timer(seconds - self.elapsed(), stop)
        timer.daemon = True
        timer.start()
        return timer

    def _write(self, name: str, state: str, **about) -> None:
        with self._lock:
            self.states[name] = state
            line = json.dumps({"name": name, "state": state, "at": round(self.elapsed(), 1), **about}, default=float)
            with (self.folder / LINES).open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        loud = "" if state in ("done", "left out") else f"!!! {state.upper()} "
        print(f"[{self.elapsed():6.1f} s] {loud}{line[:600]}", flush=True)
