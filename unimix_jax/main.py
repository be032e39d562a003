"""Train as a config says: `python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits`."""

import sys

from unimix_jax import errors, settings, workdir


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code (see `errors`).

    Args:
      argv: program name and arguments; None for the process's own.
    """
    argv = sys.argv if argv is None else argv
    try:
        command = settings.parse(argv)
        if isinstance(command, str):
            print(command)
            return errors.COMPLETE
        directory = workdir.create(command.workdir) if command.workdir else workdir.fresh(command.name)
        try:
            # Only now the heavy imports: help and mistakes are answered at once.
            from unimix_jax.measures import report
            from unimix_jax.training import loop, parallel

            parallel.prepare_runtime()
            result = loop.run(command.config, directory)
        finally:
            if not command.workdir:
                workdir.discard(directory)  # it stays as soon as a run has begun in it
    except errors.UserError as error:
        return _told(error, errors.MISTAKE)
    except errors.RanAway as error:
        return _told(error, errors.RAN_AWAY)
    except errors.Interrupted as error:
        return _told(error, errors.INTERRUPTED)
    except KeyboardInterrupt:
        return _told("before the first step; nothing is lost", errors.INTERRUPTED)
    except OSError as error:
        return _told(f"{error.filename or 'a file'}: {error.strerror or error}", errors.MISTAKE)
    print(f"\n{report.closing_table(result)}\n\nrun directory: {directory}")
    return errors.COMPLETE


def _told(error: Exception | str, code: int) -> int:
    print(f"{'stopped' if code == errors.INTERRUPTED else 'error'}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
