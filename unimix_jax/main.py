"""Train as a config says: `python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits`."""

import functools
import sys

from unimix_jax import doors, errors, interrupts, settings, timings, workdir


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code (see `errors`).

    Args:
      argv: program name and arguments; None for the process's own.
    """
    with interrupts.caught() as stopped:
        return doors.answered(functools.partial(_answer, sys.argv if argv is None else argv, stopped))


def _answer(argv: list[str], stopped) -> str:
    """Do what a command line says; return what is to be printed."""
    clock = timings.Clock()
    with clock.part("import"):
        command = settings.parse(argv)
    if isinstance(command, str):
        return command
    directory = workdir.create(command.workdir) if command.workdir else workdir.fresh(command.name)
    try:
        # Only now the heavy imports: help and mistakes are answered at once.
        with clock.part("import"):
            from unimix_jax.measures import tables
            from unimix_jax.training import loop, parallel

        parallel.prepare_runtime(command.config.parallel.cores)
        result = loop.run(command.config, directory, stopped, clock)
    finally:
        if not command.workdir:
            workdir.discard(directory)  # it stays as soon as a run has begun in it
    doors.show(f"\n{tables.closing_table(result)}\n\nrun directory: {directory}")
    with clock.part("report"):
        answer = f"report: {_report(directory)}"
    return f"{answer}\n\n{clock.table()}" if command.timings else answer


def _report(directory) -> str:
    """Write the report of a run; one that cannot be written does not undo the run."""
    from unimix_jax import evaluate

    try:
        return str(evaluate.report_run(directory))
    except (errors.UserError, OSError, MemoryError) as error:
        return f"none, for {error}"


if __name__ == "__main__":
    sys.exit(main())
