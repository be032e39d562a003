"""The folder of a user."""

import importlib
import sys

import pytest

from . import own_networks
from .document import MODULES


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with the document's modules, as the current one, and the parts of `own_networks` as my_networks."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "my_networks", own_networks)
    importlib.invalidate_caches()
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)
