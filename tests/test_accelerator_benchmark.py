"""The benchmark for nine minutes on a GPU: deadline, results, tolerances, carried files, and a rehearsal."""

import argparse
import importlib
import json
import pathlib
import sys
import tarfile

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def part():
    """Return part(name): a module of the benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield lambda name: importlib.import_module(f"accelerator.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "accelerator"]:
        del sys.modules[name]


class Time:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def recorder(part, time, tmp_path):
    return part("results").Recorder(tmp_path / "results", 60, time)


def lines(recorder) -> list[dict]:
    return [json.loads(line) for line in (recorder.folder / "results.jsonl").read_text().splitlines()]


def test_a_job_that_may_not_end_before_the_deadline_is_not_begun_and_said(part, recorder, time):
    def work():
        time.now += 50
        return {"value": 1}

    job = part("results").Job
    for name, seconds in (("first", 60), ("long", 11), ("short", 10)):
        recorder.take(job(name, seconds, work))
    assert recorder.states == {"first": "done", "long": "left out", "short": "done"}
    assert lines(recorder) == [
        {"name": "first", "state": "done", "at": 50.0, "seconds": 50.0, "result": {"value": 1}},
        {"name": "long", "state": "left out", "at": 50.0, "why": "10 s are left of 11 that it may take"},
        {"name": "short", "state": "done", "at": 100.0, "seconds": 50.0, "result": {"value": 1}},
    ]


def test_a_result_is_in_the_file_before_the_next_job_begins(part, recorder):
    seen = []
    for name in ("first", "second"):
        recorder.take(part("results").Job(name, 1, lambda: seen.append(len(lines(recorder)))))
    assert seen == [0, 1]


def test_a_failure_is_loud_and_does_not_cost_the_other_jobs(part, recorder, capsys):
    job = part("results").Job
    recorder.take(job("broken", 1, lambda: 1 / 0))
    recorder.take(job("wrong", 1, lambda: {"off": 3.0, "passed": False}))
    recorder.take(job("right", 1, lambda: {"off": 0.0, "passed": True}))
    assert recorder.states == {"broken": "failed", "wrong": "missed", "right": "done"}
    assert lines(recorder)[0]["why"] == "ZeroDivisionError: division by zero"
    assert lines(recorder)[1]["result"] == {"off": 3.0, "passed": False}
    output = capsys.readouterr().out
    assert "!!! FAILED" in output
    assert "!!! MISSED" in output


def test_a_job_that_does_not_end_is_stopped_with_its_name(part, recorder, time, monkeypatch):
    ended = []
    monkeypatch.setattr(part("results").os, "_exit", ended.append)

    def work():
        time.now += 61
        timer = recorder.stop_at(61, lambda: ended.append("last"))
        timer.join()

    recorder.take(part("results").Job("endless", 60, work))
    assert ended == ["last", 3]
    assert lines(recorder)[0] | {"why": ""} == {"name": "endless", "state": "stopped", "at": 61.0, "why": ""}


def test_the_difference_is_relative_to_the_largest_number(part):
    difference = part("parity").difference
    assert difference(np.array([1.0, -4.0]), np.array([1.5, -5.0])) == 0.2
    assert difference(np.zeros(2), np.zeros(2)) == 0
    assert difference(np.array([0.0, 1e-9]), np.zeros(2)) == np.inf
    assert difference(np.array([np.nan]), np.ones(1)) == np.inf
    assert difference(np.ones(1), np.ones(2)) == np.inf


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"logits": np.array([1.0, 2.01])}, True),
        ({"logits": np.array([1.0, 2.1])}, False),
        ({"loss": np.float64(3.3)}, False),
        ({"update['b']": np.array([0.9])}, True),  # large for a parameter, small for the whole
        ({"update['a']": np.array([3.0, -4.0])}, False),
        ({"update['a']": np.array([3.0, np.nan])}, False),
    ],
)
def test_parity_is_judged_by_logits_loss_and_the_norm_of_the_update(part, changes, passed):
    reference = {"logits": np.array([1.0, 2.0]), "loss": np.float64(3)}
    reference |= {"update['a']": np.array([3.0, 4.0]), "update['b']": np.array([0.5]), "variables['a']": np.ones(2)}
    found = part("parity").compared(reference | changes, reference, (0.01, 0.1))
    assert found["passed"] is passed
    if "update['b']" in changes:
        assert found["worst_parameter"] == {"update['b']": pytest.approx(0.8)}
        assert found["update"] == pytest.approx(0.1)
        assert found["update_norm"] == pytest.approx(0.4 / np.linalg.norm([3, 4, 0.5]))


@pytest.mark.slow
def test_carried_images_are_the_official_ones(part, tmp_path, monkeypatch):
    carried, cifar = part("carried"), importlib.import_module("unimix_jax.data.sources.cifar")
    monkeypatch.setattr(np, "savez_compressed", np.savez)  # to compress random pixels takes seconds
    carried.random_images(tmp_path / "official")
    carried.pack_images(str(tmp_path / "official"), tmp_path / "images.npz")
    carried.unpack_images(tmp_path / "images.npz", tmp_path / "again")
    files = sorted(path.name for path in (tmp_path / "official" / cifar.LAYOUTS["cifar10"].binary).iterdir())
    assert len(files) == 7
    for name in files:
        before, after = (tmp_path / folder / cifar.LAYOUTS["cifar10"].binary / name for folder in ("official", "again"))
        assert before.read_bytes() == after.read_bytes(), name
    splits = cifar.read(carried.parsed("cifar_lt.py:imbalance=100", f"--config.data.dir={tmp_path / 'again'}").data)
    assert splits.counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert len(splits.test.labels) == 10_000


def test_differences_of_pixels_are_undone(part):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    assert (part("carried").sums(part("carried").differences(images)) == images).all()
    assert not part("carried").differences(np.full((1, 4, 4, 3), 7, np.uint8)).reshape(-1)[3:].any()


def test_programs_are_packed_oldest_first_within_the_limit(part, tmp_path):
    carried, cache = part("carried"), tmp_path / "cache"
    (cache / "below").mkdir(parents=True)
    for age, name in enumerate(("below/first", "second", "third")):
        (cache / name).write_bytes(b"x" * 10_000)
        importlib.import_module("os").utime(cache / name, (1000 + age, 1000 + age))
    limit = 40_960
    packed = carried.pack_programs(cache, tmp_path / "programs.tar", limit)
    assert packed == {"files": 2, "left_out": 1, "bytes": (tmp_path / "programs.tar").stat().st_size}
    assert packed["bytes"] <= limit
    with tarfile.open(tmp_path / "programs.tar") as tar:
        assert tar.getnames() == ["below/first", "second"]
    assert carried.unpack_programs(tmp_path / "programs.tar", tmp_path / "again") == 2
    assert (tmp_path / "again" / "below" / "first").read_bytes() == b"x" * 10_000


def test_packages_travel_without_compiled_parts(part, tmp_path):
    part("carried").copy_packages(("ml_collections",), tmp_path)
    assert (tmp_path / "ml_collections" / "__init__.py").exists()
    with pytest.raises(SystemExit, match="numpy has compiled parts"):
        part("carried").copy_packages(("numpy",), tmp_path)


@pytest.mark.slow
def test_a_rehearsal_writes_parity_and_rates(part, stem, quick_compilation, tmp_path, monkeypatch):
    experiments, command, jobs = part("experiments"), part("command"), part("jobs")
    monkeypatch.setattr(jobs, "DTYPES", ("float32",))
    monkeypatch.delitem(jobs.TOLERANCES, ("float32", "default"))
    overrides = (*experiments.SMALL.overrides, "--config.network=stem", "--config.data.augment=")
    scale = experiments.SMALL._replace(overrides=overrides, matrices=16, timed=0.01)
    arguments = ["--small", f"--output={tmp_path}", "--parts=machine,parity,rates", "--torch-python=not-there"]
    options = command.parser().parse_args(arguments)
    assert isinstance(options, argparse.Namespace)
    assert command.measure(options, scale, tmp_path / "cache") == 1  # PyTorch's worker cannot start
    found = {line["name"]: line for line in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert {line["name"] for line in found.values() if line["state"] == "failed"} == {"pytorch default (float32, TF32)"}
    assert found["environment"]["result"]["platform"] == "cpu"
    assert found["products"]["result"]["bfloat16_tflops"] > 0
    for name in ("float32 highest", "bfloat16 default"):
        assert found[f"parity {name}"]["state"] == "done", found[f"parity {name}"]
    assert found["parity bfloat16 default"]["result"]["logits"] > found["parity float32 highest"]["result"]["logits"]
    assert found["steps float32 in a loop"]["result"]["steps_in_a_program"] == scale.epoch
    assert found["steps float32 one by one"]["result"]["images_a_second"] > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["failed"] == ["pytorch default (float32, TF32)"]
