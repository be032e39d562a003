"""Parity, speed and whole runs on one GPU, in one command of nine minutes that needs no network.

    python benchmarks/accelerator --prepare=FOLDER --data=CIFAR          # before, on any machine
    python benchmarks/accelerator --prepared=FOLDER --output=RESULTS     # on the machine with the GPU
    python benchmarks/accelerator --small --output=RESULTS               # a rehearsal on a CPU, two minutes

RESULTS/results.jsonl gets a line for each job when it is done; summary.json says at the end which goals are met and
what is missing; programs.tar has compiled programs, which the next call takes from FOLDER. The order of the jobs is
that of their worth, and none is begun that may not end before the deadline.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from accelerator import carried
from accelerator.results import PARTS, Recorder

PACKING = 10.0  # seconds kept for the compile cache
OVERTIME = 15.0  # seconds after the deadline when the process ends, whatever it does


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if (options.prepare is None) == (options.output is None):
        parser().error("give one of --prepare=FOLDER, to prepare, and --output=FOLDER, to measure")
    if unknown := set(options.parts.split(",")) - {*PARTS}:
        parser().error(f"there is no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # the rest is for PyTorch, in another process
    if options.prepared:
        sys.path.append(str(options.prepared / carried.PACKAGES))  # behind those that are installed
    cache = options.cache or pathlib.Path(tempfile.gettempdir()) / "unimix_jax_programs"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    from accelerator import experiments, parity

    if options.prepare:
        carried.prepare(options.prepare, options.data, functools.partial(parity.make_reference, experiments.FULL))
        return 0
    return measure(options, experiments.SMALL if options.small else experiments.FULL, cache)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("accelerator", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    path = pathlib.Path
    parser.add_argument("--output", type=path, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="until the deadline")
    parser.add_argument("--small", action="store_true", help="everything at the size of digits: a rehearsal")
    parser.add_argument("--prepare", type=path, help="write what travels into this folder, and measure nothing")
    parser.add_argument("--prepared", type=path, help="the folder that --prepare wrote, on the other machine")
    parser.add_argument(
        "--data", default="", help="folder of CIFAR-10's official files; by default the prepared images"
    )
    parser.add_argument("--cache", type=path, help="folder of compiled programs; one beside temporary files by default")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--torch-python", default="", help="the Python that has PyTorch; this one by default")
    return parser


@contextlib.contextmanager
def unoptimised() -> Iterator[None]:
    """Let XLA optimise nothing."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def measure(options: argparse.Namespace, scale, cache: pathlib.Path) -> int:
    """Do all jobs; return 1 if one failed or missed what it must be, 0 otherwise."""
    from accelerator import jobs
    from unimix_jax.training import runtime

    recorder = Recorder(options.output, 60 * options.minutes - PACKING)

    def finish() -> None:
        jobs.write_summary(recorder, options.small)
        if not options.small:
            packed = carried.pack_programs(cache, options.output / carried.PROGRAMS)
            print(f"compiled programs: {packed}", flush=True)

    timer = recorder.stop_at(60 * options.minutes + OVERTIME, finish)
    try:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(runtime.runtime(1 if options.small else 0))
            if options.small:  # a rehearsal mostly compiles
                stack.enter_context(unoptimised())
            session = jobs.Session(options, scale, recorder, pathlib.Path(temporary), cache)
            for job in jobs.of(session, options.parts.split(",")):
                recorder.take(job)
            finish()
    finally:
        timer.cancel()
    return int(not {*recorder.states.values()} <= {"done", "left out"})
