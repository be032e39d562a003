"""The lines of a run on standard error and in its log."""

import logging
import os
import sys

import pytest

from unimix_jax.training import console, loggers


def test_training_goes_on_when_nobody_reads(tmp_path, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    with console.log_to(tmp_path):
        for _ in range(2):
            logging.getLogger("unimix_jax.test").info("still here")
    assert (tmp_path / "log.txt").read_text().count("still here") == 2


def test_loggers_are_afterwards_as_they_were(tmp_path):
    named = [logging.getLogger(name) for name in ("unimix_jax", "absl", None)]

    def state():
        return [(logger.level, logger.propagate, list(logger.handlers)) for logger in named]

    before = state()
    with console.log_to(tmp_path):
        assert [logger.level for logger in named[:2]] == [logging.INFO, logging.ERROR]
        logging.root.addHandler(logging.StreamHandler())  # as the import of Orbax does where there is none
    assert state() == before


def test_a_record_is_a_line_and_harmless(tmp_path, capsys):
    with console.log_to(tmp_path):
        logging.getLogger("unimix_jax.test").info("class %s", "\x1b[2J\n2026 forged")
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert text.endswith("class \\x1b[2J\\n2026 forged\n")
        assert text.count("\n") == 1


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    if not os.path.exists("/dev/full"):
        pytest.skip("no device that is full")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with console.log_to(tmp_path):
        logging.getLogger("unimix_jax.test").info("still here")
    assert capsys.readouterr().err == "still here\n"


def test_steps_are_shown_nowhere_without_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    progress = loggers.Progress(first_step=0, num_steps=2)
    progress.log({"step": 1, "loss": 1.0, "accuracy": 0.5, "epoch": 1.0, "images_per_second": None})
    progress.update()
    progress.finish()
    assert capsys.readouterr().out == ""
