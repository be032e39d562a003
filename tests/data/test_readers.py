import pytest

from unimix_jax.data import readers


def test_where_files_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("UNIMIX_DATA_DIR", raising=False)
    assert readers.search_path("") == tmp_path / "data"
    monkeypatch.setenv("UNIMIX_DATA_DIR", "/elsewhere")
    assert str(readers.search_path("")) == "/elsewhere"
    assert str(readers.search_path("/here")) == "/here"


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with open(tmp_path / "1.jpg", "wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(OSError, match="has more than 2 GiB"):
        readers.read_encoded(tmp_path / "1.jpg")
