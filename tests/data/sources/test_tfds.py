import io
import os

import numpy as np
import pytest
from PIL import Image

from unimix_jax.config import default, use_photographs
from unimix_jax.data import decode, sources
from unimix_jax.errors import UserError


def png(i):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (i, 2 * i, 0)).save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())


def prepare(directory, file_format="array_record", splits=("train", "validation"), label="label"):
    """Prepare a tiny TFDS data set of 12 and 4 images, as TFDS does, without TensorFlow."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            names = tfds.features.ClassLabel(names=["ant", "bee"])
            features = tfds.features.FeaturesDict({"image": image, label: names})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            sizes = {"train": range(12), "validation": range(12, 16)}
            return {s: ((i, {"image": png(i), label: int(i % 3 == 0)}) for i in sizes[s]) for s in splits}

        def _generate_examples(self):
            pass

    builder = Tiny(data_dir=directory, file_format=file_format)
    builder.download_and_prepare()
    return builder.data_path


def load(directory, **fields):
    config = default()
    use_photographs(config)
    config.data.update({"dir": str(directory), **fields})
    return sources.load(config.data)


@pytest.mark.parametrize("level", [0, 1])
def test_a_prepared_directory_is_read_without_tensorflow(tmp_path, level):
    path = prepare(tmp_path)
    found = load(path.parent if level else path)
    assert found.train.class_names == ("ant", "bee")
    assert found.validation is None
    assert (len(found.train.labels), len(found.test.labels)) == (12, 4)
    np.testing.assert_array_equal(found.counts, [8, 4])
    seen = set()
    for i, label in enumerate(found.train.labels):
        red, green, _ = decode.decoded(found.train.read(i), lambda w, h: (0, 0, w, h), 4)[0, 0]
        assert label == (red % 3 == 0)
        assert green == 2 * red
        seen.add(int(red))
    assert seen == set(range(12))
    np.testing.assert_allclose(found.train.mean, [0.485, 0.456, 0.406])


def test_a_prepared_split_can_be_held_out_and_cut(tmp_path):
    prepare(tmp_path, splits=("train",))
    found = load(tmp_path / "tiny", imbalance=2.0)
    np.testing.assert_array_equal(np.bincount(found.test.labels), [2, 1])
    np.testing.assert_array_equal(found.counts, [5, 2])
    for source in (found.train, found.test):
        for i, label in enumerate(source.labels):
            red = decode.decoded(source.read(i), lambda w, h: (0, 0, w, h), 4)[0, 0, 0]
            assert label == (red % 3 == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("validation",)}, "has no split 'train', only validation"),
        ({"label": "kind"}, "has no image 'image' with a class label; its features are"),
    ],
)
def test_other_prepared_data_gets_a_sentence(tmp_path, options, message):
    path = prepare(tmp_path, **options)
    with pytest.raises(UserError, match=message):
        load(path)


def test_prepared_records_that_are_not_read_in_any_order_get_a_sentence(tmp_path):
    path = prepare(tmp_path)
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="download_and_prepare"):
        load(path)


def test_a_feature_of_another_module_is_not_imported(tmp_path, monkeypatch):
    path = prepare(tmp_path)
    (tmp_path / "its_own.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    info = path / "features.json"
    info.write_text(info.read_text().replace("tensorflow_datasets.core.features.image_feature", "its_own"))
    with pytest.raises(UserError, match="names the feature 'its_own.Image', which is none of TFDS's own"):
        load(path)


def damage(path, what):
    info, features = path / "dataset_info.json", path / "features.json"
    records = next(path.glob("*train*record*"))
    if what == "no features":
        features.unlink()
    elif what == "cut":
        features.write_text(features.read_text()[:200])
    elif what == "deep":
        info.write_text("[" * 100_000)
    elif what == "other":
        info.write_text("5")
    elif what == "more":
        info.write_text(info.read_text().replace('"12"', '"1000000000000"'))
    elif what == "less":
        (path / "label.labels.txt").write_text("ant\n")
        features.write_text(features.read_text().replace('"numClasses": "2"', '"numClasses": "1"'))
    elif what == "records":
        records.write_bytes(records.read_bytes()[:70_000])
    elif what == "zeros":
        records.write_bytes(bytes(131072))
    elif what == "pipe":
        records.unlink()
        os.mkfifo(records)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no features", "has no features.json"),
        ("cut", "features.json is damaged"),
        ("deep", "dataset_info.json is damaged"),
        ("other", "cannot be read as a prepared TFDS directory"),
        ("more", "cannot be read as a prepared TFDS directory"),
        ("less", r"the labels \[1\]; each record must hold one image and one label in 0..0"),
        ("records", "cannot be read as a prepared TFDS directory"),
        ("zeros", "cannot be read as a prepared TFDS directory"),
        ("pipe", "is a pipe; it must be a regular file"),
    ],
)
def test_damaged_directories_get_a_sentence(tmp_path, what, message):
    path = prepare(tmp_path)
    damage(path, what)
    with pytest.raises((UserError, OSError), match=message) as told:
        load(path)
    assert "\n" not in str(told.value)
