"""Train as a config says: `python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits`."""

import functools
import shlex
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
        with doors.others_aside(directory / workdir.LOG):
            return _run(command, directory, stopped, clock)
    finally:
        if not command.workdir:
            workdir.discard(directory)  # it stays as soon as a run has begun in it


def _run(command: settings.Command, directory, stopped, clock: timings.Clock) -> str:
    # Only now the heavy imports: help and mistakes are answered at once.
    with clock.part("import"):
        from unimix_jax.measures import tables
        from unimix_jax.training import loop, parallel

    with parallel.runtime(command.config.parallel.cores):
        result = loop.run(command.config, directory, stopped, clock)
        doors.show(f"\n{tables.closing_table(result)}\n\nrun directory: {errors.printable(str(directory))}")
        with clock.part("report"):
            answer = f"report: {_report(directory, command.report)}"
    return f"{answer}\n\n{clock.table()}" if command.timings else answer


def _report(directory, when: str) -> str:
    """Write the report of a run now, or say what would; return what is to be said of it.

    Raises:
      Failure: it cannot be written.
    """
    from unimix_jax import evaluate
    from unimix_jax.training import progress

    if when != "now":
        later = f"python -m unimix_jax.evaluate {shlex.quote(f'--workdir={directory}')} writes it"
        return later if when == "later" else "none"
    try:
        with progress.logging_to(directory):
            return errors.printable(str(evaluate.report_run(directory)))
    except (errors.UserError, errors.Failure, OSError, MemoryError) as error:
        raise errors.Failure(f"the run is complete, but its report is not written: {error or 'no memory'}") from None


if __name__ == "__main__":
    sys.exit(main())
