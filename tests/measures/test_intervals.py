import numpy as np
import pytest

from unimix_jax.batch import Predictions
from unimix_jax.errors import UserError
from unimix_jax.measures import intervals, metrics


@pytest.fixture(scope="module")
def predictions():
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 2, (400, 6)), random.integers(0, 6, 400)
    logits[np.arange(400), labels] += 2
    return Predictions(logits, labels, np.array([300, 200, 100, 50, 10, 5]))


@pytest.fixture(scope="module")
def found(predictions):
    return intervals.bootstrap(predictions, names=tuple(metrics.MEASURES), samples=200)


def test_every_measure_and_group_has_an_interval_around_its_value(predictions, found):
    values = metrics.summary(predictions)
    assert set(found) == {*metrics.MEASURES, "many", "medium", "few"}
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
    names = tuple(metrics.MEASURES)
    measures = intervals._measures(predictions, names, 15, "auto")
    index = np.random.default_rng(1).integers(400, size=400)
    values = metrics.summary(Predictions(predictions.logits[index], predictions.labels[index], predictions.counts))
    for name, measure in measures.items():
        assert measure(index) == pytest.approx(values[name], rel=1e-9), name


def test_the_same_seed_gives_the_same_interval(predictions):
    once, again, other = (intervals.bootstrap(predictions, names=("ece",), samples=20, seed=s) for s in (1, 1, 2))
    assert once == again != other


def test_nothing_is_said_of_groups_and_top5_that_are_none():
    logits = np.array([[9, 0, 0], [0, 9, 0], [9, 0, 0]], np.float32)
    found = intervals.bootstrap(Predictions(logits, np.array([0, 1, 1]), np.array([500, 50, 5])), samples=50)
    assert "few" not in found
    assert "top5" not in found
    assert found["medium"][1] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 1}, "at least 2"), ({"level": 1.0}, "a level in 0..1"), ({"names": ("acc",)}, "unknown measure")],
)
def test_wrong_options(predictions, options, message):
    with pytest.raises(UserError, match=message):
        intervals.bootstrap(predictions, **options)
