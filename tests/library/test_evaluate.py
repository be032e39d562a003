"""`unimix_jax.evaluate`: a call has the numbers of the command's report, whatever form predictions have."""

import jax.numpy as jnp
import numpy as np
import pytest

import unimix_jax
from unimix_jax import metrics, storage
from unimix_jax.errors import UserError
from unimix_jax.metrics.predictions import Predictions, write_predictions


def predicted(size=300, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(size) % 6
    logits = random.normal(0, 2, (size, 6)).astype(np.float32)
    logits[np.arange(size), labels] += 3
    return logits, labels


TRAINING = np.array([120, 60, 30, 12, 6, 3])


class Tensor:
    """What `evaluate` uses of a tensor of PyTorch with a gradient: numpy cannot read it before it is detached."""

    def __init__(self, array, detached=False):
        self.array, self.detached = array, detached

    def detach(self):
        return Tensor(self.array, detached=True)

    def cpu(self):
        return self

    def numpy(self):
        assert self.detached
        return self.array

    def __array__(self, *args, **options):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")


@pytest.mark.slow
def test_all_ways_to_give_predictions_have_the_same_measures(tmp_path):
    logits, labels = predicted()
    predictions = Predictions(logits, labels, TRAINING)
    write_predictions(tmp_path / "mine.npz", predictions)
    (tmp_path / "counts.txt").write_text(" ".join(map(str, TRAINING)))
    results = [
        unimix_jax.evaluate(predictions, samples=0),
        unimix_jax.evaluate(tmp_path / "mine.npz", samples=0),
        unimix_jax.evaluate(str(tmp_path / "mine.npz"), samples=0),
        unimix_jax.evaluate(Predictions(logits), labels, tmp_path / "counts.txt", samples=0),
        unimix_jax.evaluate(logits=Tensor(logits), labels=Tensor(labels), counts=list(TRAINING), samples=0),
        unimix_jax.evaluate(logits=jnp.asarray(logits), labels=labels.tolist(), counts=TRAINING, samples=0),
    ]
    expected = metrics.summary(predictions)
    for result in results:
        assert result.summary == expected
        assert {name: getattr(result, name) for name in metrics.MEASURES} == {n: expected[n] for n in metrics.MEASURES}
        assert (result.groups["few"], result.grouped_by) == (expected["few"], expected["groups"])
    probabilities = metrics.softmax(logits)
    assert unimix_jax.evaluate(probabilities=probabilities, labels=labels, samples=0).accuracy == expected["accuracy"]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "without_distributions")
def test_evaluate_has_the_numbers_of_the_command_s_report(tmp_path):
    from unimix_jax import evaluate

    for name, seed in (("mine", 0), ("validation", 1)):
        write_predictions(tmp_path / f"{name}.npz", Predictions(*predicted(seed=seed), TRAINING))
    options = {"samples": 20, "bins": 10, "test_prior": "uniform"}
    result = unimix_jax.evaluate(tmp_path / "mine.npz", validation=tmp_path / "validation.npz", **options)
    argv = [f"--predictions={tmp_path}/mine.npz", f"--validation={tmp_path}/validation.npz", f"--output={tmp_path}/a"]
    assert evaluate.main(["evaluate", *argv, *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert result.report(tmp_path / "b") == tmp_path / "b" / "report.html"
    of_command, own = (storage.read_json(tmp_path / folder / "report.json")["models"][0] for folder in "ab")
    assert own == of_command
    assert (own["test"]["ece"], own["temperature"]) == (result.ece, result.temperature)
    assert own["test"]["intervals"] == {name: list(ends) for name, ends in result.intervals.items()}
    assert tuple(own["missing"]) == result.missing
    assert "ECE" in str(result)


def own_measure(probabilities, labels):
    return float((probabilities[np.arange(len(labels)), labels] > 0.5).mean())


LOGITS, LABELS = predicted()
WITH_VALIDATION = {"logits": LOGITS, "labels": LABELS, "validation": predicted(seed=1), "samples": 0}


@pytest.mark.slow
def test_shares_of_a_test_prior_may_be_an_array_with_classes_that_do_not_occur():
    shares = np.array([0.4, 0.3, 0.2, 0.1, 0, 0])
    result = unimix_jax.evaluate(**WITH_VALIDATION, test_prior=shares, measures=own_measure)
    listed = unimix_jax.evaluate(**WITH_VALIDATION, test_prior=shares.tolist(), measures=(f"{__name__}:own_measure",))
    assert result.corrected == listed.corrected
    fitted = unimix_jax.calibration.fit_bias_corrected(*predicted(seed=1))
    calibrated = unimix_jax.calibration.calibrated(LOGITS, fitted)
    posterior = metrics.softmax(calibrated) * shares / fitted.prior
    posterior /= posterior.sum(axis=1, keepdims=True)
    assert result.corrected["accuracy"] == metrics.accuracy(posterior, LABELS)
    assert result.corrected["brier"] == pytest.approx(metrics.brier(posterior, LABELS), rel=1e-9)
    assert result.corrected["prior"] == pytest.approx(shares.tolist())
    name = f"{__name__}:own_measure"
    assert result.summary[name] == listed.summary[name] == own_measure(metrics.softmax(LOGITS), LABELS)
    cooled = metrics.summary(Predictions(LOGITS / result.temperature, LABELS))
    assert result.calibrated["ece"] == cooled["ece"]
    assert unimix_jax.evaluate(logits=LOGITS, labels=LABELS, samples=0).calibrated is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "nothing given to evaluate; give one of"),
        ({"logits": np.eye(3), "probabilities": np.eye(3)}, "logits and probabilities given to evaluate"),
        ({"predictions": np.eye(3)}, "predictions are of the type ndarray; give an array as logits="),
        ({"logits": np.eye(3) + 1}, "model has no labels, which measures need"),
        ({"logits": np.eye(3), "labels": [0, 1, 2]}, "look like probabilities"),
        ({"logits": [[1.0, 2.0], [3.0]], "labels": [0, 1]}, "logits is no array of numbers"),
        (
            {"logits": np.eye(3) + 1, "labels": [0, 1]},
            r"labels of model \(test\) are int64\[2\]; they must be integers",
        ),
        ({"logits": np.eye(3) + 1, "labels": [0, 1, 2], "bins": 0}, "bins is 0; it must be at least 1"),
        ({"logits": np.eye(3) + 1, "labels": [0, 1, 2], "samples": 1}, "give at least 2"),
        ({"logits": np.eye(3) + 1, "labels": [0, 1, 2], "validation": np.eye(3)}, "validation is of the type ndarray"),
        ({"predictions": "nowhere.npz"}, "nowhere.npz"),
        (WITH_VALIDATION | {"test_prior": [0.5, 0.5]}, "test_prior .* for each of the 6 classes"),
        (WITH_VALIDATION | {"test_prior": [0.5, 0.5, np.nan, 0, 0, 0]}, "test_prior is nan for class 2"),
        (WITH_VALIDATION | {"test_prior": 5}, "test_prior has the shape"),
        (WITH_VALIDATION | {"groups": "foo"}, "unknown grouping of classes 'foo'; known: auto, shots, thirds"),
        (WITH_VALIDATION | {"measures": "foo"}, "unknown measure 'foo'"),
        (WITH_VALIDATION | {"measures": lambda p, y: 0}, "is no function at the top of a module"),
        (WITH_VALIDATION | {"test_prior": "train"}, "test_prior=train needs .* give counts$"),
    ],
)
def test_a_mistake_in_a_call_of_evaluate_is_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        unimix_jax.evaluate(**arguments)
