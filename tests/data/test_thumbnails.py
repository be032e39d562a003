import numpy as np
import pytest
from PIL import Image

from unimix_jax.data import decode, thumbnails
from unimix_jax.data.types import Source
from unimix_jax.data.views import Reading
from unimix_jax.errors import UserError

READING = Reading(size=8, resize=10, min_area=0.5, skip_unreadable=False, threads=1, workers=0)


def test_thumbnails_are_whole_images(photographs, damaged):
    small = thumbnails.thumbnails(photographs, READING)
    expected = Image.open(f"{photographs.root}/3.png").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small[3], expected)
    with pytest.raises(UserError, match="cannot read the image"):
        thumbnails.thumbnails(damaged, READING)
    assert not thumbnails.thumbnails(damaged, READING._replace(skip_unreadable=True))[1].any()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_search_finds_what_training_could_not_read(tmp_path, suffix):
    """Whole, cut short, and with a bit flipped; training decodes the same files at their size."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"0.{suffix}")
    content = (tmp_path / f"0.{suffix}").read_bytes()
    for i, share in enumerate((0.2, 0.6, 0.99), start=1):
        (tmp_path / f"{i}.{suffix}").write_bytes(content[: int(share * len(content))])
        flipped = bytearray(content)
        flipped[int(share * len(content))] ^= 64
        (tmp_path / f"{i + 3}.{suffix}").write_bytes(flipped)
    (tmp_path / f"7.{suffix}").write_bytes(b"text")
    names = tuple(f"{i}.{suffix}" for i in range(9))  # the last one is not there
    source = Source(np.zeros(9, np.int32), ("a",), np.zeros(3), np.ones(3), names=names, root=str(tmp_path))
    bad = []
    for i in range(9):
        try:
            decode.decoded(source.read(i), lambda *size: (0, 0, *size), 224)
        except Exception:  # as training does
            bad.append(i)
    assert bad[-2:] == [7, 8]
    told = []
    np.testing.assert_array_equal(thumbnails.unreadable(source, READING, told.append), bad)
    assert told == [9]
