import os

import numpy as np
import pytest
from PIL import Image

from unimix_jax.data import loading
from unimix_jax.data.sources import (
    folder_scan,
)
from unimix_jax.data.types import Source
from unimix_jax.data.views import Reading
from unimix_jax.errors import UserError

from .files import load, touch


def test_folders_that_systems_make_are_passed_over_and_counted(tmp_path, heard):
    of_systems = ("a/@eaDir", "@eaDir", "__MACOSX/a", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git")
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(3)] + [f"{folder}/9.jpg" for folder in of_systems])
    assert load(dir=tmp_path).train.class_names == ("a", "b")
    assert "7 folders of systems, or with a name that begins with a dot, are skipped: 2 @eaDir" in heard.text


def test_files_that_are_never_photographs_are_no_loss(tmp_path, heard):
    beside = ("1.jpg:Zone.Identifier", "Thumbs.db:encryptable", "all.zip", "a.pdf", "a.npy", "a.mp4", "a.pth", "a.bak")
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(3)] + [f"a/{name}" for name in beside])
    touch(tmp_path, ["models/a.pt", "models/b.pt", "Annotations/a.mat"])
    assert load(dir=tmp_path).train.class_names == ("a", "b")
    assert "Annotations (1 .mat), " in heard.text
    assert "models (2 .pt): no class is made of it" in heard.text
    for name in ("1.heic", "1.cr2", "1.jxl", "1.svg", "1.unknown", "1.jpg:1"):
        touch(tmp_path, [f"more/{name}"])
        with pytest.raises(UserError, match="of the class 'more' .* 0 files are images that are read and 1 are not"):
            load(dir=tmp_path)
        (tmp_path / "more" / name).unlink()


def test_images_without_a_suffix_are_seen_by_their_content(tmp_path):
    for c, kind in enumerate(("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "BMP", "GIF")):
        (tmp_path / f"{c % 2}").mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 20 * c, np.uint8)).save(tmp_path / f"{c % 2}" / kind, kind)
    (tmp_path / "0" / "README").write_text("none of them")
    found = folder_scan.scan(tmp_path)
    assert len(found.images) == 9
    assert found.others == [("0/README", "without a suffix that are not images", False)]
    (tmp_path / "0" / "unknown").write_bytes(b"\0\0\0\x18ftypheic")
    assert folder_scan.scan(tmp_path).others[-1][2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_pipes_devices_and_lost_links_are_no_images(tmp_path):
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(3)])
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "a" / "lost.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"3 are not \(3 that are not regular files\)"):
        load(dir=tmp_path)
    assert len(load(dir=tmp_path, skip_other_files=True).train.names) == 4
    # A list may name them; nobody waits for what never comes.
    reading = Reading(8, 9, 0.5, False, 1, 0)
    for name in ("a/pipe.jpg", "a/zero.jpg", "a"):
        source = Source(np.zeros(1, np.int32), ("a",), None, None, names=(name,), root=str(tmp_path))
        with pytest.raises(UserError, match=r"cannot read the image .*it must be a regular file"):
            next(loading.blocks(source, 1, reading))
        skipping = loading.blocks(source, 1, reading._replace(skip_unreadable=True))
        assert not next(skipping)[1].any()
