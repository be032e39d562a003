"""Whole runs on the digits: the files that they leave, and starts that go on with them or are refused."""

import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from unimix_jax import cli, main, metrics, storage
from unimix_jax.config import parse
from unimix_jax.config.compare import flat
from unimix_jax.errors import Interrupted, NonFiniteError, UserError
from unimix_jax.metrics import per_example
from unimix_jax.metrics.predictions import read_predictions, write_predictions
from unimix_jax.report import evaluation, files
from unimix_jax.training import checkpoints, loggers, loop, manifest, predict, results, rundir
from unimix_jax.training import input as training_input
from unimix_jax.training.run import _earlier_result, run, starting_state
from unimix_jax.training.setup import largest_and_smallest, prepare
from unimix_jax.training.step import StepInputs

from .digits_runs import config, numbers_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation, shared_programs, stem):
    directory = tmp_path_factory.mktemp("finished")
    return directory, run(config(), directory)


def test_a_run_leaves_what_the_house_promises(finished):
    directory, result = finished
    names = {p.name for p in directory.iterdir()}
    assert names == {
        "config.json", "run.json", "lock", "checkpoints", "metrics.jsonl", "metrics.json", "log.txt",
        "predictions.npz", "predictions_validation.npz",
    }  # fmt: skip
    about = storage.read_json(directory / "run.json")
    assert about["state"] == "complete"
    assert len(about["starts"]) == 1
    assert about["data"]["train"]["counts"] == [99, 70, 50, 36, 26, 18, 13, 9, 6, 4]
    assert about["starts"][0]["environment"]["jax"] == jax.__version__
    assert storage.read_json(directory / "metrics.json") == result


def test_the_measures_are_those_of_the_written_predictions(finished):
    directory, result = finished
    for split, images in (("test", 500), ("validation", 250)):
        predictions = read_predictions(directory / rundir.predictions_file(split))
        assert predictions.logits.shape == (images, 10)
        assert predictions.logits.dtype == np.float32
        np.testing.assert_allclose(predictions.logits_prior, 0.1)  # Bayias, trained for a uniform test
        hits = predictions.logits.argmax(axis=1) == predictions.labels
        assert result[split]["accuracy"] == hits.mean()
        assert result[split]["few"] == pytest.approx(np.mean([hits[predictions.labels == c].mean() for c in (7, 8, 9)]))
        confidence = per_example.softmax(predictions.logits)
        assert result[split]["ece"] == metrics.ece(confidence, predictions.labels)


def test_records_stand_at_their_steps(finished):
    directory, result = finished
    records = rundir.read_metrics(directory / "metrics.jsonl")
    steps = [r for r in records if "split" not in r]
    assert [r["step"] for r in steps] == [7, 14, 21, 28, 33]
    assert [r["stage"] for r in steps] == ["mixed", "mixed", "plain", "plain", "plain"]
    assert set(steps[0]) == {"step", "epoch", "stage", "loss", "accuracy", "learning_rate", "images_per_second"}
    evaluations = [(r["step"], r["split"]) for r in records if "split" in r]
    assert evaluations == [(11, "validation"), (22, "validation"), (33, "validation"), (33, "test")]
    best = max((r for r in records if r.get("split") == "validation"), key=lambda r: r["accuracy"])
    assert result["best"] == best | {"evaluations": 3}


def test_a_complete_run_is_told_and_left_alone(finished, capsys):
    directory, result = finished
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.name not in ("lock", "log.txt")}
    assert run(config(), directory) == result
    assert "is complete" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.name not in ("lock", "log.txt")} == before


def test_the_first_lines_say_what_was_found(finished):
    lines = [line.split(" ", 2)[2] for line in (finished[0] / "log.txt").read_text().splitlines()]
    first = lines.index(f"run directory: {finished[0]}") + 1
    assert lines[first : first + 3] == [
        "images: 331 training, 250 validation, 500 test; 8 x 8 pixels, 1 channel; 10 classes",
        "training images of a class: most 0 (99), 1 (70), 2 (50); fewest 7 (9), 8 (6), 9 (4)",
        "held out: 50 of each class for test, 25 of each class for validation, by chance (config.data.split_seed)",
    ]
    assert re.match(
        r"stem by unimix_bayias and sgd: \d+ parameters, from random weights \(seed 0\); 33 steps", lines[first + 3]
    )


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([5, 9], "most b (9); fewest a (5)"),
        ([5, 9, 1], "most b (9); fewest c (1)"),
        ([4, 4, 4, 4], "most a (4), b (4); fewest c (4), d (4)"),
        (range(9), "most i (8), h (7), g (6); fewest c (2), b (1), a (0)"),
    ],
)
def test_the_largest_and_the_smallest_classes_are_named(counts, said):
    assert largest_and_smallest(np.array(counts), tuple("abcdefghi")[: len(counts)]) == said


def test_results_that_were_changed_are_not_believed_silently(finished, tmp_path, capsys):
    directory, result = shutil.copytree(finished[0], tmp_path / "run"), finished[1]
    about = storage.read_json(directory / "run.json")
    storage.write_json(directory / "metrics.json", result | {"test": result["test"] | {"accuracy": 1.0}})
    predictions = read_predictions(directory / "predictions.npz")
    write_predictions(directory / "predictions.npz", predictions._replace(logits=predictions.logits + 1))
    assert run(config(), directory)["test"]["accuracy"] == 1
    said = "metrics.json, predictions.npz were changed in"
    assert said in capsys.readouterr().err
    lines = evaluation.evaluate(files.read_run(directory), evaluation.Options(samples=0))["warnings"]
    for name in ("metrics.json", "predictions.npz"):
        assert any(line.startswith(f"{name} was changed after the run was finished") for line in lines)
    (directory / "predictions.npz").unlink()
    assert _earlier_result(directory, about, config()) is None  # it is evaluated anew from its last checkpoint
    assert (directory / "metrics.json.changed").exists()
    assert not (directory / "metrics.json").exists()
    assert _earlier_result(finished[0], about, config()) == result
    lines = evaluation.evaluate(files.read_run(finished[0]), evaluation.Options(samples=0))["warnings"]
    assert not any("changed" in line for line in lines)


@pytest.mark.parametrize("damaged", ['{"a":', "[]", "{}"])
def test_damaged_measures_are_taken_anew_of_the_predictions(finished, tmp_path, capsys, damaged):
    directory = shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (directory / "metrics.json").write_text(damaged)
    assert run(config(), directory) == finished[1]
    assert "metrics.json is damaged; the results are written anew from the predictions" in capsys.readouterr().err
    assert (directory / "metrics.json.changed").read_text() == damaged
    assert (directory / "metrics.json").read_bytes() == (finished[0] / "metrics.json").read_bytes()
    assert run(config(), directory) == finished[1]
    assert "changed" not in capsys.readouterr().err


def test_damaged_measures_with_more_than_the_predictions_say_are_taken_of_the_checkpoint(finished, tmp_path):
    directory = shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (directory / "metrics.json").write_text("{}")
    chosen = config(method="tau_norm")
    assert chosen.method.posthoc.name != "none"
    assert _earlier_result(directory, storage.read_json(directory / "run.json"), chosen) is None
    assert (directory / "metrics.json.changed").exists()


def test_a_run_that_lost_what_it_was_trained_on_is_refused(finished, tmp_path):
    (tmp_path / "checkpoints" / "11").mkdir(parents=True)
    shutil.copy(finished[0] / "config.json", tmp_path)
    with pytest.raises(UserError, match="has checkpoints but no run.json"):
        run(config(), tmp_path)


def test_another_config_is_refused_naming_the_keys_and_neutral_ones_pass(finished, capsys):
    directory, _ = finished
    with pytest.raises(UserError, match=r"data.imbalance \(20.0 there, 10.0 here\), seed \(0 there, 1 here\)"):
        run(config("--config.seed=1", "--config.data.imbalance=10"), directory)
    run(config("--config.data.on_device", "--config.checkpoint.every=2"), directory)
    assert "began with another checkpoint.every, data.on_device" in capsys.readouterr().err


@pytest.mark.parametrize("overrides", [(), ("--config.data.on_device",)], ids=["host", "device"])
def test_the_same_seed_gives_the_same_bits_wherever_the_images_are(finished, tmp_path, overrides):
    run(config(*overrides), tmp_path)
    assert numbers_of(tmp_path) == numbers_of(finished[0])


def test_a_run_with_many_steps_a_dispatch_writes_the_same_records_and_goes_on_to_the_same_bits(finished, tmp_path):
    many = config("--config.steps_per_dispatch=11")
    run(many, tmp_path / "whole")
    records, _, _, result = whole = numbers_of(tmp_path / "whole")
    expected, _, _, expected_result = numbers_of(finished[0])
    assert [(line["step"], line.get("split")) for line in records] == [(r["step"], r.get("split")) for r in expected]
    for line, other in zip(records, expected, strict=True):
        assert line.get("stage") == other.get("stage")
        if "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], rel=0.02)  # float32 sums in another order, 33 steps
    assert result["test"]["accuracy"] == pytest.approx(expected_result["test"]["accuracy"], abs=0.02)

    stop = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loggers.Loggers, "update", lambda self, steps: stop.set())
        with pytest.raises(Interrupted, match="at step 11 of 33, saved"):
            run(many, tmp_path / "stopped", stop)
    run(many, tmp_path / "stopped")
    assert numbers_of(tmp_path / "stopped") == whole


def test_checkpoints_come_at_least_so_many_seconds_apart_and_the_last_one_always(tmp_path):
    saved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", lambda manager, step, *_: saved.append(step))
        run(config("--config.checkpoint.seconds=1000", "--config.eval_every=0", method="erm"), tmp_path)
    assert saved == [33]


def test_nan_on_the_devices_is_noticed_without_fetching_the_leaves():
    sound, broken = [jnp.ones(3), jnp.int32(2)], [jnp.ones(3), jnp.array([1.0, jnp.nan])]
    for tree, finite in ((sound, True), (broken, False)):
        assert loop._is_finite(tree) == finite
        assert bool(loop._all_finite(tree)) == finite


def test_a_loss_that_is_not_finite_is_found_at_its_step_of_a_dispatch(tmp_path):
    wild = config(
        "--config.steps_per_dispatch=11", "--config.optim.learning_rate=1e6", "--config.optim.warmup_epochs=0"
    )
    with pytest.raises(NonFiniteError, match=r"the loss is not finite at step ([2-9]|1[01]) \(stage 'mixed'"):
        run(wild, tmp_path)


def test_another_seed_gives_another_model_on_the_same_images(finished, tmp_path):
    run(config("--config.seed=1", "--config.eval_every=0"), tmp_path)
    first, second = (storage.read_json(d / "run.json") for d in (finished[0], tmp_path))
    assert first["data"] == second["data"]
    records, arrays, _, result = numbers_of(tmp_path)
    assert arrays["test"] != numbers_of(finished[0])[1]["test"]
    assert [r["split"] for r in records if "split" in r] == ["validation", "test"]  # the last step only
    assert "best" not in result


def test_all_devices_and_both_wrappings_end_at_the_same_model(tmp_path):
    """A whole run; slow and short, for float32 sums in another order grow apart at every step."""
    gentle = ("--config.epochs=1", "--config.optim.learning_rate=1e-3")
    logits = {}
    for name, count, how in (("one", 1, "shard_map"), ("eight", 8, "shard_map"), ("pmap", 8, "pmap")):
        run(  # without augmentations, which are half of a program
            config(
                *gentle,
                "--config.data.augment=",
                f"--config.parallel.devices={count}",
                f"--config.parallel.spmd={how}",
                method="erm",
            ),
            tmp_path / name,
        )
        logits[name] = read_predictions(tmp_path / name / "predictions.npz").logits
    for name in ("eight", "pmap"):  # whose blocks of 504 images are not the 500 of one
        # Measured 3e-7.
        assert np.linalg.norm(logits[name] - logits["one"]) < 1e-5 * np.linalg.norm(logits["one"])


def test_other_images_than_the_run_began_with_are_refused(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    content = {"train_labels": np.arange(40) % 2, "test_labels": np.arange(8) % 2}
    content |= {f"{s}_images": random.integers(0, 256, (n, 8, 8), np.uint8) for s, n in (("train", 40), ("test", 8))}
    np.savez(tmp_path / "a.npz", **content)
    np.savez(tmp_path / "b.npz", **{**content, "train_images": content["train_images"] ^ 1})

    def run_on(file):
        argv = ["main", "--config=arrays.py:network=stem,method=erm", f"--config.data.file={tmp_path / file}"]
        argv += ["--config.epochs=1", "--config.batch_size=32", "--config.eval_batch_size=8"]
        run(parse([*argv, "--config.parallel.devices=1"]).config, tmp_path / "run")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            run_on("a.npz")
    with pytest.raises(UserError, match="the train images are not those which this run began with"):
        run_on("b.npz")
    run_on("a.npz")
    assert "there is no validation split" in (tmp_path / "run" / "log.txt").read_text()


def test_another_test_prior_in_the_same_file_is_refused(tmp_path):
    file = tmp_path / "prior.txt"
    file.write_text("1\n" * 10)
    stopped = config(f"--config.test_prior={file}")

    def interrupted(*_):
        raise Interrupted("now")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", interrupted)
        with pytest.raises(Interrupted):
            run(stopped, tmp_path / "run")
    assert storage.read_json(tmp_path / "run" / "run.json")["state"] == "stopped"
    file.write_text("1\n" * 9 + "2\n")
    with pytest.raises(UserError, match="the test prior is not that which this run began with"):
        run(stopped, tmp_path / "run")


def test_a_resume_on_other_versions_is_told(finished, tmp_path):
    directory, _ = finished
    for name in ("config.json", "run.json"):
        shutil.copy(directory / name, tmp_path / name)
    about = storage.read_json(tmp_path / "run.json")
    about["state"] = "running"
    about["starts"][0]["environment"] |= {"jax": "0.9.9", "cpu_threads": 64}
    storage.write_json(tmp_path / "run.json", about)
    run(config("--config.log_every=1000"), tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert f"began with environment.jax 0.9.9 and goes on with {jax.__version__}" in log
    assert "environment.cpu_threads 64" in log
    assert "began with another log_every" in log


def test_a_resume_of_an_older_run_compares_the_environment_by_its_new_names(finished, tmp_path):
    directory, _ = finished
    for name in ("config.json", "run.json"):
        shutil.copy(directory / name, tmp_path / name)
    about = storage.read_json(tmp_path / "run.json")
    about["state"] = "running"
    environment = about["starts"][0]["environment"]
    old_ops = {"cpu_kernels": "native", "xla": "plain"}[environment.pop("ops")]
    environment |= {"kernels": old_ops, "how": environment.pop("spmd"), "cores": environment.pop("cpu_threads") + 1}
    storage.write_json(tmp_path / "run.json", about)
    run(config("--config.log_every=1000"), tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert re.findall(r"began with environment\.(\w+)", log) == ["cpu_threads"]


def test_numbers_that_run_away_stop_the_run_and_keep_the_last_sound_checkpoint(tmp_path):
    wild = config("--config.optim.learning_rate=1e12", "--config.optim.warmup_epochs=0", method="erm")
    with pytest.raises(NonFiniteError, match=r"is not finite at step \d+ \(stage 'plain', learning rate 1e\+12\)"):
        run(wild, tmp_path)
    assert storage.read_json(tmp_path / "run.json")["state"] == "stopped"
    for path in (tmp_path / "checkpoints").iterdir():
        assert not path.name.isdigit()


@pytest.mark.parametrize("what", ["append_metrics", "write_predictions"])
def test_a_full_disk_stops_the_run_and_is_no_mistake(tmp_path, monkeypatch, capsys, what):
    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(results if what == "write_predictions" else rundir, what, full)
    short = config("--config.epochs=1", method="erm")
    assert cli.run_command(lambda: run(short, tmp_path)) == 74
    assert capsys.readouterr().err.endswith(": No space left on device\n")
    assert storage.read_json(tmp_path / "run.json")["state"] == "stopped"


def test_a_state_that_is_not_finite_is_neither_saved_nor_evaluated(tmp_path):
    """The loss of a step is that before its update: the state after it is looked at too."""
    wild = config(
        "--config.optim.learning_rate=1e38", "--config.optim.warmup_epochs=0", "--config.epochs=1", method="erm"
    )
    with wild.unlocked():
        wild.batch_size = 331  # the first step is the last
    with pytest.raises(
        NonFiniteError, match=r"the (state|logits) is not finite at step 1 .*there is no checkpoint yet"
    ):
        run(wild, tmp_path)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


def test_seed_reaches_order_partners_and_the_step(tmp_path):
    first, second = (prepare(config(f"--config.seed={seed}"), tmp_path) for seed in (0, 1))
    (_, _, a), (_, _, b) = next(training_input.dispatches(first, 0)), next(training_input.dispatches(second, 0))
    assert (np.asarray(a.label) != b.label).any()
    assert (np.asarray(a.partner_label) != b.partner_label).any()
    seeds = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "StepInputs", lambda *args: seeds.append(int(args[0])) or StepInputs(*args))
        run(config("--config.seed=5", "--config.epochs=1", method="erm"), tmp_path / "run")
    assert set(seeds) == {5}


def test_every_field_of_a_config_is_read_by_the_run(tmp_path):
    """Reading is seen where it happens, not found by its name in the text."""
    read, given = set(), config("--config.epochs=1", "--config.eval_every=0", method="erm")
    plain, original = manifest.plain(given), ConfigDict.__getitem__
    paths = {id(given): ""} | {id(v): f"{k}." for k, v in given.items() if isinstance(v, ConfigDict)}

    def watched(self, key):
        read.add(paths.get(id(self), "?.") + key)
        return original(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigDict, "__getitem__", watched)
        patch.setattr(manifest, "plain", lambda _: plain)
        run(given, tmp_path)
    fields = {key for key in flat(plain) if not key.startswith("method.")}
    assert fields - read == set()


def test_without_a_workdir_the_run_gets_one_and_a_mistake_leaves_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    argv = ["main", "--config=digits_lt.py", "--report=no", "--config.parallel.devices=1", "--config.eval_every=0"]
    assert main.main([*argv, "--config.network=resnet9"]) == 2
    assert not list((tmp_path / "runs").iterdir())

    def untrained(experiment, state, manager, stopped, notice):
        scores = {
            name: predict.Scores(np.zeros((len(s.labels), 10), np.float32), s.labels, np.arange(len(s.labels)))
            for name, s in experiment.splits.evaluated.items()
        }
        return state, scores, [{"norm_exponent": 0.3}]

    monkeypatch.setattr(loop, "train", untrained)
    code = main.main([*argv, "--config.network=stem"])
    (made,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert f"run directory: runs/{made.name}" in capsys.readouterr().out
    assert storage.read_json(made / "metrics.json")["posthoc"] == {"name": "none", "norm_exponent": 0.3}


def test_checkpoints_of_a_run_hold_its_state_and_nothing_else(finished):
    directory, _ = finished
    experiment = prepare(config(), directory)
    with checkpoints.opened(directory / "checkpoints", keep=2) as manager:
        state = starting_state(experiment, manager)
    assert int(state.step) == 33
    assert state._fields == ("step", "params", "batch_stats", "opt_state")
