"""The library: the names of `import unimix_jax`, which give what the commands and the exact forms give."""

import ast
import functools
import inspect
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unimix_jax
from unimix_jax import library, losses, main, metrics, mixing, names, priors, storage
from unimix_jax.config import default, use_method, use_source
from unimix_jax.errors import UserError
from unimix_jax.methods import mixing as exact
from unimix_jax.metrics.predictions import Predictions, write_predictions

from . import quick

COUNTS = np.array([90, 27, 9, 3])
FEW = {"config.epochs": "1", "config.network": "stem", "config.parallel.devices": "1", "config.seed": "3"}


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_loads_nothing_heavy():
    code = (
        "import sys, unimix_jax; dir(unimix_jax); unimix_jax.train, unimix_jax.evaluate, unimix_jax.UserError\n"
        "print([name for name in ('jax', 'numpy', 'ml_collections', 'absl', 'scipy') if name in sys.modules])"
    )
    assert in_a_new_process(code).stdout == "[]\n"


def test_every_public_name_is_there_and_known_to_type_checkers():
    tree = ast.parse(pathlib.Path(unimix_jax.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body for alias in node.names}
    assert typed | {"__version__"} == set(unimix_jax.__all__)
    assert set(unimix_jax.__all__) <= set(dir(unimix_jax))
    for name in unimix_jax.__all__:
        assert getattr(unimix_jax, name) is not None
        if name in unimix_jax._MODULE_OF:
            assert getattr(unimix_jax, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bayais", "did you mean 'unimix_jax.bayias'?"),
        ("Unimix", "it is unimix_jax.unimix"),
        ("focal", "it is unimix_jax.losses.focal"),
        ("mixup", "it is unimix_jax.mixing.mixup"),
        ("fit_bias_corrected", "it is unimix_jax.calibration.fit_bias_corrected"),
        ("trian", "did you mean 'unimix_jax.train'?"),
        ("__path_hooks__", "has no attribute"),
    ],
)
def test_an_unknown_name_says_where_it_is(name, words):
    with pytest.raises(AttributeError, match=f"module 'unimix_jax' has no attribute {name!r}") as error:
        getattr(unimix_jax, name)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("calibration", "temperature", "did you mean 'unimix_jax.calibration.fit_temperature'?"),
        ("calibration", "TemperatureScaling", "it is unimix_jax.calibration.fit_temperature"),
        ("losses", "bayias_loss", "did you mean 'unimix_jax.losses.bayias'?"),
        ("losses", "BalancedSoftmax", "did you mean 'unimix_jax.losses.balanced_softmax'?"),
        ("losses", "unimix", "it is unimix_jax.mixing.unimix"),
        ("metrics", "expected_calibration_error", "it is unimix_jax.metrics.ece"),
        ("metrics", "reliability_diagram", "it is unimix_jax.plots.reliability"),
        ("priors", "inverse", "did you mean 'unimix_jax.priors.inverse_weights'?"),
        ("mixing", "mix_up", "did you mean 'unimix_jax.mixing.mixup'?"),
        ("plots", "reliabilty", "did you mean 'unimix_jax.plots.reliability'?"),
        ("label_shift", "shift", "did you mean 'unimix_jax.label_shift.shift_prior'?"),
    ],
)
def test_a_public_module_says_where_an_unknown_name_is(module, name, words):
    contents = getattr(unimix_jax, module)
    with pytest.raises(AttributeError, match=f"module 'unimix_jax.{module}' has no attribute {name!r}") as error:
        getattr(contents, name)
    assert words in str(error.value)


@pytest.mark.parametrize("module", [name for name in names.MODULES if name != "config"])
def test_a_public_module_shows_its_public_names_alone(module):
    contents = getattr(unimix_jax, module)
    shown = [name for name in dir(contents) if not name.startswith("_")]
    assert shown == sorted(contents.__all__)
    assert all(hasattr(contents, name) for name in shown)
    assert not {"np", "jax", "annotations", "UserError", "registry"} & set(shown)


def test_short_names_are_the_modules_themselves():
    from unimix_jax.losses import bayias
    from unimix_jax.methods import losses as long_name

    assert unimix_jax.losses is losses is long_name
    assert unimix_jax.bayias is bayias is long_name.bayias
    assert unimix_jax.theory.exact.preference
    assert unimix_jax.config.parse


@pytest.mark.parametrize("first", ["import unimix_jax.evaluate", "unimix_jax.evaluate", "from unimix_jax import main"])
def test_evaluate_is_a_function_and_the_module_of_the_command(first):
    code = (
        f"import unimix_jax\n{first}\nimport unimix_jax.evaluate\nfrom unimix_jax.evaluate import main\n"
        "from unimix_jax import evaluate\nassert evaluate is unimix_jax.evaluate and evaluate.main is main\n"
        "result = unimix_jax.evaluate(probabilities=[[.9, .1], [.8, .2], [.6, .4]], labels=[0, 0, 1], samples=0)\n"
        "assert main(['evaluate', '--help']) == 0\nprint(result.images)"
    )
    done = in_a_new_process(code)
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "3")


def test_the_command_evaluate_still_starts():
    done = subprocess.run(
        [sys.executable, "-m", "unimix_jax.evaluate", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Measure predictions")


def test_evaluate_has_the_signature_of_its_function():
    assert inspect.signature(unimix_jax.evaluate) == inspect.signature(library.evaluate)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")
def test_train_gives_the_bits_of_the_command_and_can_be_called_again(cache, capsys):
    command = ["main", "--config=digits_lt:method=bayias", "--workdir=command", "--report=no"]
    assert main.main([*command, *(f"--{field}={value}" for field, value in FEW.items())]) == 0
    capsys.readouterr()
    fields = {"epochs": 1, "network": "stem", "parallel__devices": 1, "seed": np.int64(3)}
    run = unimix_jax.train("digits_lt:method=bayias", **fields)
    assert "epoch 1: test accuracy" in capsys.readouterr().err
    assert run.workdir.parent == pathlib.Path("runs")
    assert run.metrics == storage.read_json(cache / "command" / "metrics.json")
    for name in ("predictions.npz", "predictions_validation.npz"):
        assert (run.workdir / name).read_bytes() == (cache / "command" / name).read_bytes()
    assert metrics.summary(run.predictions["test"]) == run.metrics["test"]
    assert set(run.predictions) == {"test", "validation"}
    assert "accuracy" in str(run)
    again = unimix_jax.train("digits_lt:method=bayias", run.workdir, **fields)
    assert again.metrics == run.metrics
    with pytest.raises(UserError, match=r"config\.epochs|epochs"):  # another config in the directory of a run
        unimix_jax.train("digits_lt:method=bayias", run.workdir, **fields | {"epochs": 2})


@pytest.mark.slow
@pytest.mark.usefixtures("cache", "quick_compilation", "shared_programs", "stem")
def test_train_takes_a_config_dict_and_leaves_it_as_it_is():
    config = default()
    use_source(config, "digits")
    config.data.imbalance, config.data.pad, config.network = 20.0, 1, "stem"
    use_method(config, "erm")
    before = config.to_dict()
    run = unimix_jax.train(config, "own", epochs=1, **{"parallel.devices": 1})
    assert storage.read_json("own/config.json")["epochs"] == 1
    assert config.to_dict() == before
    result = unimix_jax.evaluate(run, samples=0)
    assert (result.accuracy, result.groups["few"]) == (run.metrics["test"]["accuracy"], run.metrics["test"]["few"])
    assert result.temperature > 0


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        ("digits_lt", {"epoch": 3}, "unknown config field 'epoch' .did you mean 'epochs'"),
        ("digits_lt", {"optim__lr": 3}, "unknown config field 'optim.lr' .did you mean 'optim.learning_rate'"),
        ("digits_lt", {"workdir": 5}, "workdir is 5; it must be the path"),
        ("digits_lt", {"seed_everything": 5}, "the seed of a run is seed$"),
        ("digits_lt", {"epochs": "many"}, "config.epochs is 'many'; it must be a whole number"),
        ("digits_lt", {"optim__momentum": 2}, "config.optim.momentum is 2.0; it must be at least 0"),
        ("digits_lt", {"epochs": None}, "epochs is None; it must be a number"),
        ("digits_lt", {"method": "erm"}, "after the colon, as in config=digits_lt:method=erm"),
        ("digits_lt", {"optim__learning_rate": 1, "optim.learning_rate": 2}, "a field is given twice"),
        ("digit_lt", {}, "^config names digit_lt, which is not there"),
        (3, {}, r"config is 3; it must be the name of .* unimix_jax\.load_config"),
        ("config", {"epoch": 3}, "unknown config field 'epoch'"),
        ("config", {"epochs": -1}, "config.epochs is -1; it must be"),
        ("config", {"method": "erm"}, "holds the method; change it there"),
        ("empty", {}, "the config has no field"),
    ],
)
def test_a_mistake_in_a_call_of_train_is_one_sentence(cache, config, fields, words):
    if config in ("config", "empty"):
        made = default()
        if config == "config":
            use_source(made, "digits")
            use_method(made, "erm")
        else:
            del made.epochs
        config = made
    with pytest.raises(UserError, match=words):
        unimix_jax.train(config, **fields)
    assert not list(cache.iterdir())


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


def test_a_config_is_loaded_changed_and_checked():
    config = unimix_jax.load_config("digits_lt:method=unimix_bayias", epochs=3)
    assert (config.epochs, config.method.name) == (3, "unimix_bayias")
    config.epochs = -1
    with pytest.raises(UserError, match="config.epochs is -1"):
        unimix_jax.train(config)
    with pytest.raises(UserError, match="^config names digit_lt, which is not there"):
        unimix_jax.load_config("digit_lt")


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


def batch(size, seed=0):
    """Images that name themselves by a number, and labels by the natural distribution of COUNTS."""
    random = np.random.default_rng(seed)
    labels = random.choice(len(COUNTS), size, p=COUNTS / COUNTS.sum())
    return random.normal(size=(size, 2, 2, 1)).astype(np.float32), labels


FORMS = {
    "unimix": ({"counts": COUNTS, "alpha": 0.8, "wrap": False}, exact.unimix),
    "mixup": ({"alpha": 0.7, "per_example": True}, exact.mixup),
    "remix": ({"counts": COUNTS, "alpha": 0.7, "kappa": 2.0, "threshold": 0.6}, exact.remix),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_friendly_form_equals_the_exact_one_of_its_partners(name):
    options, mixer = FORMS[name]
    images, labels = batch(16)
    others, other_labels = batch(16, seed=1)
    friendly = functools.partial(getattr(mixing, name), **options)

    @quick.jit
    def both(key):
        keys, _ = mixing.split_key(key, 16)
        args = jnp.asarray(images), jnp.asarray(others), jnp.asarray(labels), jnp.asarray(other_labels)
        return (
            friendly(key, images, labels, partners=(others, other_labels)),
            mixer(keys, *args, **options),
            friendly(key, images, labels),
        )

    ours, theirs, drawn = both(jax.random.key(5))
    for one, other in zip(ours[:4], theirs[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    # Partners from the batch: the mixed image says which image it was, for its weight is known (but for Remix).
    assert drawn.image.shape == images.shape
    if name != "remix":
        share = np.asarray(drawn.weight)[:, None, None, None]
        partner = (np.asarray(drawn.image) - share * images) / np.maximum(1 - share, 1e-9)
        distance = np.abs(partner[:, None] - images[None]).max(axis=(2, 3, 4))
        clear = np.asarray(drawn.weight) < 0.9
        assert clear.sum() > 3
        np.testing.assert_array_equal(labels[distance.argmin(axis=1)][clear], np.asarray(drawn.label_b)[clear])
        assert distance.min(axis=1)[clear].max() < 1e-4


@pytest.mark.slow
def test_mixing_works_with_other_types_and_under_vmap():
    images, labels = batch(8)

    @quick.jit
    def views(images):
        keys = jax.random.split(jax.random.key(0), len(images))
        return jax.vmap(lambda key, view: mixing.unimix(key, view, labels, counts=COUNTS))(keys, images)

    mixed = jax.device_get(views(np.stack([images.astype(jnp.bfloat16)] * 3)))
    assert (mixed.image.shape, mixed.image.dtype) == ((3, 8, 2, 2, 1), jnp.bfloat16)
    first = jax.tree.map(lambda leaf: leaf[0], mixed)
    loss = quick.jit(functools.partial(mixing.objective, losses.cross_entropy))(np.zeros((8, 4), np.float32), first)
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
    raw = quick.jit(lambda: mixing.mixup(jax.random.PRNGKey(0), images.reshape(8, 4), labels))()
    assert raw.image.shape == (8, 4)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5])
def test_partner_indices_follow_the_exact_distribution(exponent):
    labels = np.repeat(np.arange(4), COUNTS)
    size = 40_000
    drawn = mixing.partner_indices(labels, size=size, seed=1, step=2, class_exponent=exponent)
    expected = COUNTS**exponent / (COUNTS**exponent).sum()
    share = np.bincount(labels[drawn], minlength=4) / size
    assert (np.abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / size)).all()
    # Each image of a class as often as the others.
    each = np.bincount(drawn, minlength=len(labels)) / size
    wanted = expected[labels] / COUNTS[labels]
    assert (np.abs(each - wanted) < 5 * np.sqrt(wanted / size)).all()
    by_class = mixing.sorted_by_class(labels)
    again = mixing.partner_indices(by_class, size=size, seed=1, step=2, class_exponent=exponent)
    np.testing.assert_array_equal(again, drawn)
    assert (mixing.partner_indices(by_class, size=size, seed=1, step=3) != drawn).any()


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [-1.0, 0.5, -10.0])
def test_partners_in_a_batch_follow_the_law_among_the_classes_that_are_there(exponent):
    labels = np.array([0, 0, 0, 0, 0, 2, 2, 3])  # no image of class 1
    counts = COUNTS * 1000  # whose power -10 no float32 holds
    draws = 20_000
    draw = functools.partial(mixing.partner_slots, labels=labels, counts=counts, class_exponent=exponent)
    keys = jax.random.split(jax.random.key(0), draws // len(labels))
    slots = np.asarray(quick.jit(jax.vmap(draw))(keys)).ravel()
    shares = np.where(np.bincount(labels, minlength=4) > 0, priors.prior(counts, exponent), 0)
    expected = (shares / shares.sum())[labels] / np.bincount(labels, minlength=4)[labels]
    share = np.bincount(slots, minlength=len(labels)) / draws
    assert (np.abs(share - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((4, 2, 2, 1), np.uint8)}, r"images are uint8\[4, 2, 2, 1\]; they must be floating-point"),
        ({"images": np.zeros((2, 2, 1), np.float32)}, r"with 4 labels they must be \[4, \.\.\.\]"),
        ({"labels": np.eye(4)}, "labels are float64.4, 4.; they must be integers"),
        ({"counts": 3}, r"counts has the shape \[\] and the type int64; it must be \[K\]"),
        ({"counts": [90, 27, 9]}, r"labels hold 3; with 3 classes they must lie in 0\.\.2"),
        ({"counts": [90, 27, 9, -1]}, "counts is -1 for class 3; it must be 0 or above"),
        ({"counts": [90, np.nan, 9, 1]}, "counts is nan for class 1"),
        ({"counts": [90, 0, 9, 1]}, "labels hold class 1, which has no training image"),
        ({"labels": [0, 1, 2, -1]}, r"labels hold -1; with 4 classes they must lie in 0\.\.3"),
        ({"labels": jnp.array([0, 1, 2, 4])}, r"labels hold 4; with 4 classes they must lie in 0\.\.3"),
        ({"partners": (np.zeros((4, 2, 2, 1), np.float32), np.arange(4) + 1)}, "labels of the partners hold 4"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, r"the key has the shape \[2\]: these are several keys"),
        ({"key": np.zeros((2, 2), np.uint32)}, r"the key has the shape \[2, 2\]: these are several keys"),
        ({"alpha": -1}, r"alpha is -1; it must be in \.01\.\.100"),
        ({"alpha": 0}, r"alpha is 0; it must be in \.01\.\.100"),
        ({"alpha": "half"}, r"alpha is 'half'; it must be in \.01\.\.100"),
        ({"alpha": np.array([1.0, 2.0])}, r"it must be in \.01\.\.100"),
        ({"class_exponent": np.nan}, "class_exponent is nan; it must be finite"),
        ({"class_exponent": -11}, r"class_exponent is -11; it must be in -10\.\.10"),
        ({"wrap": 3}, "wrap is 3; it must be True or False"),
        ({"key": 0}, "the key is 0; it must be a JAX key"),
        ({"partners": np.zeros((4, 2, 2, 1))}, "partners must be a pair"),
        ({"partners": (np.zeros((4, 3, 2, 1), np.float32), np.arange(4))}, "images of the partners have the shape"),
        ({"partners": (np.zeros((4, 2, 2, 1), np.float32), np.zeros(4))}, "labels of the partners are float64"),
    ],
)
def test_arrays_that_are_no_batch_are_refused_in_one_sentence(changes, words):
    arguments = {"key": jax.random.key(0), "images": np.zeros((4, 2, 2, 1), np.float32), "labels": np.arange(4)}
    with pytest.raises(UserError, match=words):
        mixing.unimix(**{**arguments, "counts": COUNTS, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.array([0, -1])}, "labels hold -1; they must be classes from 0"),
        ({"labels": np.array([0.5])}, "labels are float64"),
        ({"labels": []}, r"labels are float64\[0\]"),
        ({"step": -1}, "step is -1; it must be at least 0"),
        ({"step": 1.5}, "step is 1.5; it must be a whole number"),
        ({"size": "two"}, "size is 'two'; it must be a whole number"),
        ({"class_exponent": np.nan}, "class_exponent is nan"),
    ],
)
def test_labels_and_numbers_that_draw_no_partners_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        mixing.partner_indices(**{"labels": np.array([0, 1]), "size": 2, "seed": 0, "step": 0, **changes})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mixup", {"alpha": 0}, r"alpha is 0; it must be in"),
        ("mixup", {"labels": np.arange(4) - 1}, "labels hold -1; they must be classes from 0"),
        ("cutmix", {"probability": 1.5}, r"probability is 1\.5; it must be in 0\.\.1"),
        ("cutmix", {"images": np.zeros((4, 4), np.float32)}, r"a box is cut out of \[B, height, width, channels\]"),
        ("remix", {"counts": COUNTS, "kappa": 0}, "kappa is 0; it must be above 1"),
        ("remix", {"counts": COUNTS, "threshold": 3}, r"threshold is 3; it must be in 0\.\.1"),
        ("remix", {"counts": [90, 27]}, r"labels hold 2; with 2 classes"),
        ("partner_slots", {"counts": [90, 27]}, r"labels hold 2; with 2 classes"),
        ("partner_slots", {"counts": COUNTS, "class_exponent": np.inf}, "class_exponent is inf"),
    ],
)
def test_options_and_labels_out_of_bounds_are_refused(name, options, words):
    arguments = {"key": jax.random.key(0), "labels": np.arange(4)}
    if name != "partner_slots":
        arguments["images"] = np.zeros((4, 2, 2, 1), np.float32)
    with pytest.raises(UserError, match=words):
        getattr(mixing, name)(**{**arguments, **options})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda x: mixing.mixup(jax.random.key(0), np.zeros((4, 4), np.float32), np.arange(4), alpha=x),
            "alpha is traced",
        ),
        (lambda x: mixing.unimix(jax.random.key(0), x, np.arange(3), counts=COUNTS), "images are float32"),
        (lambda x: mixing.partner_slots(jax.random.key(0), x, COUNTS), "labels are float32"),
    ],
)
def test_what_is_known_under_jit_is_checked_there(function, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(function, jnp.float32(0.5))


@pytest.mark.slow
@pytest.mark.parametrize("per_example", [False, True])
def test_cutmix_weighs_labels_by_the_pixels_that_come_from_each_image(per_example):
    random = np.random.default_rng(0)
    images, others = random.uniform(size=(2, 8, 6, 6, 1)).astype(np.float32)
    labels, other_labels = np.arange(8) % 4, np.arange(8)[::-1] % 4
    cut = functools.partial(mixing.cutmix, per_example=per_example)
    mixed = quick.jit(lambda key: cut(key, images, labels, partners=(others, other_labels)))(jax.random.key(3))
    for n, image in enumerate(np.asarray(mixed.image)[..., 0]):
        own = 0
        rows, columns = [], []
        for row in range(6):
            for column in range(6):
                if image[row, column] == images[n, row, column, 0]:
                    own += 1
                else:
                    assert image[row, column] == others[n, row, column, 0]
                    rows.append(row)
                    columns.append(column)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) if rows else own == 36  # one box
        assert mixed.weight[n] == pytest.approx(own / 36, abs=1e-6)
    assert len(set(np.asarray(mixed.weight).tolist())) == 1 or per_example
    np.testing.assert_array_equal(mixed.label_b, other_labels)
