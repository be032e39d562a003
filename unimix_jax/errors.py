"""What goes wrong, and the exit code that says so. Imports nothing of the project."""

import contextlib
import difflib
import errno
import re
from collections.abc import Iterable

COMPLETE = 0  # the run is finished
MISTAKE = 2  # a user's mistake, told in one sentence
RAN_AWAY = 3  # the loss is not finite; the last sound checkpoint is kept
FAILED = 74  # what the run needs failed it, or its answer or report could not be written (EX_IOERR)
INTERRUPTED = 75  # stopped by a signal after saving; the same command goes on (EX_TEMPFAIL)


class UserError(Exception):
    """A mistake of the user, in one sentence: what was wrong, where, what would be right."""


class RanAway(Exception):
    """The numbers of a run are no longer finite."""


class Failure(Exception):
    """Something that is no mistake of the user went wrong beside the run: a process killed, a report not written."""


class Interrupted(Exception):
    """A run was stopped by a signal and has saved its state."""


# Of a disk that is full, broken or read-only, and of a file or a user that may have no more of it.
_OF_THE_DISK = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EIO", "EFBIG", "EROFS")} - {None}


def of_the_disk(error: OSError) -> bool:
    """Whether the disk failed, which is no mistake in what the user gave."""
    return error.errno in _OF_THE_DISK


def unwritten(sentence: str, error: OSError) -> Failure | UserError:
    """Return the exception that says what could not be written: a failure where the disk failed, else a mistake."""
    return (Failure if of_the_disk(error) else UserError)(f"{sentence}: {error.strerror or error}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name nearest to `name`, "" if none is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known; else raise a UserError that lists what is.

    Args:
      what: what `name` stands for, as the sentence should call it ("method").
      name: what the user gave.
      known: the names that exist.
    """
    known = sorted(known)
    if name in known:
        return name
    raise UserError(f"unknown {what} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")


# Control characters, among them those that begin a terminal's escape sequences; marks that turn the direction of text
# or break its lines; halves of characters.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, lines: bool = False) -> str:
    """Return a text with everything escaped (as in "\\x1b") that would move a terminal or forge a line of a log.

    Args:
      text: may hold names of files and classes, and replies of servers, as they are.
      lines: whether its line breaks stay.
    """
    with contextlib.suppress(UnicodeEncodeError):
        # The bytes of a path that Python could not decode: often UTF-8 under an ASCII locale.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def escaped(found: re.Match) -> str:
        character = found[0]
        return character if lines and character == "\n" else ascii(character)[1:-1]

    return _UNPRINTABLE.sub(escaped, text)
