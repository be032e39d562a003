"""Whole runs on photographs in files, small ones, on the stem of a network: what is special of them."""

import json
import threading

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from unimix_jax import storage
from unimix_jax.config import parse
from unimix_jax.errors import Interrupted, UserError
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.metrics.predictions import read_predictions
from unimix_jax.models import init
from unimix_jax.report import files, tables
from unimix_jax.training import input as training_input
from unimix_jax.training import predict
from unimix_jax.training.devices import replicate
from unimix_jax.training.run import run
from unimix_jax.training.setup import prepare
from unimix_jax.training.step import first_state

pytestmark = pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")
SMALL = {"network": "stem", "batch_size": 4, "eval_batch_size": 4, "epochs": 2, "parallel.devices": 1}
SMALL |= {"data.image_size": 8, "data.resize": 9, "eval_every": 1, "checkpoint.every": 1}


def config(name="image_folder.py", **fields):
    overrides = [f"--config.{field}={value}" for field, value in {**SMALL, **fields}.items()]
    return parse(["main", f"--config={name}", *overrides]).config


def draw(root, counts):
    """Make photographs of classes that differ in colour, 12 x 14 pixels."""
    random = np.random.default_rng(0)
    for c, count in enumerate(counts):
        for i in range(count):
            path = root / f"class {c}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 90, (12, 14, 3)) + 50 * c
            Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    draw(tmp_path / "images", (12, 7, 5))
    return tmp_path / "images"


class After(threading.Event):
    """Set when it has been asked often enough."""

    def __init__(self, times):
        super().__init__()
        self.left = times

    def is_set(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.slow
def test_a_run_on_a_folder_and_the_same_one_stopped_and_resumed(folder, tmp_path):
    run(config(**{"data.dir": folder}), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(config(**{"data.dir": folder}), tmp_path / "parts", After(6))
    photograph = next((folder / "class 0").iterdir())
    content = photograph.read_bytes()
    Image.new("RGB", (12, 14)).save(photograph)
    with pytest.raises(UserError, match="images have the names of those which this run began with, but other contents"):
        run(config(**{"data.dir": folder}), tmp_path / "parts")
    photograph.write_bytes(content)
    run(config(**{"data.dir": folder, "data.threads": 3}), tmp_path / "parts")
    results = [
        (
            read_predictions(tmp_path / name / "predictions.npz"),
            json.loads((tmp_path / name / "metrics.json").read_text()),
        )
        for name in ("whole", "parts")
    ]
    (whole, measures), (parts, again) = results
    np.testing.assert_array_equal(whole.logits, parts.logits)
    assert measures == again
    assert whole.class_names == ("class 0", "class 1", "class 2")
    listed = [line.rsplit(" ", 1) for line in (tmp_path / "whole" / "images_test.txt").read_text().splitlines()]
    assert [int(label) for _, label in listed] == whole.labels.tolist()
    assert all((folder / name).is_file() and name.startswith(f"class {label}/") for name, label in listed)
    assert not (tmp_path / "whole" / "unreadable.txt").exists()


@pytest.mark.slow
def test_every_image_is_evaluated_once_on_any_number_of_devices(folder, tmp_path):
    found = []
    for devices in (1, 8):
        fields = {"data.dir": folder, "parallel.devices": devices, "batch_size": 8, "data.max_megapixels": 7.5}
        experiment = prepare(config(**fields), tmp_path)  # by 4 images on one device, by 8 on eight
        assert experiment.reading.max_megapixels == 7.5
        variables = init.initialise(experiment.network, experiment.image_shape, 0)
        state = replicate(first_state(variables, experiment.step_config.optimiser), experiment.devices)
        scores, _ = predict.predictor(experiment)(state, ("validation", "test"))
        for name, score in scores.items():
            source = experiment.splits.evaluated[name]
            np.testing.assert_array_equal(score.rows, np.arange(len(source.labels)))
            np.testing.assert_array_equal(score.labels, source.labels)
        found.append({name: score.logits for name, score in scores.items()})
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-5)


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.slow
def test_unreadable_images_stop_a_run_or_are_listed(folder, tmp_path):
    experiment = prepare(config(**{"data.dir": folder}), tmp_path)
    train, test = (folder / source.names[0] for source in (experiment.splits.train, experiment.splits.test))
    damage(train)
    damage(test)
    with pytest.raises(UserError, match=r"cannot read the image .*class 0.*skip_unreadable"):
        run(config(**{"data.dir": folder}), tmp_path / "stops")
    # The same run, of which no step was saved, goes on without them.
    run(config(**{"data.dir": folder, "data.skip_unreadable": True}), tmp_path / "stops")
    assert set((tmp_path / "stops" / "unreadable.txt").read_text().splitlines()) == {str(train), str(test)}
    predictions = read_predictions(tmp_path / "stops" / "predictions.npz")
    np.testing.assert_array_equal(predictions.labels, experiment.splits.test.labels[1:])
    facts = tables.run_facts(files.read_run(tmp_path / "stops").about)
    assert facts["images that could not be read"].startswith("2, left out of training and evaluation")
    counts = experiment.splits.counts - np.eye(3, dtype=int)[0]
    np.testing.assert_array_equal(predictions.counts, counts)
    assert files.read_run(tmp_path / "stops").about["run"]["data"]["train"]["counts"] == counts.tolist()
    log = (tmp_path / "stops" / "log.txt").read_text()
    assert f"cannot be read and is passed over: {train}" in log
    assert log.count("cannot be read and is passed over") == 2


@pytest.mark.slow
def test_a_run_can_begin_from_trained_weights(folder, tmp_path):
    random = np.random.default_rng(0)
    arrays = {"conv1.weight": random.normal(size=(16, 3, 3, 3)), "linear.weight": random.normal(size=(9, 16))}
    norm = {f"bn1.{leaf}": np.ones(16) for leaf in ("weight", "bias", "running_mean", "running_var")}
    arrays = {k: v.astype(np.float32) for k, v in {**arrays, **norm, "linear.bias": np.zeros(9)}.items()}
    save_file(arrays, tmp_path / "w.safetensors")
    begun = {"data.dir": folder, "pretrained": tmp_path / "w.safetensors", "epochs": 1}
    first = prepare(config(**begun), tmp_path).variables["params"]
    np.testing.assert_array_equal(first["conv1"]["conv"]["kernel"], arrays["conv1.weight"].transpose(2, 3, 1, 0))
    with pytest.raises(Interrupted):
        run(config(**begun), tmp_path / "run", After(2))
    about = storage.read_json(tmp_path / "run" / "run.json")
    (tmp_path / "w.safetensors").unlink()  # a checkpoint has all that is needed
    run(config(**begun), tmp_path / "run")
    facts = tables.run_facts(files.read_run(tmp_path / "run").about)
    assert facts["first weights"] == f"{begun['pretrained']}, digest {about['data']['init']['digest']}"
    assert "the classifier starts anew" in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(UserError, match="which cannot be read"):
        run(config(**begun), tmp_path / "another")
    assert not (tmp_path / "another" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("row", RECIPES)
def test_every_row_gets_its_batches_of_photographs(folder, tmp_path, row):
    experiment = prepare(config(f"image_folder.py:method={row}", **{"data.dir": folder, "epochs": 10}), tmp_path)
    for stage in experiment.method.stages:
        of, _, batch = next(training_input.dispatches(experiment, stage.first))
        assert of is stage
        assert batch.image.shape == (4, 8, 8, 3)
        assert (batch.partner_image is None) == (stage.pair_sampler is None)
        pairs = [(batch.image, batch.label)]
        if stage.pair_sampler is not None:
            pairs.append((batch.partner_image, batch.partner_label))
        for images, labels in pairs:  # class c has a mean of 45 + 50 c
            np.testing.assert_array_equal((np.asarray(images).mean(axis=(1, 2, 3)) - 20) // 50, labels)


STEP_CONFIGS = {
    "imagenet_lt.py": ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"),
    "inat2018.py:recipe=usual,method=bayias": ("iNaturalist18_train.txt", "iNaturalist18_val.txt"),
    "places_lt.py:method=erm": ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEP_CONFIGS)
def test_every_recipe_starts_trains_and_is_evaluated(folder, tmp_path, name):
    rows = [f"{path.relative_to(folder)} {path.parent.name[-1]}" for path in sorted(folder.glob("*/*.png"))]
    (folder / "lists").mkdir()
    for i, file in enumerate(STEP_CONFIGS[name]):
        some = [row for j, row in enumerate(rows) if min(j % 5, len(STEP_CONFIGS[name]) - 1) == i]
        (folder / "lists" / file).write_text("\n".join(some) + "\n")
    result = run(config(name, **{"data.dir": folder, "epochs": 1}), tmp_path / "run")
    assert set(result) >= {"test"} | ({"validation"} if len(STEP_CONFIGS[name]) == 3 else set())


@pytest.mark.slow
def test_parts_of_a_batch_do_not_mix_inside_of_the_network(folder, tmp_path):
    fields = {"data.dir": folder, "grad_accum_steps": 2}
    assert prepare(config(**fields), tmp_path).step_config.grad_accum_steps == 2
    with pytest.raises(UserError, match="does not see its partners: set config.grad_accum_steps to 1"):
        prepare(config("image_folder.py:method=manifold_mixup", **fields), tmp_path)
    with pytest.raises(UserError, match="not a multiple of the 1 device times 3 parts"):
        prepare(config(**{**fields, "grad_accum_steps": 3}), tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.on_device", True, "it must be false"),
        ("data.layout", "flat", "auto or classes"),
        ("data.max_megapixels", 0.0, "megapixels above 0"),
        ("data.min_area", 0.0, "above 0 and at most 1"),
        ("data.jitter", "(.4,.4)", "three numbers in 0..1"),
        ("data.std", "(1.,1.,0.)", "three numbers above 0"),
        ("data.test_share", 1.0, "at least 0 and below 1"),
        ("data.test_share", 0.45, "more than .5 together"),
        ("data.resize", 7, "less than config.data.image_size, 8"),
    ],
)
def test_fields_of_photographs_have_ranges(field, value, message):
    with pytest.raises(UserError, match=message):
        config(**{field: value})
