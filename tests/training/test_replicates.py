"""Replicates: several seeds in one program, each of which is the run of its seed."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from unimix_jax import metrics, storage
from unimix_jax.config import parse
from unimix_jax.data.types import Batch
from unimix_jax.errors import Interrupted, NonFiniteError, UserError
from unimix_jax.methods import build
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.metrics.predictions import Predictions, read_predictions
from unimix_jax.models import accelerator, init, ops, resnet
from unimix_jax.report import files, sections
from unimix_jax.training import loggers, optim, results
from unimix_jax.training.devices import AXIS, REPLICATE, batch_devices, distribute, place_replicates, shard
from unimix_jax.training.run import run
from unimix_jax.training.setup import prepare
from unimix_jax.training.step import StepConfig, StepInputs, first_state, over_replicates, train_step

from .. import quick


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("backend", "devices"), [("xla", 2), ("accelerator", 8)])
def test_each_replicate_is_the_run_of_its_seed(backend, devices):
    """Four replicates: two on each of two devices, by vmap; or each on two of eight, which share its batch."""
    ops.register("accelerator", accelerator.IMPLEMENTATIONS)
    method = build.build(
        RECIPES["unimix_bayias"], np.array([50, 20, 5]), name="", epochs=9, steps_per_epoch=1,
        test_prior=np.full(3, 1 / 3),
    )  # fmt: skip
    placed, seeds = jax.devices()[:devices], np.arange(3, 7, dtype=np.uint32)
    with jax.enable_x64(True):
        config = StepConfig(optim.sgd(momentum=0.9, weight_decay=2e-4), np.zeros(1), np.ones(1), ops=backend)

        def step_of(axis):
            network = resnet.CifarResNet(3, blocks=0, dtype=jnp.float64, axis=axis)
            return functools.partial(train_step, stage=method.stages[0], network=network, config=config)

        drawn = [init.initialise(resnet.CifarResNet(3, blocks=0), (8, 8, 1), int(seed)) for seed in seeds]
        variables = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *drawn)
        state = first_state(variables, config.optimiser, 4)
        random, view = np.random.default_rng(0), np.tile(np.arange(6, dtype=np.int32), (4, 1))
        images, labels = random.integers(0, 256, (2, 4, 6, 8, 8, 1), np.uint8), random.integers(0, 3, (2, 4, 6))
        batch = Batch(images[0], labels[0], view, images[1], labels[1], view + 6)
        inputs = StepInputs(seeds, np.float64(0.1), np.ones(3))
        single = quick.jit(step_of(None))
        expected = []
        for r in range(4):
            one = jax.tree.map(lambda leaf, r=r: leaf[r], (state, batch, inputs.seed))
            after, sums = single(one[0], one[1], inputs._replace(seed=one[2]))
            expected.append(jax.device_get((after, sums)))

        mine = P(REPLICATE)
        together = distribute(
            over_replicates(step_of(AXIS)),
            placed,
            split=(mine, P(REPLICATE, AXIS), StepInputs(mine, P(), P())),
            result=mine,
            replicates=4,
        )
        found = together(place_replicates(state, placed, 4), shard(batch, placed, replicates=4), inputs)
        expected = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), found, expected)
        assert len({float(loss) for loss in expected[1]["loss"][0]}) == 4


def test_replicates_go_over_the_devices_before_their_batches_do():
    devices = list(range(8))
    shares = [batch_devices(devices, replicates) for replicates in (1, 2, 3, 4, 8, 16)]
    assert shares == [8, 4, 8, 2, 1, 1]


def config(*overrides, method="unimix_bayias"):
    argv = ["main", f"--config=digits_lt.py:method={method}", "--config.network=stem", "--config.epochs=2"]
    argv += ["--config.checkpoint.every=1", "--config.eval_every=1", "--config.parallel.devices=2", *overrides]
    return parse(argv).config


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")
def test_a_run_of_replicates_has_the_results_of_each_their_mean_and_the_ensemble(tmp_path):
    replicates = config("--config.replicates=2", "--config.seed=4", "--config.steps_per_dispatch=11", method="erm")
    result = run(replicates, tmp_path / "both")
    folders = [tmp_path / "both" / "seeds" / str(seed) for seed in (4, 5)]
    each = [read_predictions(folder / "predictions.npz") for folder in folders]
    accuracies = [storage.read_json(folder / "metrics.json")["test"]["accuracy"] for folder in folders]
    assert [metrics.summary(one)["accuracy"] for one in each] == accuracies
    assert result["test"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["deviation"]["test"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    assert result["seeds"] == [4, 5]
    mean = (metrics.softmax(each[0].logits) + metrics.softmax(each[1].logits)) / 2
    together = read_predictions(tmp_path / "both" / "predictions.npz")
    np.testing.assert_allclose(metrics.softmax(together.logits), mean, atol=1e-6)
    assert result["ensemble"]["test"]["accuracy"] == metrics.accuracy(mean, together.labels)

    lines = [storage.parse_json(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    watched = [line for line in lines if "nll" in line]
    assert [line["nll"] for line in watched] == pytest.approx([
        (line["nll_seed_4"] + line["nll_seed_5"]) / 2 for line in watched
    ])  # fmt: skip

    stop = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loggers.Loggers, "update", lambda self, steps: stop.set())
        with pytest.raises(Interrupted, match="at step 11 of 22, saved"):
            run(replicates, tmp_path / "stopped", stop)
    assert run(replicates, tmp_path / "stopped") == result
    for name in ("predictions.npz", "seeds/5/predictions.npz", "seeds/4/metrics.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()

    (table,) = (t for t in sections.facts(files.read_run(tmp_path / "both")) if t.title == "Replicates")
    assert table.note.startswith("Seeds 4, 5; the ensemble is their mean probability")
    assert table.rows[1][0] == "accuracy"
    (tmp_path / "both" / "metrics.json").write_text("{")
    assert run(replicates, tmp_path / "both") == result  # again from the predictions


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "stem")
def test_the_state_before_a_stage_after_the_run_is_evaluated_and_kept(tmp_path):
    """It is the last state of the run without that stage, of each replicate."""
    common = ("--config.replicates=2", "--config.steps_per_dispatch=11")
    alone = run(config(*common, method="erm"), tmp_path / "erm")
    both = run(config(*common, "--config.method.stages.retrained.epochs=3", method="crt"), tmp_path / "crt")
    first = tmp_path / "crt" / "stages" / "plain"
    for folder in (".", "seeds/0", "seeds/1"):
        expected, found = (read_predictions(path / folder / "predictions.npz") for path in (tmp_path / "erm", first))
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.logits_prior, expected.logits_prior)
    of_stage = storage.read_json(first / "metrics.json")
    assert {name: of_stage[name] for name in ("test", "deviation", "seeds")} == {
        name: alone[name] for name in ("test", "deviation", "seeds")
    }
    assert both["test"]["accuracy"] != alone["test"]["accuracy"]
    kept = {path.name for path in (tmp_path / "crt" / "checkpoints").iterdir()}
    assert kept == {"22", "44", "55"}  # of the first stage, and the newest two


def test_the_mean_and_the_deviation_are_those_of_numpy():
    summaries = [{"ece": e, "few": f, "class_accuracy": c, "images": 5, "groups": "shots"} for e, f, c in (
        (0.1, None, [0.5, None]), (0.2, 0.3, [1.0, 0.5]), (0.6, 0.1, [0.0, 0.5])
    )]  # fmt: skip
    mean, deviation = results.mean_and_deviation(summaries)
    assert mean == {
        "ece": pytest.approx(0.3),
        "few": None,
        "class_accuracy": [0.5, None],
        "images": 5,
        "groups": "shots",
    }
    assert deviation == {"ece": pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))}


def test_the_ensemble_has_the_mean_probability():
    probabilities = np.array([[[0.75, 0.25]], [[0.25, 0.75]], [[1.0, 0.0]]])
    with np.errstate(divide="ignore"):
        each = [Predictions(np.log(p).astype(np.float32), np.array([0])) for p in probabilities]
    np.testing.assert_allclose(np.exp(results.ensemble(each).logits), [[2 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")
def test_a_loss_that_is_not_finite_names_its_seed(tmp_path):
    wild = config("--config.replicates=2", "--config.optim.learning_rate=1e30", "--config.optim.warmup_epochs=0")
    with pytest.raises(NonFiniteError, match=r"the loss of seed [01] is not finite at step \d+ \(stage 'mixed'"):
        run(wild, tmp_path)


@pytest.mark.parametrize(("replicates", "seed"), [(2, 2**32 - 1), (257, 0)])
def test_seeds_out_of_range_are_refused(replicates, seed, tmp_path):
    argv = (f"--config.replicates={replicates}", f"--config.seed={seed}", "--config.network=resnet8")
    with pytest.raises(UserError, match="4294967296; it must be below|replicates is 257; it must be a number of runs"):
        prepare(config(*argv), tmp_path)


def test_replicates_that_cannot_be_trained_together_are_refused(tmp_path):
    with pytest.raises(UserError, match="config.replicates is 2; it must be 1 for config.parallel.spmd pmap"):
        prepare(config("--config.replicates=2", "--config.parallel.spmd=pmap", "--config.network=resnet8"), tmp_path)
