"""The clock of a command."""

import time

import pytest

from unimix_jax.training import timings


@pytest.fixture
def at(monkeypatch):
    """Set what time it is."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def later(seconds):
        now[0] += seconds

    return later


def test_every_second_belongs_to_the_innermost_part(at):
    clock = timings.Clock()
    at(1)
    with clock.part("steps"):
        at(2)
        with clock.part("compile"):
            at(3)
        at(4)
    with pytest.raises(KeyError):
        stopped_in(clock, at)
    at(6)
    table = [line.rsplit(maxsplit=2) for line in clock.table().splitlines()]
    assert clock.seconds == {"rest": 7, "steps": 6, "compile": 8}
    assert table == [[name, f"{s}.00", "s"] for name, s in (("steps", 6), ("compile", 8), ("rest", 7), ("in all", 21))]


def stopped_in(clock, at):
    with clock.part("compile"):
        at(5)
        raise KeyError
