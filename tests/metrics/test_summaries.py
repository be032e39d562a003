"""Summaries, groups of classes, and measures of a user."""

import numpy as np
import pytest

from unimix_jax import metrics, registry
from unimix_jax.errors import UserError
from unimix_jax.metrics import bootstrap, per_example
from unimix_jax.metrics.predictions import Predictions


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


def test_a_summary_leaves_out_what_says_nothing():
    logits, labels = np.array([[9.0, 0], [0, 9]]), np.array([0, 1])
    values = metrics.summary(Predictions(logits, labels, np.array([5, 3])))
    assert not {"top5", "many"} & values.keys()  # two classes
    logits = 2 * np.eye(6)
    assert "many" not in metrics.summary(Predictions(logits, np.arange(6), np.full(6, 7)))
    values = metrics.summary(Predictions(logits, np.arange(6), np.arange(6)), by="thirds", names=("top5", "ece"))
    assert (values["groups"], values["top5"], "accuracy" in values) == ("thirds", 1.0, False)
    assert metrics.summary(Predictions(logits, np.arange(6), np.arange(6)), by="shots")["many"] is None
    with pytest.raises(UserError, match="unknown measure"):
        metrics.summary(Predictions(logits, np.arange(6)), names=("acc",))


def test_a_summary_takes_nll_from_the_logits():
    values = metrics.summary(Predictions(np.array([[0.0, -1000.0]]), np.array([1])), names=("nll",))
    assert values["nll"] == 1000  # not 708, where probabilities end


def test_a_summary_without_counts_or_with_an_absent_class():
    logits = np.array([[9, 0, 0], [0, 9, 0]], np.float32)
    assert "many" not in metrics.summary(Predictions(logits, np.array([0, 1])))
    values = metrics.summary(Predictions(logits, np.array([0, 1]), np.array([500, 50, 5])))
    assert values["few"] is None
    assert values["class_accuracy"][2] is None
    with pytest.raises(UserError, match="have no labels"):
        metrics.summary(Predictions(logits))


def test_a_confusion_matrix():
    labels, predicted = np.array([0, 1, 1, 2], np.uint8), np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(per_example.confusion_matrix(labels, predicted, 3), [[1, 0, 0], [1, 1, 0], [0, 1, 0]])
    many = np.arange(200, dtype=np.uint8) % 40  # cells are counted beyond what the labels' type holds
    assert per_example.confusion_matrix(many, many, 40).trace() == 200


def _sorts(probabilities, labels):
    probabilities.sort(axis=1)
    return probabilities[:, -1].mean()


def _vector(probabilities, labels):
    return probabilities.mean(axis=1)


def _none(probabilities, labels):
    return None


@registry.Measure(unit="nats")
def _entropy(probabilities, labels):
    return -(probabilities * np.log(probabilities)).sum(axis=1).mean()


def _rarest_recall(probabilities, labels):
    if not (labels == 5).any():
        raise ValueError("no image of class 5")
    return (probabilities.argmax(axis=1) == labels)[labels == 5].mean()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("_sorts", "the measure .*:_sorts fails: ValueError: .*read-only"),
        ("_vector", r"returns shape \(3,\); it must return one number"),
        ("_none", "returns None; it must return one number"),
    ],
)
def test_measures_of_a_user_that_return_no_number_or_write_are_refused(name, message):
    probabilities, labels = np.full((3, 2), 0.5), np.array([0, 1, 1])
    with pytest.raises(UserError, match=message):
        metrics.measured((f"{__name__}:{name}",), probabilities, labels)


def test_the_interval_of_a_measure_of_a_user_has_no_bounds_unless_it_states_some(caplog):
    random = np.random.default_rng(0)
    predictions = Predictions(random.normal(0, 0.1, (60, 6)), np.arange(60) % 6)
    name = f"{__name__}:_entropy"
    low, high = bootstrap.bootstrap(predictions, names=(name,), samples=50)[name]
    assert 1 < low < metrics.summary(predictions, names=(name,))[name] < high
    predictions = predictions._replace(labels=np.array([5, *[0] * 59]))
    name = f"{__name__}:_rarest_recall"
    bootstrap.bootstrap(predictions, names=(name,), samples=50)
    assert "has no value on" in caplog.text
    assert "of 50 samples of the bootstrap" in caplog.text
