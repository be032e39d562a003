"""Finished runs, and the command."""

import pytest

from unimix_jax import evaluate
from unimix_jax.report import files

from .outputs import finished_run


@pytest.fixture
def run(tmp_path):
    """Return make(name, seed, **changes): a finished run's directory, without its checkpoints."""
    return lambda name, *args, **changes: finished_run(tmp_path / name, *args, **changes)


@pytest.fixture
def without_pdf(monkeypatch):
    """Draw pictures for the page, and leave out what takes longest, their PDF files: test_plots.py draws one."""
    draw = files.plots.image
    monkeypatch.setattr(files.plots, "image", lambda figure, kind: draw(figure, kind) if kind == "png" else b"a pdf")


@pytest.fixture
def command(capsys):
    """Return run(*argv) -> (exit code, standard output, standard error)."""

    def run(*argv):
        code = evaluate.main(["evaluate", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
