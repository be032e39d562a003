"""What every command does with its answer: print it, or say in one sentence why there is none. Terminal only."""

import os
import sys
from collections.abc import Callable

from unimix_jax import errors


def answered(work: Callable[[], str]) -> int:
    """Do a command's work, print the text it returns, and return the exit code.

    Mistakes and interruptions go to standard error in one sentence.
    """
    try:
        text = work()
    except errors.UserError as error:
        return _told(f"error: {error}", errors.MISTAKE)
    except errors.RanAway as error:
        return _told(f"error: {error}", errors.RAN_AWAY)
    except errors.Interrupted as error:
        return _told(f"stopped: {error}", errors.INTERRUPTED)
    except KeyboardInterrupt:
        return _told("stopped", errors.INTERRUPTED)
    except OSError as error:
        return _told(f"error: {error.filename or 'a file'}: {error.strerror or error}", errors.MISTAKE)
    show(text)
    return errors.COMPLETE


def asks_for_help(argv: list[str]) -> bool:
    """Whether a command line, argv[0] the program's name, asks for its help."""
    return any(argument in ("--help", "-h", "-help", "--helpfull", "--helpshort") for argument in argv[1:])


def show(text: str) -> None:
    """Print a text; a reader that has gone away changes nothing."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code
