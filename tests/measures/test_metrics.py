import numpy as np
import pytest

from unimix_jax.batch import Predictions
from unimix_jax.errors import UserError
from unimix_jax.measures import metrics, report


def slow_ece(probabilities, labels, bins):
    """The definition, example by example."""
    gaps = []
    for b in range(bins):
        members = []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = max(row)
            low, high = np.linspace(0, 1, bins + 1)[b : b + 2]
            if low < confidence <= high:
                members.append((confidence, np.argmax(row) == label))
        gaps.append(abs(sum(c for c, _ in members) - sum(h for _, h in members)) / len(labels))
    return sum(gaps)


@pytest.mark.parametrize("bins", [15, 10, 1])
def test_calibration_errors_are_the_authors(golden, bins):
    file = golden("metrics_c10")
    probabilities, labels = file["probs"].astype(np.float64), file["labels"]
    expected = file[f"authors_bins{bins}_expected_calibration_error"]
    np.testing.assert_allclose(metrics.ece(probabilities, labels, bins), expected, rtol=1e-9)
    expected = file[f"authors_bins{bins}_max_calibration_error"]
    np.testing.assert_allclose(metrics.mce(probabilities, labels, bins), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.accuracy(probabilities, labels), file["accuracy"])
    np.testing.assert_allclose(metrics.nll(probabilities, labels), file["nll_direct"], rtol=1e-9)


def two_classes(confidence, predicted, true):
    """Rows whose largest probability is `confidence`, on class 0, right where predicted == true.

    A confidence below 1/2 is no maximum of two, so the rest is spread over many classes.
    """
    classes = 40
    rows = np.repeat((1 - confidence)[:, None] / (classes - 1), classes, axis=1)
    rows[:, 0] = confidence
    return rows, np.where(predicted == true, 0, 1)


@pytest.mark.parametrize(("name", "bins"), [("edge", 15), ("edge", 10), ("sparse", 15)])
def test_confidences_on_the_edges_fall_where_the_authors_put_them(golden, name, bins):
    file = golden("metrics_edges")
    confidence = file[f"{name}_confidence"]
    kept = confidence > 0.03  # the authors drop exactly 0; below 1/40 it is not the largest of 40
    rows, labels = two_classes(confidence[kept], file[f"{name}_pred"][kept], file[f"{name}_true"][kept])
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence[kept], edges, right=True) - 1
    hits = labels == 0
    expected = sum(abs((hits[place == b] - confidence[kept][place == b]).sum()) for b in range(bins)) / kept.sum()
    np.testing.assert_allclose(metrics.ece(rows, labels, bins), expected, rtol=1e-9)
    prefix = f"edge_bins{bins}" if name == "edge" else "sparse"
    found = np.bincount(place, minlength=bins)
    np.testing.assert_array_equal(found[1:], file[f"{prefix}_counts"][1:])


@pytest.mark.parametrize(
    ("probabilities", "labels", "ece", "mce"),
    [
        pytest.param([[1, 0], [0, 1]], [0, 1], 0.0, 0.0, id="certain and right"),
        pytest.param([[1, 0], [0, 1]], [1, 0], 1.0, 1.0, id="certain and wrong"),
        pytest.param([[0.8, 0.2]] * 4, [0, 0, 0, 1], 0.05, 0.05, id="80 % sure, 75 % right"),
        pytest.param([[0.8, 0.2]] * 3 + [[1, 0]], [0, 0, 0, 1], 0.4, 1.0, id="(3 * .2 + 1 * 1) / 4"),
        pytest.param([[1 + 1e-7, 0]], [0], 1e-7, 1e-7, id="above 1 by rounding counts in the last bin"),
    ],
)
def test_calibration_by_hand(probabilities, labels, ece, mce):
    np.testing.assert_allclose(metrics.ece(np.array(probabilities), np.array(labels)), ece, atol=1e-12)
    np.testing.assert_allclose(metrics.mce(np.array(probabilities), np.array(labels)), mce, atol=1e-12)


def test_ece_is_its_definition():
    random = np.random.default_rng(0)
    probabilities, labels = metrics.softmax(random.normal(0, 2, (300, 4))), random.integers(0, 4, 300)
    for bins in (1, 7, 15):
        np.testing.assert_allclose(metrics.ece(probabilities, labels, bins), slow_ece(probabilities, labels, bins))


def test_softmax_of_large_logits():
    np.testing.assert_allclose(metrics.softmax(np.array([[1e4, 1e4, -1e4]])), [[0.5, 0.5, 0]])
    np.testing.assert_allclose(metrics.log_softmax(np.array([[0, -1e4]])), [[0, -1e4]])


def test_accuracies_by_class_and_group():
    probabilities = np.eye(4)[[0, 0, 1, 2]]
    labels = np.array([0, 1, 1, 2])
    np.testing.assert_array_equal(metrics.class_accuracy(probabilities, labels), [1, 0.5, 1, np.nan])
    assert metrics.group_accuracy(probabilities, labels, np.array([1, 1, 0, 0], bool)) == 0.75
    assert metrics.group_accuracy(probabilities, labels, np.array([0, 0, 1, 1], bool)) == 1
    assert np.isnan(metrics.group_accuracy(probabilities, labels, np.array([0, 0, 0, 1], bool)))


def test_a_probability_of_zero_costs_a_finite_amount():
    assert metrics.nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(708.4, abs=0.1)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.4]], [0], "must sum to 1"),
        ([[1.5, -0.5]], [0], r"must lie in 0\.\.1"),
        ([[np.nan, 1]], [0], r"must lie in 0\.\.1"),
        ([[0.5, 0.5]], [2], r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [0.0], r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [0, 1], "must be"),
        (np.zeros((0, 2)), np.zeros(0, int), "N > 0"),
    ],
)
@pytest.mark.parametrize("name", metrics.MEASURES)
def test_every_measure_refuses_what_is_no_prediction(name, probabilities, labels, message):
    with pytest.raises(UserError, match=message):
        metrics.MEASURES[name](np.array(probabilities), np.array(labels))


@pytest.mark.parametrize(
    ("counts", "by", "few"),
    [
        pytest.param([500, 50, 5], "shots", 1.0, id="each group has a class"),
        pytest.param([500, 400, 50], "thirds", 1.0, id="no class has under 20 images"),
    ],
)
def test_a_summary_groups_by_shots_where_it_can(counts, by, few):
    logits = np.array([[9, 0, 0], [9, 0, 0], [0, 0, 9]], np.float32)
    values = metrics.summary(Predictions(logits, np.array([0, 1, 2]), np.array(counts)))
    assert values["groups"] == by
    assert (values["many"], values["medium"], values["few"]) == (1.0, 0.0, few)
    assert values["class_accuracy"] == [1.0, 0.0, 1.0]
    assert values["accuracy"] == pytest.approx(2 / 3)


def test_a_summary_without_counts_or_with_an_absent_class():
    logits = np.array([[9, 0, 0], [0, 9, 0]], np.float32)
    assert "many" not in metrics.summary(Predictions(logits, np.array([0, 1])))
    values = metrics.summary(Predictions(logits, np.array([0, 1]), np.array([500, 50, 5])))
    assert values["few"] is None
    assert values["class_accuracy"][2] is None
    with pytest.raises(UserError, match="have no labels"):
        metrics.summary(Predictions(logits))


def test_the_closing_table():
    test = {"accuracy": 0.5, "many": 1.0, "medium": 0.25, "few": None, "groups": "shots", "ece": 0.123, "mce": 1.0}
    text = report.closing_table(
        {"test": test | {"images": 10}, "best": {"split": "test", "epoch": 3.0, "accuracy": 0.6}}
    )
    assert text.splitlines() == [
        "per cent           test  best test (epoch 3)",
        "--------------------------------------------",
        "accuracy           50.0                 60.0",
        "  many (shots)    100.0                    -",
        "  medium (shots)   25.0                    -",
        "  few (shots)         -                    -",
        "ECE                12.3                    -",
        "MCE               100.0                    -",
        "images               10                     ",
    ]
