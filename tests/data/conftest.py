import pathlib

import numpy as np
import pytest
from PIL import Image

from unimix_jax.data.types import Source


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Six photographs of three classes."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 256, (20 + i, 24, 3), np.uint8)).save(root / f"{i}.png")
    flat = np.zeros(3, np.float32)
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    return Source(labels, ("a", "b", "c"), flat, flat, names=tuple(f"{i}.png" for i in range(6)), root=str(root))


@pytest.fixture
def damaged(photographs, tmp_path):
    """The photographs, the second and the last two of which cannot be read."""
    for name in photographs.names:
        data = pathlib.Path(photographs.root, name).read_bytes()
        (tmp_path / name).write_bytes(data if name not in ("1.png", "4.png", "5.png") else data[: len(data) // 2])
    return photographs._replace(root=str(tmp_path))
