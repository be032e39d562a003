"""Some thousand damaged files against every reader: only sentences come out."""

import importlib.util
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
READERS = (
    "archive", "arrays", "cifar_binary", "cifar_python", "predictions", "prepared", "reply", "run", "text", "weights",
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", FOLDER / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_raise_nothing_but_sentences(fuzz, tmp_path, caplog, name):
    caplog.set_level("CRITICAL", "unimix_jax")
    outcome = fuzz.run(name, cases=400, seed=1, folder=tmp_path)
    assert not outcome.escaped, outcome.escaped[0]
    assert outcome.counts["read"] > 0
    assert outcome.counts["refused"] > outcome.counts["read"] / 3


def test_every_reader_is_tried(fuzz):
    assert set(READERS) == set(fuzz.READERS)
