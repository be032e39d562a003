"""What a start compares with the run that it goes on with, and which images it leaves out."""

import importlib
import logging
import sys
import threading

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from unimix_jax import storage
from unimix_jax.config import default
from unimix_jax.data import thumbnails
from unimix_jax.data.types import Source, Splits
from unimix_jax.data.views import Reading
from unimix_jax.errors import Interrupted, UserError
from unimix_jax.training import manifest, rundir, unreadable

READING = Reading(size=8, resize=10, min_area=0.5, skip_unreadable=True, threads=2, workers=0)


@pytest.fixture(autouse=True)
def _heard(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "unimix_jax")


@pytest.fixture
def photographs(tmp_path):
    """Splits of seven training images, the second and fifth of which cannot be read, and a test image of each class."""
    random = np.random.default_rng(0)
    names = tuple(f"{i}.png" for i in range(9))
    for i, name in enumerate(names):
        Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / name)
        if i in (1, 4):
            data = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(data[: len(data) // 2])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0, 1], np.int32)
    source = Source(labels, ("cat", "dog"), np.zeros(3), np.ones(3), names=names, root=str(tmp_path))
    return Splits(source.take(np.arange(7)), None, source.take(np.arange(7, 9)))


@pytest.fixture
def directory(tmp_path):
    return rundir.create(tmp_path / "run")


def test_images_that_cannot_be_read_do_not_count(photographs, directory, caplog):
    found = unreadable.without_unreadable(photographs, READING, directory)
    assert found.unreadable == 2
    assert found.counts.tolist() == [2, 3]
    assert found.train.names == ("0.png", "2.png", "3.png", "5.png", "6.png")
    assert found.test is photographs.test
    listed = (directory / rundir.UNREADABLE).read_text().splitlines()
    assert [name.rpartition("/")[2] for name in listed] == ["1.png", "4.png"]
    assert "2 of 7 training images cannot be read" in caplog.text
    assert rundir.create(directory) == directory  # a run stopped before its config is one still


def test_a_later_start_leaves_the_same_out_and_reads_nothing(photographs, directory, monkeypatch):
    first = unreadable.without_unreadable(photographs, READING, directory)
    with monkeypatch.context() as patch:
        patch.setattr(thumbnails, "unreadable", None)
        again = unreadable.without_unreadable(photographs, READING, directory)
    assert again.train.names == first.train.names
    other = photographs._replace(train=photographs.train.take(np.array([0, 1, 3, 4])))
    assert unreadable.without_unreadable(other, READING, directory).train.names == ("0.png", "3.png")


@pytest.mark.parametrize("kept", [{"images": 6}, {"left_out": "all"}, {"left_out": [7]}, {"left_out": [True]}])
def test_a_changed_list_of_what_cannot_be_read_is_made_anew(photographs, directory, kept):
    unreadable.without_unreadable(photographs, READING, directory)
    path = directory / rundir.CHECKED
    storage.write_json(path, storage.read_json(path) | kept)
    assert unreadable.without_unreadable(photographs, READING, directory).unreadable == 2


def test_a_class_without_an_image_that_can_be_read_is_refused(photographs, directory):
    splits = photographs._replace(train=photographs.train.take(np.array([1, 3])))
    with pytest.raises(UserError, match=r"no training image in class 0 \(cat\), but test has 1 of cat"):
        unreadable.without_unreadable(splits, READING, directory)


def test_the_search_can_be_stopped(photographs, directory):
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Interrupted, match="before the first step"):
        unreadable.without_unreadable(photographs, READING, directory, stopped)
    assert not (directory / rundir.CHECKED).exists()


def test_a_run_that_counted_unreadable_images_goes_on_so(photographs, directory, caplog):
    """It began before they were looked for: run.json says nothing of files."""
    storage.write_json(directory / rundir.RUN, {"data": {"train": {"images": 7, "digest": "x"}}})
    assert unreadable.without_unreadable(photographs, READING, directory).train is photographs.train
    assert "goes on in this way" in caplog.text
    storage.write_json(directory / rundir.RUN, {"data": {"train": {"images": 7, "digest": "x", "files": {}}}})
    assert unreadable.without_unreadable(photographs, READING, directory).train is photographs.train


FILES = {"bytes": 9, "sizes": "s", "sample": "c"}
BEGUN = {"train": {"images": 5, "digest": "a", "counts": [3, 2], "files": FILES}, "test_prior": {"digest": "p"}}


def changed(**train):
    return BEGUN | {"train": BEGUN["train"] | train}


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (BEGUN, changed(files=FILES | {"sample": "d"}), r"train images have the names .*other contents \(of the same"),
        (BEGUN, changed(files=FILES | {"bytes": 8}), r"\(9 bytes in all then, 8 now\); restore them"),
        (BEGUN, changed(digest="b"), "the train images are not those which this run began with; restore"),
        (
            BEGUN,
            changed(images=4, unreadable=1),
            "0 that cannot be read were left out then, 1 now, by config.data.skip",
        ),
        (BEGUN, BEGUN | {"test": BEGUN["train"]}, "the test images are not those"),
        (BEGUN | {"test": {"digest": "x"}}, BEGUN, "the test images are not those"),
        (BEGUN, BEGUN | {"test_prior": {"digest": "q"}}, "the test prior is not that"),
    ],
)
def test_other_data_is_refused(before, now, message):
    with pytest.raises(UserError, match=message):
        manifest._check_data(before, now, saved=True)


def test_a_run_of_before_files_were_noted_goes_on(caplog):
    old = BEGUN | {"train": {key: value for key, value in BEGUN["train"].items() if key != "files"}}
    manifest._check_data(old, BEGUN, saved=True)
    assert "their names and labels are those it began with" in caplog.text
    with pytest.raises(UserError, match="the train images are not those"):
        manifest._check_data(old, changed(digest="b"), saved=True)


def test_before_a_step_is_saved_unreadable_images_may_be_left_out(caplog):
    now = changed(images=4, unreadable=1, digest="b")
    manifest._check_data(BEGUN, now, saved=False)
    assert "it begins anew with 4 training images, 1 that cannot be read left out (0 before)" in caplog.text
    with pytest.raises(UserError, match="are not those"):
        manifest._check_data(BEGUN, now | {"train": now["train"] | {"images": 3}}, saved=False)


def test_a_run_keeps_its_identity_and_one_of_before_has_none(photographs):
    def begun(earlier):
        return manifest.new_manifest(earlier, ConfigDict({"seed": 0}), photographs, np.ones(2), {})

    first, other = begun({}), begun({})
    assert first["id"] != other["id"]
    assert begun(first)["id"] == first["id"]
    old = {key: value for key, value in first.items() if key != "id"}
    assert begun(old)["id"] == begun(begun(old))["id"] == "unnamed"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `theirs` whose object is defined in one module, imported from another, and uses a third one."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .impl import mine\n")
    (folder / "impl.py").write_text("from .helper import one\nfrom optax import adam\ndef mine():\n    return one\n")
    (folder / "helper.py").write_text("one = 1\n")
    (tmp_path / "alone.py").write_text("import beside\nmine = beside.mine\n")
    (tmp_path / "beside.py").write_text("def mine():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("theirs", "theirs.impl", "theirs.helper", "alone", "beside"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("theirs:mine", ["theirs", "theirs.helper", "theirs.impl"]),
        ("alone:mine", ["alone", "beside"]),
        ("optax:adam", ["optax", "optax._src.alias"]),
    ],
)
def test_the_code_of_a_run_is_all_that_its_parts_depend_on(package, name, modules):
    importlib.import_module(name.partition(":")[0])
    digests = manifest._digests_of_user_code(ConfigDict({"measures": (name,)}))
    assert sorted(digests) == modules
    if name == "theirs:mine":
        (package / "theirs" / "helper.py").write_text("one = 2\n")
        changed = manifest._digests_of_user_code(ConfigDict({"measures": (name,)}))
        assert [key for key in digests if changed[key] != digests[key]] == ["theirs.helper"]


def test_code_of_a_run_of_before_is_that_of_its_last_start():
    assert manifest._code_of_starts({"starts": [{}, {}], "code": {"a": "1"}}) == [{"a": "1"}]
    assert manifest._code_of_starts({"starts": [{"code": {"a": "2"}}, {"code": {"a": "3"}}]}) == [
        {"a": "2"},
        {"a": "3"},
    ]
    assert manifest._code_of_starts({"starts": [{}], "code": 5}) == []


def test_code_that_is_gone_or_changed_is_told_of_a_finished_run(package, caplog):
    digests = {name: manifest._digest_of_module(name) for name in ("alone", "beside")}
    manifest.warn_of_changed_code({"starts": [{"code": digests}]})
    assert not caplog.text
    (package / "beside.py").unlink()
    manifest.warn_of_changed_code({"starts": [{"code": digests}]})
    assert "the module beside, on which parts of the config depend, was changed or is gone" in caplog.text
    assert "alone" not in caplog.text


def test_other_devices_are_refused_where_each_has_statistics_of_its_own():
    config = ConfigDict({"parallel": {"batch_norm": "device"}})
    manifest._check_devices(config, {"devices": 8}, {"devices": 8})
    manifest._check_devices(config, {}, {"devices": 8})
    with pytest.raises(UserError, match="this run began on 8 devices.*so many only, not on 4"):
        manifest._check_devices(config, {"devices": 8}, {"devices": 4})
    config.parallel.batch_norm = "global"
    manifest._check_devices(config, {"devices": 8}, {"devices": 4})


def test_another_config_is_told_without_what_is_equal(tmp_path):
    old = default()
    old.epochs = 60
    storage.write_json(tmp_path / rundir.CONFIG, manifest.plain(old))
    new = default()
    new.epochs = 30
    with pytest.raises(UserError, match=r"differing in epochs \(60 there, 30 here\); give another --workdir"):
        manifest.previous_manifest(new, tmp_path)


@pytest.mark.parametrize(
    ("earlier", "said"),
    [(["1"], ""), (["0"], "since the last start"), (["0", "1"], "since an earlier start"), ([], "")],
)
def test_code_of_a_run_that_goes_on_is_compared_with_every_start(caplog, earlier, said):
    manifest._compare_code({"starts": [{"code": {"a": digest}} for digest in earlier]}, {"a": "1"})
    assert bool(caplog.text) == bool(said)
    assert said in caplog.text
