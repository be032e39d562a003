"""Probabilities, logits, labels and arguments that measures take, and those that they refuse."""

import numpy as np
import pytest

from unimix_jax import metrics
from unimix_jax.errors import UserError
from unimix_jax.metrics import bootstrap, calibration, label_shift, per_example
from unimix_jax.metrics.predictions import Predictions, checked_logits, checked_predictions
from unimix_jax.report import evaluation


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.4]], [0], r"example 0 sum to 0.9"),
        ([[1.5, -0.5]], [0], r"hold -0.5; they must lie in 0\.\.1"),
        ([[np.nan, 1]], [0], "hold nan"),
        ([[0.5, 0.5]], [2], r"must lie in 0\.\.1"),
        ([[0.5, 0.5]], [-1], r"hold -1"),
        ([[0.5, 0.5]], [0.0], r"must be integers \[1\]"),
        ([[0.5, 0.5]], [True], r"must be integers \[1\]"),
        ([[0.5, 0.5]], [0, 1], r"must be integers \[1\]"),
        ([[0.5, 0.5]], [[0]], r"must be integers \[1\]"),
        ([0.5, 0.5], [0, 1], r"must be numbers \[N, K\]"),
        ([[1.0]], [0], "K > 1"),
        ([["a", "b"]], [0], "must be numbers"),
        (np.zeros((0, 2)), np.zeros(0, int), "N > 0"),
    ],
)
@pytest.mark.parametrize("name", metrics.MEASURES)
def test_every_measure_refuses_what_is_no_prediction(name, probabilities, labels, message):
    with pytest.raises(UserError, match=message):
        metrics.MEASURES[name](np.array(probabilities), np.array(labels))


@pytest.mark.parametrize(("measure", "options"), [("ece", {"bins": 0}), ("sce", {"bins": 0}), ("ace", {"ranges": 0})])
def test_no_bins_are_refused(measure, options, predicted):
    with pytest.raises(UserError, match="at least 1"):
        metrics.MEASURES[measure](*predicted, **options)


ROWS = np.array([[0.7, 0.2, 0.1], [0, 1, 0], [0.25, 0.5, 0.25]])
TAKE_LOGITS = {
    "summary": lambda logits, labels: metrics.summary(Predictions(logits, labels)),
    "bootstrap": lambda logits, labels: bootstrap.bootstrap(Predictions(logits, labels), samples=2),
    "by_chance": lambda logits, labels: bootstrap.expected_if_calibrated(Predictions(logits), samples=2),
    "nll_of_logits": metrics.nll_of_logits,
    "softmax": lambda logits, labels: per_example.softmax(logits),
    "fit_temperature": calibration.fit_temperature,
    "fit_bias_corrected": calibration.fit_bias_corrected,
    "calibrated": lambda logits, labels: calibration.calibrated(
        logits, calibration.Calibration(1.0, np.zeros(3), np.ones(3))
    ),
    "shift_prior": lambda logits, labels: label_shift.shift_prior(logits, np.ones(3), np.ones(3)),
    "estimate_prior": lambda logits, labels: label_shift.estimate_prior(logits, logits_prior=np.ones(3), samples=0),
    "estimate_prior, validation": lambda logits, labels: label_shift.estimate_prior(
        -ROWS, validation=(logits, labels), samples=0
    ),
    "evaluate": lambda logits, labels: evaluation.evaluate(evaluation.ModelOutputs("p", Predictions(logits))),
}


@pytest.mark.parametrize("name", TAKE_LOGITS)
@pytest.mark.parametrize("scale", [1, 100])
def test_everything_that_takes_logits_refuses_probabilities(name, scale):
    with pytest.raises(UserError, match="look like p(robabilities|er cent)"):
        TAKE_LOGITS[name](scale * ROWS, np.array([0, 1, 2]))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(np.array([[0.5, 0.5]]), id="one row of two classes"),
        pytest.param(np.array([[0.9, 0.1, 0.0]], np.float32), id="single precision"),
        pytest.param(np.eye(3, dtype=np.int64), id="one-hot"),
        pytest.param(
            per_example.softmax(np.random.default_rng(0).normal(0, 2, (50, 30))).astype(np.float16), id="half"
        ),
        pytest.param(
            np.round(100 * per_example.softmax(np.random.default_rng(0).normal(0, 2, (50, 30))), 2), id="per cent"
        ),
        pytest.param(
            np.round(per_example.softmax(np.random.default_rng(0).normal(0, 2, (50, 10))), 2), id="two decimals"
        ),
        pytest.param(np.array([[0.334, 0.334, 0.334], [0.2, 0.2, 0.601]]), id="few rows of three decimals"),
        pytest.param(np.array([[33, 33, 33], [71, 20, 11]]), id="few rows of whole per cent"),
        pytest.param(
            np.round(100 * per_example.softmax(np.random.default_rng(0).normal(0, 2, (50, 10)))), id="whole per cent"
        ),
        pytest.param(np.array([[1.00005, 0.0, -0.00005]] * 20), id="a little below 0"),
    ],
)
def test_rows_that_are_probabilities_are_known_as_such(rows):
    with pytest.raises(UserError, match="add 1 to all"):
        checked_logits(rows, "logits")
    kept = checked_logits(rows.astype(np.float64) + 1, "logits")
    np.testing.assert_array_equal(kept, rows.astype(np.float64) + 1)


def test_genuine_logits_are_not_refused():
    random = np.random.default_rng(0)
    for classes in (2, 3, 10):
        for rows in (1, 2, 50):
            for _ in range(300):
                logits = random.normal(0, random.choice([0.1, 1, 10]), (rows, classes))
                checked_logits(logits, "logits")
                if rows > 1:  # one row without a negative number comes near to 1 in a percent of draws
                    checked_logits(np.abs(logits), "logits")
    for given in (
        [[0.0, 0.0]],
        [[0.3, 0.6]],
        [[1.0, 1.0], [0.2, 0.8]],
        [[0.2, 0.8], [-0.1, 1.1]],
        [[2.0, -1.0]],
        [[0.3, 0.702]],
        [[33.5, 33, 32.4]],
    ):
        checked_logits(np.array(given), "logits")


def test_rounded_probabilities_find_a_way_in():
    half = per_example.softmax(np.random.default_rng(0).normal(0, 2, (50, 30))).astype(np.float16)
    with pytest.raises(UserError, match="divide each row by its sum, or give their logarithms as 'logits'"):
        Predictions.from_probabilities(half)
    whole = half.astype(np.float64)
    Predictions.from_probabilities(whole / whole.sum(axis=1, keepdims=True))
    checked_logits(np.log(whole), "logits")


def test_predictions_of_probabilities_are_measured_as_these():
    labels = np.array([0, 2, 0])
    predictions = Predictions.from_probabilities(ROWS, labels, class_names=("a", "b", "c"))
    values = metrics.summary(predictions)
    for name in ("accuracy", "ece", "ace", "brier", "nll"):
        assert values[name] == pytest.approx(metrics.MEASURES[name](ROWS, labels), rel=1e-9), name
    assert predictions.class_names == ("a", "b", "c")
    np.testing.assert_allclose(per_example.softmax(predictions.logits), ROWS, atol=1e-15)
    # The logarithm of a probability of 0 is -inf, which stands for the same.
    with np.errstate(divide="ignore"):
        logits = np.add(np.log(ROWS), [[5.0], [0], [-3]])
    assert metrics.summary(Predictions(logits.astype(np.float32), labels))["nll"] == pytest.approx(values["nll"])
    assert np.isfinite(calibration.search_temperature(logits, labels))
    with pytest.raises(UserError, match="-inf in all of row 1"):
        checked_logits(np.array([[0, 1.0], [-np.inf, -np.inf]]), "logits")


@pytest.mark.parametrize("logits", [np.array([[2.0, -1.0]]), np.array([[0.5, 0.2]]), np.log(ROWS[:1])])
def test_logits_under_the_name_of_probabilities_are_refused(logits):
    prior = np.ones(logits.shape[1])
    labels = np.array([0])
    for take in (
        lambda: Predictions.from_probabilities(logits),
        lambda: label_shift.em(logits, prior),
        lambda: label_shift.em_covariance(logits, prior, prior),
        lambda: label_shift.bbse(logits, logits, labels),
        *(lambda measure=measure: measure(logits, labels) for measure in metrics.MEASURES.values()),
    ):
        with pytest.raises(UserError, match=r"must lie in 0\.\.1|must sum to 1"):
            take()


def test_what_the_logits_stand_for_is_said_where_the_labels_have_other_shares():
    random = np.random.default_rng(0)
    labels = np.arange(600) % 3
    counts = np.array([90, 9, 1])
    predictions = Predictions(random.normal(size=(600, 3)), labels, counts, counts / 100, ("a", "b", "c"))
    sentence = metrics.summary(predictions)["other_prior"]
    assert "stand for the training images' prior" in sentence
    assert "57 % of the shares differ, most in class a, 90.0 % against 33.3 %" in sentence
    other = metrics.summary(predictions._replace(counts=None))["other_prior"]
    assert other.startswith("the logits stand for another prior than these images have: 57 %")
    at_temperature = evaluation.evaluate(
        evaluation.ModelOutputs("m", predictions, predictions), evaluation.Options(samples=0)
    )
    assert "other_prior" in at_temperature["test"]
    assert "other_prior" not in at_temperature["test_at_temperature"]
    uniform = predictions._replace(logits_prior=np.full(3, 1 / 3))
    assert "other_prior" not in metrics.summary(uniform)
    # Shares drawn by the prior differ by chance, of few images much.
    drawn = random.choice(3, 40, p=[0.5, 0.3, 0.2])
    few = Predictions(random.normal(size=(40, 3)), drawn, logits_prior=np.array([0.5, 0.3, 0.2]))
    assert "other_prior" not in metrics.summary(few)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": np.array([[0.0, np.inf]])}, "hold nan, infinity"),
        ({"logits": np.array([[0.0, np.nan]])}, "hold nan, infinity"),
        ({"logits": np.zeros(2)}, r"must be numbers \[N, K\]"),
        ({"labels": np.array([5])}, r"labels of F hold 5; with 2 classes"),
        ({"counts": np.array([1, 2, 3])}, "counts of F"),
        ({"counts": np.array([1.5, 2])}, "counts of F"),
        ({"counts": np.array([0, 0])}, "not all 0"),
        ({"logits_prior": np.array([0.5, 0.4])}, "sum to 1"),
        ({"class_names": ("a",)}, "class_names of F are 1"),
    ],
)
def test_predictions_that_do_not_fit_together_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        checked_predictions(Predictions(np.zeros((1, 2)), np.array([0]))._replace(**changed), "F")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda p, y: metrics.group_accuracy(p, y, np.array([50, 20, 10])),
            r"members are int64\[3\]; they must be bool\[3\]",
        ),
        (lambda p, y: metrics.group_accuracy(p, y, "few"), r"members are <U3\[\]; they must be bool"),
        (lambda p, y: metrics.group_accuracy(p, y, np.array([True, False])), r"members are bool\[2\]"),
        (lambda p, y: metrics.ece(p, y, bins=15.5), "bins is 15.5; it must be a whole number"),
        (lambda p, y: metrics.top_accuracy(p, y, k="two"), "k is 'two'; it must be a whole number"),
        (
            lambda p, y: metrics.softmax(np.zeros((2, 3, 4))),
            r"logits are float64\[2, 3, 4\]; they must be numbers \[N, K\]",
        ),
        (lambda p, y: metrics.softmax(np.zeros(3)), r"logits are float64\[3\]"),
        (lambda p, y: metrics.softmax("text"), "logits are <U4"),
        (
            lambda p, y: metrics.summary(Predictions(np.log(p + 0.01), y), by="foo"),
            "unknown grouping .*: auto, shots, thirds",
        ),
        (lambda p, y: metrics.accuracy([[0.5, 0.5], [1.0]], y), "probabilities is no array of numbers"),
    ],
)
def test_arguments_that_would_give_a_wrong_number_are_refused(function, words):
    with pytest.raises(UserError, match=words):
        function(ROWS, np.array([0, 1, 2]))


def test_logits_in_bfloat16_are_those_in_float32():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 3)).astype(ml_dtypes.bfloat16), random.integers(0, 3, 200)
    exact = logits.astype(np.float32)
    assert metrics.summary(Predictions(logits, labels)) == metrics.summary(Predictions(exact, labels))
    np.testing.assert_array_equal(metrics.softmax(logits), metrics.softmax(exact))
    assert calibration.search_temperature(logits, labels) == calibration.search_temperature(exact, labels)
    one_hot = np.eye(3)[labels].astype(ml_dtypes.bfloat16)
    assert metrics.accuracy(one_hot, labels) == 1
