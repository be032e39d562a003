"""Train as a config says: `python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits`."""

import os
import sys

from unimix_jax import errors, interrupts, settings, workdir


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code (see `errors`).

    Args:
      argv: program name and arguments; None for the process's own.
    """
    with interrupts.caught() as stopped:
        return _main(sys.argv if argv is None else argv, stopped)


def _main(argv: list[str], stopped) -> int:
    try:
        command = settings.parse(argv)
        if isinstance(command, str):
            return _shown(command)
        directory = workdir.create(command.workdir) if command.workdir else workdir.fresh(command.name)
        try:
            # Only now the heavy imports: help and mistakes are answered at once.
            from unimix_jax.measures import report
            from unimix_jax.training import loop, parallel

            parallel.prepare_runtime()
            result = loop.run(command.config, directory, stopped)
        finally:
            if not command.workdir:
                workdir.discard(directory)  # it stays as soon as a run has begun in it
    except errors.UserError as error:
        return _told(error, errors.MISTAKE)
    except errors.RanAway as error:
        return _told(error, errors.RAN_AWAY)
    except errors.Interrupted as error:
        return _told(error, errors.INTERRUPTED)
    except OSError as error:
        return _told(f"{error.filename or 'a file'}: {error.strerror or error}", errors.MISTAKE)
    return _shown(f"\n{report.closing_table(result)}\n\nrun directory: {directory}")


def _shown(text: str) -> int:
    """Print a result; a reader that has gone away changes nothing about it."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return errors.COMPLETE


def _told(error: Exception | str, code: int) -> int:
    print(f"{'stopped' if code == errors.INTERRUPTED else 'error'}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
