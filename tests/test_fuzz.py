"""Some thousand damaged files against every reader: only sentences come out."""

import pytest

READERS = (
    "archive", "arrays", "cifar_binary", "cifar_python", "predictions", "prepared", "reply", "run", "text", "weights",
)  # fmt: skip


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
