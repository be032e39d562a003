"""Networks of a user train as those of the project do."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from unimix_jax import main, metrics, storage
from unimix_jax.config import parse
from unimix_jax.training import input as training_input
from unimix_jax.training.devices import distribute, replicate
from unimix_jax.training.setup import prepare
from unimix_jax.training.step import StepInputs, first_state, predict_step, train_step

from .. import quick
from .document import DIGITS, PLAIN, SMALL_PROGRAM, SMALL_VIT


def two_steps(experiment, devices):
    """The parameters after two steps on the first devices, and their losses."""
    stage = experiment.method.stages[0]
    step = functools.partial(train_step, stage=stage, network=experiment.network, config=experiment.step_config)
    placed = jax.devices()[:devices]
    compiled = distribute(step, placed)
    state = replicate(first_state(experiment.variables, experiment.step_config.optimiser), placed)
    batches = training_input.dispatches(experiment, 0)
    losses = []
    for _ in range(2):
        _, _, batch = next(batches)
        inputs = StepInputs(np.uint32(0), np.float32(0.01), stage.class_weight)
        state, sums = compiled(state, batch, replicate(inputs, placed))
        losses.append(float(sums["loss"][0]) / float(sums["loss"][1]))
    return jax.device_get(state.params), losses


@pytest.mark.slow
@pytest.mark.usefixtures("mine", "quick_compilation")
@pytest.mark.parametrize("network", ["my_vit:ViT", "my_networks:ConvNeXt", "my_networks:Synchronised"])
def test_networks_from_outside_train_alike_on_one_and_on_eight_devices(network):
    # A large eps: AdamW divides by the root of squared gradients, of which small ones differ by the order of sums.
    argv = [f"--config.network={network}", "--config.optim.name=adamw", "--config.optim.options.eps=0.1"]
    if network == "my_vit:ViT":
        argv += ["--config.network_options.depth=1"]
    # One program draws augmentations, another one mixes: their random numbers are most of a program.
    if network == "my_networks:ConvNeXt":
        argv += ["--config.data.augment=random_erasing,my_augmentations:noise"]
    else:
        argv += ["--config.data.augment="]
    base = DIGITS if network == "my_networks:Synchronised" else PLAIN[:3]
    trained = {}
    for count in (1, 8):
        experiment = prepare(
            parse([*base, *argv, f"--config.parallel.devices={count}"]).config, pathlib.Path("unwritten")
        )
        assert experiment.step_config.dropout == (network == "my_vit:ViT")
        trained[count] = two_steps(experiment, count)
    start = experiment.variables["params"]
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(trained[1][0]), jax.tree.leaves(start), strict=True)]
    assert min(moved) > 0
    largest = max(moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), trained[8][0], trained[1][0])
    np.testing.assert_allclose(trained[8][1], trained[1][1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("mine")
def test_dropout_draws_other_numbers_in_each_step_and_none_in_prediction():
    """Steps at the rate 0 on one batch differ by nothing but the number of the step."""
    argv = [*PLAIN, "--config.network=my_networks:Dropped"]
    experiment = prepare(parse(argv).config, pathlib.Path("unwritten"))
    stage, config = experiment.method.stages[0], experiment.step_config
    step = quick.jit(functools.partial(train_step, stage=stage, network=experiment.network, config=config))
    _, _, batch = next(training_input.dispatches(experiment, 0))
    first = first_state(experiment.variables, config.optimiser)

    def loss(state, seed):
        state, sums = step(state, batch, StepInputs(np.uint32(seed), np.float32(0), stage.class_weight))
        return state, float(sums["loss"][0])

    second, of_first = loss(first, 0)
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)
    assert len({of_first, loss(second, 0)[1], loss(first, 1)[1]}) == 3
    assert loss(first, 0)[1] == of_first
    predict = quick.jit(functools.partial(predict_step, network=experiment.network, config=config))
    variables = {"params": first.params, "batch_stats": first.batch_stats}
    np.testing.assert_array_equal(predict(variables, batch.image), predict(variables, batch.image))
    bias, kernel = sorted(map(np.asarray, jax.tree.leaves(first.params)), key=np.ndim)
    flat = (batch.image / 255.0 - config.mean) / config.std
    np.testing.assert_allclose(
        predict(variables, batch.image), flat.reshape(len(flat), -1) @ kernel + bias, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("crt", ["network=my_vit:ViT", "network_options.depth=1"]),
        *((method, [*SMALL_VIT, "network_options.dropout=.1"]) for method in ("mislas", "tau_norm", "ldam")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_methods_with_stages_and_other_heads_train_networks_without_batch_statistics(mine, method, network):
    argv = [f"--config.{a}" for a in (*network, "epochs=1", "batch_size=128")] + [*SMALL_PROGRAM, "--report=no"]
    argv += ["--config.method.stages.smoothed.epochs=1"] if method == "mislas" else []
    assert main.main(["main", f"--config=digits_lt.py:method={method}", *argv, f"--workdir={method}"]) == 0
    assert storage.read_json(mine / method / "metrics.json")["test"]["images"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_logits_of_few_bits_are_measured_and_written_as_float32(mine):
    argv = [*PLAIN, "--config.network=my_networks:LogitsOf", "--report=no", "--workdir=run"]
    assert main.main(argv) == 0
    assert metrics.predictions.read_predictions(mine / "run" / "predictions.npz").logits.dtype == np.float32
