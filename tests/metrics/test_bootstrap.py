import numpy as np
import pytest

from unimix_jax import metrics
from unimix_jax.errors import UserError
from unimix_jax.metrics import bootstrap, per_example
from unimix_jax.metrics.predictions import Predictions


@pytest.fixture(scope="module")
def predictions():
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 2, (400, 6)), random.integers(0, 6, 400)
    logits[np.arange(400), labels] += 2
    return Predictions(logits, labels, np.array([300, 200, 100, 50, 10, 5]))


@pytest.fixture(scope="module")
def found(predictions):
    return bootstrap.bootstrap(predictions, names=bootstrap.ALL, samples=200)


@pytest.mark.slow
def test_every_measure_and_group_has_an_interval_around_its_value(predictions, found):
    values = metrics.summary(predictions)
    assert set(found) == {*metrics.MEASURES, "many", "medium", "few"} - {"mce"}
    for name, (low, high) in found.items():
        assert low <= values[name] <= high, name
        assert low < high, name


def test_the_interval_of_a_mean_is_the_normal_one(predictions, found):
    accuracy = metrics.summary(predictions)["accuracy"]
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 400)
    # 200 samples know a quantile to a tenth of the standard deviation.
    np.testing.assert_allclose(found["accuracy"], [accuracy - half, accuracy + half], atol=half / 5)


def test_quick_intervals_are_those_of_the_whole_measures(predictions):
    # What is worked out once must agree with measuring the resampled arrays from the start.
    names = tuple(name for name in bootstrap.ALL if name not in bootstrap.CALIBRATION)
    measures = bootstrap._measures(predictions, names, 15, "auto")
    index = np.random.default_rng(1).integers(400, size=400)
    values = metrics.summary(Predictions(predictions.logits[index], predictions.labels[index], predictions.counts))
    for name, measure in measures.items():
        assert measure(index) == pytest.approx(values[name], rel=1e-9), name


def test_the_same_seed_gives_the_same_interval(predictions):
    once, again, other = (bootstrap.bootstrap(predictions, names=("ece",), samples=20, seed=s) for s in (1, 1, 2))
    assert once == again != other


def test_nothing_is_said_of_groups_and_top5_that_are_none():
    logits = np.array([[9, 0, 0], [0, 9, 0], [9, 0, 0]], np.float32)
    found = bootstrap.bootstrap(Predictions(logits, np.array([0, 1, 1]), np.array([500, 50, 5])), samples=50)
    assert "few" not in found
    assert "top5" not in found
    assert found["medium"][1] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "at least 2"),
        ({"level": 1.0}, "a level in 0..1"),
        ({"names": ("acc",)}, "unknown measure"),
        ({"names": ("ece", "mce")}, "MCE has no bootstrap interval"),
    ],
)
def test_wrong_options(predictions, options, message):
    with pytest.raises(UserError, match=message):
        bootstrap.bootstrap(predictions, **options)


def test_the_interval_of_a_calibrated_model_holds_its_value_and_chance_explains_it():
    random = np.random.default_rng(2)
    logits = random.normal(0, 1.5, (500, 4))
    probabilities = per_example.softmax(logits)
    labels = (random.random((500, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    predictions = Predictions(logits, labels)
    values = metrics.summary(predictions)
    found = bootstrap.bootstrap(predictions, samples=200)
    for name in bootstrap.CALIBRATION:
        low, high = found[name]
        # All of the value can be chance, so the interval reaches to the 0 that endless examples would show.
        assert low < 1e-6 < values[name] <= high, name
    chance = bootstrap.expected_if_calibrated(predictions)
    for name in ("ece", "smooth_ece", "mce"):
        assert chance[name] == pytest.approx(values[name], rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1.15, 2.0], ids=["calibrated", "mild", "strong"])
def test_intervals_of_calibration_errors_hold_the_error_of_endless_examples(scale):
    def drawn(size, seed):
        random = np.random.default_rng(seed)
        logits = random.normal(0, 1.5, (size, 10))
        labels = (random.random((size, 1)) > per_example.softmax(logits).cumsum(axis=1)).sum(axis=1).clip(0, 9)
        return Predictions(scale * logits, labels)

    endless = drawn(100_000, 1)
    limit = metrics.ece(per_example.softmax(endless.logits), endless.labels)
    inside = []
    for seed in range(25):
        low, high = bootstrap.bootstrap(drawn(500, 10 + seed), names=("ece",), samples=160)["ece"]
        inside.append(low - 0.002 <= limit <= high)  # the limit is known to .002
    # Measured on 60: 93, 93 and 98 %; an interval laid around the value holds 2 % of the first, 70 % of the second.
    assert np.mean(inside) >= 0.84


@pytest.mark.slow
def test_chance_is_what_relabelling_by_the_confidence_gives():
    logits = np.log(np.array([[0.8, 0.2]] * 50))
    chance = bootstrap.expected_if_calibrated(Predictions(logits), samples=2000)
    # One bin: the mean of |share of hits - .8| of 50 draws, nearly Gaussian.
    expected = np.sqrt(2 / np.pi * 0.8 * 0.2 / 50)
    assert chance["ece"] == pytest.approx(expected, rel=0.05)
    assert chance["mce"] == pytest.approx(chance["ece"])


def test_intervals_stay_within_what_a_measure_can_be():
    logits = np.array([[9.0, 0], [0, 9]] * 20)
    found = bootstrap.bootstrap(Predictions(logits, np.array([0, 1] * 19 + [0, 0])), samples=50)
    assert all(low >= 0 for low, _ in found.values())
    assert found["accuracy"][1] <= 1
