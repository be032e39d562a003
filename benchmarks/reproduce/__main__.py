"""Make a table or figure of the paper from runs: do those that are missing, and write results/README.md.

    python -m benchmarks.reproduce TABLE [TABLE ...] [--scale=digits] [--budget=MINUTES]

Each run has a small file of results in results/; one that has been done by today's config is never done again. Stop it
and start it again as you like: a run goes on from its last checkpoint. `--list` names the runs of a table and what is
missing. The exit code is 0 if nothing is, 75 if the same command goes on, 2 after a mistake, 74 if a disk fails.
"""

import argparse
import importlib
import math
import pathlib
import sys
import threading

from unimix_jax import cli, errors


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line; return the exit code."""
    from benchmarks.reproduce import items, runs

    options = _parser(items.ITEMS, runs.SCALES).parse_args(argv)
    with cli.graceful_stop() as stop_requested:
        return cli.run_command(lambda: _execute(options, stop_requested))


def _parser(items: dict, scales: dict) -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<12}{item.title}" for name, item in items.items())
    names += "\n\nscales:\n" + "\n".join(f"  {name:<12}{scale.about}" for name, scale in scales.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=f"{__doc__}\ntables and figures:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="none: write README.md only")
    parser.add_argument("--scale", choices=scales, default="digits")
    parser.add_argument("--seeds", type=int, help="seeds of each method, from 0; those of the scale by default")
    parser.add_argument("--budget", type=float, help="minutes; then the run is saved, and the next call goes on")
    parser.add_argument("--data", help="folder of CIFAR's official files; $UNIMIX_DATA_DIR or ~/data by default")
    parser.add_argument("--set", dest="sets", action="append", help="this data set only, such as cifar10")
    parser.add_argument("--method", dest="methods", action="append", help="this method only, such as erm")
    parser.add_argument("--runs", type=pathlib.Path, default="runs/reproduce", help="folder of the run directories")
    parser.add_argument(
        "--results", type=pathlib.Path, help="folder of the results; results/ of the project by default"
    )
    parser.add_argument(
        "--replicates",
        choices=("auto", "yes", "no"),
        default="auto",
        help="train all seeds of a method as one program; auto: on accelerators, where it is faster",
    )
    parser.add_argument("--list", action="store_true", help="name the runs and whether they are done; do none")
    return parser


def _execute(options: argparse.Namespace, stop_requested: threading.Event) -> str:
    """Do what the options say; return what is printed at the end."""
    from benchmarks.reproduce import runner, store

    results = options.results or store.RESULTS
    wanted = _wanted(options)
    if options.list:
        reasons = runner.reasons(wanted, results)
        return "\n".join(f"{run.folder}/{run.seed}: {reasons.get(run, 'done')}" for run in wanted)
    left = _train(wanted, results, options, stop_requested) if wanted else 0
    document = importlib.import_module("benchmarks.reproduce.document")  # with matplotlib
    written = "\n".join(map(str, document.write(options.scale, options.tables, options.runs, results)))
    if left:
        cli.echo(written)
        raise errors.Interrupted(f"{left} of {len(wanted)} runs are missing; the same command goes on")
    return written


def _wanted(options: argparse.Namespace) -> list:
    """Return the runs that the options choose, each once.

    Raises:
      UserError: an option names nothing that is there, or has a number that it cannot have.
    """
    from benchmarks.reproduce import items, runs
    from unimix_jax.methods.recipes import RECIPES

    if options.seeds is not None and options.seeds < 1:
        raise errors.UserError(f"--seeds is {options.seeds}; it must be a number of seeds, at least 1")
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise errors.UserError(f"--budget is {options.budget:g}; it must be a number of minutes above 0")
    scale = runs.SCALES[options.scale]
    chosen = [items.ITEMS[errors.one_of("table or figure", table, items.ITEMS)] for table in options.tables]
    seeds = [options.seeds or item.seeds or scale.seeds for item in chosen]
    wanted = [run for item, count in zip(chosen, seeds, strict=True) for run in item.runs(options.scale, count)]
    of_tables = " of these tables at this scale" if wanted else ""
    sets, methods = ({run.data for run in wanted} or scale.sets), ({run.method for run in wanted} or RECIPES)
    for name in options.sets or ():
        errors.one_of(f"data set{of_tables}", name, sets)
    for name in options.methods or ():
        errors.one_of(f"method{of_tables}", name, methods)
    return [
        run
        for run in dict.fromkeys(wanted)
        if (not options.sets or run.data in options.sets) and (not options.methods or run.method in options.methods)
    ]


def _train(wanted: list, results: pathlib.Path, options: argparse.Namespace, stop_requested: threading.Event) -> int:
    from benchmarks.reproduce import runner, runs
    from unimix_jax.training import runtime
    from unimix_jax.training.devices import local_devices

    timer = threading.Timer(60 * options.budget, stop_requested.set) if options.budget is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    if not runner.missing(wanted, results):
        return 0
    with runtime.runtime(runs.command(wanted[0], options.data).config.parallel.cpu_threads):
        together = options.replicates == "yes" or (
            options.replicates == "auto" and local_devices(1)[0].platform != "cpu"
        )
        about = {"data_dir": options.data, "replicates": together, "results": results}
        return runner.take(wanted, options.runs, stop_requested, **about)


if __name__ == "__main__":
    sys.exit(main())
