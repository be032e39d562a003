import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.data import longtail
from unimix_jax.errors import UserError


def test_counts_are_those_of_counting():
    labels = np.array([2, 0, 2, 2, 1])
    np.testing.assert_array_equal(priors.class_counts(labels, 4), [1, 1, 3, 0])


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(UserError, match=r"must lie in 0\.\.2"):
        priors.class_counts(np.array(labels), 3)


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        pytest.param(1, [0.6, 0.4, 0], id="natural"),
        pytest.param(0, [0.5, 0.5, 0], id="uniform over classes that have images"),
        pytest.param(-1, [0.4, 0.6, 0], id="inverse"),
    ],
)
def test_powers_of_a_prior(power, expected):
    np.testing.assert_allclose(priors.prior([30, 20, 0], power), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("classes", "imbalance", "sizes"),
    [(100, 100, (35, 35, 30)), (100, 50, (41, 41, 18)), (100, 200, (30, 31, 39)), (10, 100, (8, 2, 0))],
)
def test_groups_by_shots_have_the_known_sizes(classes, imbalance, sizes):
    groups = priors.groups(longtail.profile("exp", 50000 // classes, classes, imbalance))
    assert tuple(int(members.sum()) for members in groups.values()) == sizes


def test_groups_at_the_edges_of_the_shot_rule():
    groups = priors.groups([101, 100, 20, 19])
    assert [groups[g].tolist() for g in ("many", "medium", "few")] == [
        [True, False, False, False],
        [False, True, True, False],
        [False, False, False, True],
    ]


@pytest.mark.parametrize(("classes", "sizes"), [(10, (3, 4, 3)), (100, (33, 34, 33)), (3, (1, 1, 1)), (2, (0, 2, 0))])
def test_thirds_follow_the_counts_whatever_the_class_order(classes, sizes):
    counts = np.random.default_rng(0).permutation(np.arange(classes) + 1)
    groups = priors.groups(counts, "thirds")
    assert tuple(int(members.sum()) for members in groups.values()) == sizes
    if sizes[0]:
        assert counts[groups["many"]].min() > counts[groups["medium"]].max() > counts[groups["few"]].max()


def test_test_priors(tmp_path):
    counts = np.array([10, 90, 30])
    file = tmp_path / "prior.txt"
    file.write_text("1\n1\n2\n")
    for text, expected in {
        "uniform": [1 / 3, 1 / 3, 1 / 3],
        "train": [10 / 130, 90 / 130, 30 / 130],
        "imbalance:100": [1 / 111, 100 / 111, 10 / 111],
        "imbalance:0.01": [100 / 111, 1 / 111, 10 / 111],
        str(file): [0.25, 0.25, 0.5],
    }.items():
        np.testing.assert_allclose(priors.test_prior(text, counts), expected, rtol=1e-12, err_msg=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unifrom", "must be uniform, train, imbalance:R or the path"),
        ("imbalance:x", "positive number"),
        ("imbalance:-1", "positive number"),
        ("FILE:1\n2\n", "must hold 3 positive numbers"),
        ("FILE:1\n2\n0\n", "must hold 3 positive numbers"),
        ("FILE:a\nb\nc\n", "cannot be read"),
        ("FILE:1 2 1e999\n", "must hold 3 positive numbers"),
        ("FILE:1 2 nan\n", "must hold 3 positive numbers"),
        ("FILE:1e308 1e308 1e308\n", "numbers too large or too far apart"),
        ("FILE:1e-320 1e300 1\n", "numbers too large or too far apart"),
        ("FILE:" + "1 " * 2_200_000, "has more than 4 MiB"),
        ("imbalance:1e-300", "within 1e-100 and 1e100"),
        ("imbalance:inf", "positive number"),
    ],
)
def test_wrong_test_priors_are_refused(tmp_path, text, message):
    if text.startswith("FILE:"):
        (tmp_path / "prior.txt").write_text(text.removeprefix("FILE:"))
        text = str(tmp_path / "prior.txt")
    with pytest.raises(UserError, match=message):
        priors.test_prior(text, np.array([3, 2, 1]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: priors.prior(np.zeros(3)), "counts is 0 for all classes"),
        (lambda: priors.prior([]), r"counts has the shape \[0\]"),
        (lambda: priors.prior(5), r"counts has the shape \[\]"),
        (lambda: priors.prior(np.ones((2, 2))), r"counts has the shape \[2, 2\] .*it must be \[K\]"),
        (lambda: priors.prior([1, -1]), "counts is -1 for class 1"),
        (lambda: priors.prior([1, np.nan]), "counts is nan for class 1"),
        (lambda: priors.inverse_weights([3, 0]), "counts is 0 for class 1; it must be above 0"),
        (lambda: priors.effective_number_weights([3, 0]), "counts is 0 for class 1; it must be above 0"),
        (lambda: priors.effective_number_weights([3, 1], beta=1), "beta is 1; it must be at least 0 and below 1"),
        (lambda: priors.groups([50, np.nan, 3]), "counts is nan for class 1"),
        (lambda: priors.class_counts([0.0, 1.0], 2), "labels are float64"),
        (lambda: priors.class_counts([[0, 1]], 2), r"labels are int64\[1, 2\]"),
        (lambda: priors.class_counts([0, 1], 4.0), "num_classes is 4.0; it must be a whole number"),
    ],
)
def test_counts_and_labels_that_are_none_are_refused(function, words):
    with pytest.raises(UserError, match=words):
        function()


def test_no_labels_count_0_for_each_class():
    np.testing.assert_array_equal(priors.class_counts([], 3), [0, 0, 0])
