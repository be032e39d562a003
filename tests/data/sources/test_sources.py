import pytest
from ml_collections import ConfigDict

from unimix_jax.config import default, use_photographs
from unimix_jax.data import sources
from unimix_jax.errors import UserError


def test_lists_of_one_class_and_classes_that_are_only_tested_are_refused(tmp_path):
    config = default()
    use_photographs(config)
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg", "c/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    config.data.update({"dir": str(tmp_path), "train_list": "train.txt", "test_list": "test.txt"})
    (tmp_path / "train.txt").write_text("a/1.jpg 0\n")
    (tmp_path / "test.txt").write_text("a/2.jpg 0\n")
    with pytest.raises(UserError, match="the data has only one class, 'a'"):
        sources.load(config.data)
    (tmp_path / "train.txt").write_text("a/1.jpg 0\nb/1.jpg 1\n")
    (tmp_path / "test.txt").write_text("a/2.jpg 0\nc/1.jpg 2\nc/2.jpg 2\n")
    with pytest.raises(UserError, match=r"no training image in class 2 \(2\), but test has 2 of 2; leave"):
        sources.load(config.data)


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        sources.load(ConfigDict({"source": "cifar-10"}))


def test_a_config_without_a_field_that_its_source_reads_is_refused():
    with pytest.raises(UserError, match="config.data has no field 'file', which the source 'arrays' reads"):
        sources.load(ConfigDict({"source": "arrays"}))
