import logging

import pytest


@pytest.fixture
def heard(caplog, monkeypatch):
    """Return the log of the package, from INFO on."""
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def lists(tmp_path):
    """Return write(name, text or bytes): a list file beside an image root; the images it names are made, empty."""

    root = tmp_path / "root"
    root.mkdir()

    def write(name, text, missing=()):
        data = text.encode() if isinstance(text, str) else text
        (root / name).write_bytes(data)
        for line in data.decode("utf-8", "surrogateescape").replace("\ufeff", "").replace("\r\n", "\n").split("\n"):
            image = line.rpartition(" ")[0]
            if image and image not in missing:
                (root / image).parent.mkdir(parents=True, exist_ok=True)
                (root / image).touch()
        return name

    write.root = root
    return write
