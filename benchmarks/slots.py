"""Compare programs in slots: each runs in a process of its own, all wait, and one after the other is told to run.

On a shared machine two timings taken minutes apart say little; here a ratio is of two neighbouring slots. A worker
calls `serve`, a driver `compare`. Python's standard library only, for a worker need not have the driver's packages.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time


def pin(threads: int) -> None:
    """Keep this process on its first `threads` cores; call it before the import of a library that makes threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def add_case(parser) -> None:
    """Add what a worker must be told to an `argparse` parser."""
    parser.add_argument("--network", default="resnet32")
    parser.add_argument("--batch", default=128, type=int)
    parser.add_argument("--size", default=32, type=int)
    parser.add_argument("--channels", default=3, type=int)
    parser.add_argument("--classes", default=10, type=int)
    parser.add_argument("--what", default="step", choices=("step", "augmented", "evaluate"))
    parser.add_argument("--threads", default=2, type=int)


def counts(classes: int) -> list[int]:
    """Return training images per class, 5000 to 50: those of CIFAR-10-LT-100 for 10 classes."""
    return [int(5000 * 0.01 ** (c / (classes - 1))) for c in range(classes)]


def serve(run, **facts) -> None:
    """Say that this worker is ready, then run what the driver asks for until it hangs up.

    Args:
      run: called with a number of steps; returns when they are done, with one more number, such as the last loss.
      facts: told to the driver once.
    """
    print("READY", json.dumps(facts), flush=True)
    for line in sys.stdin:
        steps = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        value = run(steps)
        wall, cpu = (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        print(json.dumps({"wall": wall, "cpu": cpu, "peak_mib": round(peak), "value": value}), flush=True)


def compare(commands: dict[str, list[str]], rounds: int, seconds: float) -> dict[str, dict]:
    """Run workers in turns.

    Args:
      commands: each worker's command line, by name.
      rounds: slots of each worker.
      seconds: that the slot of the fastest worker shall take at least; all do the same number of steps.

    Returns:
      By name: facts, "wall" and "cpu" seconds a step of each slot, "peak_mib", "value" (the last one).
    """
    workers, facts = {}, {}
    try:
        for name, command in commands.items():  # started one after the other: compile times are then their own
            workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            while not (line := workers[name].stdout.readline()).startswith("READY"):
                if not line:
                    raise RuntimeError(f"the worker {name} stopped before it was ready: {' '.join(command)}")
            facts[name] = json.loads(line.removeprefix("READY"))

        def ask(name, steps):
            try:
                workers[name].stdin.write(f"{steps}\n")
                workers[name].stdin.flush()
                return json.loads(workers[name].stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                raise RuntimeError(f"the worker {name} stopped while it ran: {' '.join(commands[name])}") from None

        fastest = min(ask(name, 1)["wall"] for name in commands for _ in range(2))
        steps = max(1, round(seconds / fastest))
        slots = [{name: ask(name, steps) for name in commands} for _ in range(rounds)]
    finally:
        for worker in workers.values():
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
    found = {}
    for name in commands:
        mine = [slot[name] for slot in slots]
        found[name] = {
            **facts[name],
            "wall": [slot["wall"] for slot in mine],
            "cpu": [slot["cpu"] for slot in mine],
            "peak_mib": mine[-1]["peak_mib"],
            "value": mine[-1]["value"],
            "steps_a_slot": steps,
        }
    return found


def ratios(base: dict, other: dict, what: str = "wall") -> dict[str, float]:
    """Return minimum, median and maximum of base / other over pairs of slots: above 1, other is the faster one."""
    values = [a / b for a, b in zip(base[what], other[what], strict=True)]
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
