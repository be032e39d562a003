"""Errors that a user sees, and their exit codes."""

import contextlib
import difflib
import errno
import re
import textwrap
import traceback
from collections.abc import Iterable
from typing import NoReturn

COMPLETE = 0  # the run is finished
MISTAKE = 2  # a mistake of the user, described in one sentence
NON_FINITE = 3  # the loss is not finite; the last sound checkpoint is kept
FAILED = 74  # a worker, a disk or a stream failed, or the report could not be written (EX_IOERR)
INTERRUPTED = 75  # stopped by a signal after saving; the same command continues the run (EX_TEMPFAIL)


class UserError(Exception):
    """A mistake of the user, in one sentence: what is wrong, where, and what would be right."""


class InUse(UserError):
    """Another process works in this run directory."""


class NonFiniteError(Exception):
    """The loss, the state or a prediction of a run is not finite."""


class Failure(Exception):
    """A fault that is not a mistake of the user: a killed worker, a full disk, a report that cannot be written."""


class Interrupted(Exception):
    """A run was stopped by a signal and has saved its state."""


class AllInterrupted(Interrupted):
    """All processes of a run have stopped at the same step."""


# Packages that stand between a user's function and the project: no place of a user's mistake.
_NOT_OF_USER = {"contextlib", "flax", "functools", "importlib", "jax", "jaxlib", "numpy", "optax", "unimix_jax"}


def described(error: BaseException) -> str:
    """Return what a user's code raised, in one line: the type, the text, and its last line in the user's files.

    Args:
      error: that was caught.

    Returns:
      A text such as "TypeError: f() takes 1 argument, in line 7 of mine.py".
    """
    text = textwrap.shorten(str(error), 300, placeholder=" ...")
    places = [
        f", in line {line} of {frame.f_code.co_filename}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_OF_USER
    ]
    return f"{type(error).__name__}: {text}{places[-1] if places else ''}"


# A disk that is full, broken or read-only, or a limit of a file's size or of a user's space.
_DISK_FAILURES = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EIO", "EFBIG", "EROFS")} - {None}


def is_disk_failure(error: OSError) -> bool:
    """Return whether the disk failed, which is not a mistake of the user."""
    return error.errno in _DISK_FAILURES


def raise_write_error(sentence: str, error: OSError) -> NoReturn:
    """Raise the error for a file that cannot be written: a failure if the disk failed, otherwise a mistake.

    Args:
      sentence: what cannot be written.
      error: of the system.

    Raises:
      Failure: the disk is full, broken or read-only.
      UserError: any other reason.
    """
    message = f"{sentence}: {error.strerror or error}"
    if is_disk_failure(error):
        raise Failure(message) from None
    raise UserError(message) from None


def shown(value: object) -> str:
    """Return an array's type and shape for a sentence, or the type of another value.

    Args:
      value: that a user's function returned.

    Returns:
      A text such as "float32[2, 11]".
    """
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name nearest to `name`, "" if none is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(what: str, name: str, known: Iterable[str], others: str = "") -> str:
    """Return `name` if it is known.

    Args:
      what: the kind of thing that `name` stands for, as the sentence should call it ("method").
      name: what the user wrote.
      known: the names that exist.
      others: words for other names that are right, too, which the sentence ends with.

    Returns:
      `name`.

    Raises:
      UserError: the name is unknown; the sentence lists the known names.
    """
    known = sorted(known)
    if name in known:
        return name
    raise UserError(f"unknown {what} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}{others}")


# Control characters, among them those that begin a terminal's escape sequences; marks that turn the direction of text
# or break its lines; halves of characters.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, lines: bool = False) -> str:
    r"""Escape all characters (as in "\x1b") that would control a terminal or forge a line of a log.

    Args:
      text: may hold names of files and classes, and replies of servers.
      lines: whether line breaks stay.

    Returns:
      The escaped text.
    """
    with contextlib.suppress(UnicodeEncodeError):
        # The bytes of a path that Python could not decode: often UTF-8 under an ASCII locale.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def escaped(match: re.Match) -> str:
        character = match[0]
        return character if lines and character == "\n" else ascii(character)[1:-1]

    return _UNPRINTABLE.sub(escaped, text)
