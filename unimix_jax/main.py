"""Train as a config says: `python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits`."""

import functools
import shlex
import sys
import traceback

from unimix_jax import cli, errors, library
from unimix_jax.config import Command, parse, usage
from unimix_jax.training import processes, timings


def main(argv: list[str] | None = None) -> int:
    """Run a command line.

    Args:
      argv: program name and arguments; None for those of the process.

    Returns:
      The exit code (see `errors`).
    """
    try:
        with cli.graceful_stop() as stop_requested:
            code = cli.run_command(functools.partial(_execute, sys.argv if argv is None else argv, stop_requested))
    except BaseException:
        if processes.count() == 1:
            raise
        traceback.print_exc()  # the interpreter's own end would wait for the other processes
        code = errors.FAILED
    return processes.leave(code)


def _execute(argv: list[str], stop_requested) -> str:
    """Carry out a command line; return the text to print."""
    clock = timings.Clock()
    with clock.part("import"):
        if not argv[1:]:
            cli.echo(usage())  # then the sentence and the exit code of a mistake: a script's variable may be empty
        command = parse(argv)
    if isinstance(command, str):
        return command
    cluster = processes.find(command.coordinator, command.processes, command.process)
    with processes.joined(cluster, command.config.parallel.timeout), library.run_directory(command) as directory:
        return _run(command, directory, stop_requested, clock)


def _run(command: Command, directory, stop_requested, clock: timings.Clock) -> str:
    # Only now the heavy imports: help and mistakes are answered at once.
    with clock.part("import"):
        from unimix_jax.report import tables
        from unimix_jax.training import preemption, runtime
        from unimix_jax.training.run import run

    notice = preemption.Notice(command.config.parallel.notice)
    with runtime.runtime(command.config.parallel.cpu_threads), preemption.heeded(stop_requested, notice):
        result = run(command.config, directory, stop_requested, clock, notice)
        if not processes.is_first():
            return ""
        cli.echo(f"\n{tables.closing_table(result)}\n\nrun directory: {errors.printable(str(directory))}")
        with clock.part("report"):
            text = f"report: {_report(directory, command.report)}"
    return f"{text}\n\n{clock.table()}" if command.timings else text


def _report(directory, when: str) -> str:
    """Write the report of a run now, or name the command that writes it.

    Returns:
      The text to print.

    Raises:
      Failure: the report cannot be written.
    """
    from unimix_jax.report import build
    from unimix_jax.training import console

    if when != "now":
        later = f"python -m unimix_jax.evaluate {shlex.quote(f'--workdir={directory}')} writes it"
        return later if when == "later" else "none"
    try:
        with console.log_to(directory):
            return errors.printable(str(build.write_run_report(directory)))
    except (errors.UserError, errors.Failure, OSError, MemoryError) as error:
        raise errors.Failure(f"the run is complete, but its report is not written: {error or 'no memory'}") from None


if __name__ == "__main__":
    sys.exit(main())
