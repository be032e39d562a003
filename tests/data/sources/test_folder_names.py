import pytest

from unimix_jax.data.sources import (
    folder_names,
)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "train"),
        ("Training_Set", "train"),
        ("trainset", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("trainval", "train"),
        ("train_val2018", "train"),
        ("TRAIN images", "train"),
        ("dev", "validation"),
        ("valid", "validation"),
        ("val_set", "validation"),
        ("testing-data", "test"),
        ("seg_pred", folder_names.UNUSED),
        ("unlabeled", folder_names.UNUSED),
        ("trainA", "train"),
        ("cat", ""),
        ("fold1", ""),
        ("training_test", ""),  # which of them?
    ],
)
def test_the_usual_names_of_splits(name, role):
    rest = {"cat": ("cat",), "fold1": ("fold",), "trainA": ("a",)}.get(name, ())
    assert folder_names.role(name) == (role, rest)
