import numpy as np
import pytest

from unimix_jax.data import longtail
from unimix_jax.data.longtail import shifted_test_subset
from unimix_jax.errors import UserError


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("imbalance", [10, 20, 50, 100, 200])
def test_exponential_profile_is_the_authors(golden, classes, imbalance):
    expected = golden("subset_made_up")[f"counts_c{classes}_exp_{imbalance}"]
    np.testing.assert_array_equal(longtail.profile("exp", 50000 // classes, classes, imbalance), expected)


@pytest.mark.parametrize("imbalance", [10, 100])
def test_step_profile_is_the_authors(golden, imbalance):
    expected = golden("subset_made_up")[f"counts_c10_step_{imbalance}"]
    np.testing.assert_array_equal(longtail.profile("step", 5000, 10, imbalance), expected)


@pytest.mark.parametrize("kind", longtail.PROFILES)
@pytest.mark.parametrize(("classes", "imbalance"), [(2, 5.0), (7, 30.0), (1, 10.0), (10, 1.0)])
def test_profiles_fall_from_the_largest_to_the_stated_imbalance(kind, classes, imbalance):
    counts = longtail.profile(kind, 1000, classes, imbalance)
    assert counts[0] == 1000
    assert (np.diff(counts) <= 0).all()
    if classes > 1:
        assert abs(counts[-1] - 1000 / imbalance) <= 1


@pytest.mark.parametrize("imbalance", [0.01, 0, float("nan"), float("inf")])
def test_imbalance_below_one_is_refused(imbalance):
    with pytest.raises(UserError, match="at least 1"):
        longtail.profile("exp", 10, 10, imbalance)


@pytest.mark.parametrize("classes", [10, 100])
def test_the_official_subset_is_the_published_one(golden, classes):
    file = golden("subset_official")
    counts = longtail.profile("exp", 50000 // classes, classes, 100)
    chosen = longtail.long_tailed_subset(file[f"labels_c{classes}"], counts)
    np.testing.assert_array_equal(chosen, file[f"indices_c{classes}_exp_100"])


def test_another_subset_seed_is_the_authors_too(golden):
    file = golden("subset_made_up")
    chosen = longtail.long_tailed_subset(file["labels_c10"], file["counts_c10_exp_100"], seed=1)
    np.testing.assert_array_equal(chosen, file["indices_c10_exp_100_seed1"])


def test_a_cut_leaves_the_global_generator_alone():
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    longtail.long_tailed_subset(np.zeros(9, int), [3])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_a_cut_larger_than_a_class_is_refused():
    with pytest.raises(UserError, match="class 1 has 2 images, but the long-tailed subset needs 3"):
        longtail.long_tailed_subset(np.array([0, 0, 0, 1, 1]), [1, 3])


@pytest.mark.parametrize(
    ("imbalance", "expected"),
    [
        pytest.param(100, [40, 15, 6, 2, 1, 0], id="40 * .01**(k/5), cut to whole images; the last is .4"),
        pytest.param(1, [40] * 6, id="nothing is discarded but the surplus"),
        pytest.param(0.01, [0, 1, 2, 6, 15, 40], id="turned round"),
    ],
)
def test_test_sets_are_cut_by_training_count(imbalance, expected):
    counts = np.array([5, 300, 20, 100, 50, 10])  # class 1 has most, class 0 fewest
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), [40, 50, 41, 60, 44, 40]))
    positions = shifted_test_subset(labels, counts, imbalance)
    by_rank = np.bincount(labels[positions], minlength=6)[[1, 3, 4, 2, 5, 0]]
    np.testing.assert_array_equal(by_rank, expected)
    assert (np.diff(positions) > 0).all()


def test_which_images_stay_depends_on_the_seed_only():
    labels, counts = np.repeat(np.arange(4), 30), np.array([40, 30, 20, 10])
    np.testing.assert_array_equal(
        shifted_test_subset(labels, counts, 10, 1), shifted_test_subset(labels, counts, 10, 1)
    )
    assert (shifted_test_subset(labels, counts, 10, 1) != shifted_test_subset(labels, counts, 10, 2)).any()
    assert set(shifted_test_subset(labels, counts, 20, 1)) < set(
        shifted_test_subset(labels, counts, 10, 1)
    )  # cuts are nested


def test_classes_with_equal_counts_keep_their_order():
    # Many of them: an unstable sort of sixteen or less is stable all the same.
    kept = shifted_test_subset(np.repeat(np.arange(40), 40), np.full(40, 7), 20)
    np.testing.assert_array_equal(np.bincount(np.repeat(np.arange(40), 40)[kept]), longtail.profile("exp", 40, 40, 20))


@pytest.mark.parametrize(
    ("labels", "imbalance", "message"),
    [([0, 1], 0.0, "positive"), ([0, 1], np.nan, "positive"), ([0, 0], 10.0, "class 1 has no test image")],
)
def test_cuts_that_cannot_be_made(labels, imbalance, message):
    with pytest.raises(UserError, match=message):
        shifted_test_subset(np.array(labels), np.array([2, 1]), imbalance)


def test_the_same_number_of_each_class_is_held_out_by_seed():
    labels = np.repeat(np.arange(3), [9, 7, 6])
    chosen = longtail.hold_out(labels, 3, 4, seed=1)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [4, 4, 4])
    assert (chosen != longtail.hold_out(labels, 3, 4, seed=2)).any()
    with pytest.raises(UserError, match="the smallest class has 6 test images, of which 0 to 5 can be set apart"):
        longtail.hold_out(labels, 3, 6, seed=1)


def test_balanced_splits_have_the_same_images_of_each_class_and_share_none():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [9, 7, 6]))
    positions = longtail.balanced_splits(labels, 3, {"test": 3, "validation": 2}, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(positions.values()))), np.arange(22))
    for name, counts in {"test": [3, 3, 3], "validation": [2, 2, 2], "train": [4, 2, 1]}.items():
        np.testing.assert_array_equal(np.bincount(labels[positions[name]]), counts)
        assert (np.diff(positions[name]) > 0).all()


def test_stratified_splits_share_nothing_and_keep_the_shares():
    labels = np.repeat(np.arange(4), [1000, 100, 5, 1])
    at = longtail.stratified_splits(labels, 4, {"test": 0.2, "validation": 0.1}, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(at.values()))), np.arange(len(labels)))
    np.testing.assert_array_equal(np.bincount(labels[at["test"]]), [200, 20, 1])
    np.testing.assert_array_equal(np.bincount(labels[at["validation"]]), [100, 10, 1])
