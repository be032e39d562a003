"""What goes wrong, and the exit code that says so. Imports nothing of the project."""

import difflib
from collections.abc import Iterable

COMPLETE = 0  # the run is finished
MISTAKE = 2  # a user's mistake, told in one sentence
RAN_AWAY = 3  # the loss is not finite; the last sound checkpoint is kept
INTERRUPTED = 75  # stopped by a signal after saving; the same command goes on (EX_TEMPFAIL)


class UserError(Exception):
    """A mistake of the user, in one sentence: what was wrong, where, what would be right."""


class RanAway(Exception):
    """The numbers of a run are no longer finite."""


class Interrupted(Exception):
    """A run was stopped by a signal and has saved its state."""


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
