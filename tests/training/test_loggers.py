"""Loggers: who gets the records of a run, that none of them can end or change it, and what other tools read back."""

import json
import logging
import pathlib
import re
import shlex
import sys
import threading
import time
import types

import pytest

from unimix_jax import registry
from unimix_jax.config import load, parse
from unimix_jax.errors import Interrupted, NonFiniteError, UserError
from unimix_jax.training import loggers, loop, rundir
from unimix_jax.training.run import run

pytestmark = pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")
ROOT = pathlib.Path(__file__).resolve().parents[2]
SHORT = ("--config.epochs=2", "--config.log_every=5", "--config.eval_every=1", "--config.checkpoint.every=1")
STEP = {"step": 5, "epoch": 0.5, "loss": 2.0, "accuracy": 0.25, "stage": "plain", "learning_rate": 0.1}
STEP |= {"images_per_second": None}
EVALUATION = {"step": 11, "epoch": 1.0, "split": "validation", "accuracy": 0.5, "ece": 0.125, "nll": 1.5}


def config(names):
    """A short digits run of a network's stem, on one device instead of the tests' eight."""
    argv = ["main", "--config=digits_lt.py:method=erm", "--config.network=stem", *SHORT]
    argv += ["--config.parallel.devices=1", "--config.parallel.ops=xla", f"--config.loggers={names}"]
    return parse(argv).config


@pytest.fixture
def mine(monkeypatch):
    """A module of a user, in which a test puts its loggers."""
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


class Kept:
    """A logger that keeps what it gets, and how often it is finished."""

    made = ()

    def __init__(self, *, directory, config, first_step, num_steps):
        self.asked = (directory, config, first_step, num_steps)
        self.records, self.finished = [], 0
        Kept.made = (*Kept.made, self)

    def log(self, record):
        assert not self.finished
        self.records.append(dict(record))
        record.clear()  # which is nobody else's

    def finish(self):
        self.finished += 1


@pytest.fixture
def kept(mine, monkeypatch):
    """The class of loggers as mine:Kept; `made` holds its loggers."""
    monkeypatch.setattr(Kept, "made", ())
    mine.Kept = Kept
    return Kept


def numbers_of(directory):
    """The records of metrics.jsonl without rates, and the results."""
    records = rundir.read_metrics(directory / rundir.METRICS_LINES)
    return [r | {"images_per_second": None} for r in records], json.loads((directory / rundir.METRICS).read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory, quick_compilation, shared_programs, stem):
    """The numbers of a run with no logger but jsonl."""
    directory = tmp_path_factory.mktemp("plain")
    run(config("jsonl"), directory)
    return numbers_of(directory)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("jsonl", ("jsonl",)),
        ("jsonl,progress,my.module:Name", ("jsonl", "progress", "my.module:Name")),
        ("('jsonl','tensorboard')", ("jsonl", "tensorboard")),
        ("[jsonl, wandb]", ("jsonl", "wandb")),
    ],
)
def test_names_are_typed_with_commas(text, names):
    assert config(text).loggers == names


def test_names_stand_in_yaml_and_json(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {source: digits}\nmethod: erm\nloggers: [jsonl, tensorboard]\n")
    assert load.load(tmp_path / "c.yaml", None).loggers == ("jsonl", "tensorboard")
    values = config("jsonl,wandb").to_json_best_effort()
    (tmp_path / "config.json").write_text(values)
    assert load.load(tmp_path / "config.json", None).loggers == ("jsonl", "wandb")
    (tmp_path / "c.yaml").write_text("data: {source: digits}\nmethod: erm\nloggers: jsonl\n")
    with pytest.raises(UserError, match="loggers is 'jsonl'; it must be a list of names"):
        load.load(tmp_path / "c.yaml", None)


@pytest.mark.parametrize("names", ["jsonl,jsonl", "jsonl,progress,jsonl"])
def test_a_logger_is_named_once(names):
    with pytest.raises(UserError, match=r"names of loggers, each once, such as jsonl,progress,tensorboard"):
        config(names)


def test_the_names_of_tools_lead_to_the_field():
    for name in ("wandb", "tensorboard", "logger", "mlflow"):
        with pytest.raises(UserError, match=r"write --config\.loggers=x"):
            parse(["main", "--config=digits_lt.py", f"--{name}=x"])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("jsonl,tensorbord", r"config\.loggers: unknown logger 'tensorbord' \(did you mean 'tensorboard'\?\)"),
        ("jsonl,mine:Absent", r"config\.loggers: cannot import 'mine:Absent'"),
        ("jsonl,mine:needy", r"config\.loggers: logger 'mine:needy' needs the option 'token'"),
        ("progress", r"config\.loggers is progress; it must name jsonl too, for a run goes on from what jsonl wrote"),
        ("", r"config\.loggers is empty; it must name jsonl too"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_compiled(tmp_path, mine, names, sentence, compilations):
    mine.needy = lambda *, token: None
    with pytest.raises(UserError, match=sentence):
        run(config(names), tmp_path)
    assert compilations() == 0


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
@pytest.mark.parametrize("folder", [False, True])
def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch, name, package, folder):
    """A folder of that name, which runs of some tools leave behind, is no package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    if folder:
        (tmp_path / package).mkdir()
    sentence = f"config.loggers names {name}, which needs {package}: pip install 'unimix_jax[{name}]'"
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        loggers.check(("jsonl", name))


def test_the_extras_are_those_of_the_project():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {name: registry.traits("logger", entry).package for name, entry in registry.entries("logger").items()}
    assert packages == {
        "jsonl": "",
        "progress": "",
        "tensorboard": "tensorboardX",
        "wandb": "wandb",
        "mlflow": "mlflow",
    }
    for name, package in packages.items():
        assert not package or [re.match(r"[\w-]+", line)[0] for line in extras[name]] == [package]


@pytest.mark.slow
def test_an_own_logger_gets_the_records_of_the_file(tmp_path, kept, plain):
    settings = config("mine:Kept,jsonl")
    run(settings, tmp_path)
    (logger,) = kept.made
    assert logger.records == rundir.read_metrics(tmp_path / rundir.METRICS_LINES)
    assert logger.finished == 1
    assert logger.asked == (tmp_path, settings.to_dict(), 0, 22)
    assert numbers_of(tmp_path) == plain


@pytest.mark.slow
def test_progress_can_be_left_out(tmp_path, capsys, plain):
    run(config("jsonl,progress"), tmp_path / "with")
    assert "step 22/22" in capsys.readouterr().err
    run(config("jsonl"), tmp_path / "without")
    lines = capsys.readouterr().err
    assert "step 22/22" not in lines
    assert "accuracy" not in lines
    assert numbers_of(tmp_path / "with") == numbers_of(tmp_path / "without") == plain


def failing(method, error):
    """A class of loggers of which one method raises an error."""

    class Failing:
        calls = 0

        def __init__(self):
            self.call("__init__")

        def log(self, record):
            self.call("log")
            record["loss"] = 0.0

        def finish(self):
            self.call("finish")

        def call(self, name):
            if name == method:
                Failing.calls += 1
                raise error

    return Failing


@pytest.mark.parametrize("error", [ConnectionError("no\nnetwork"), SystemExit("no\nnetwork")])
@pytest.mark.parametrize("method", ["__init__", "log", "finish"])
def test_a_logger_that_fails_is_left_out_after_one_sentence(tmp_path, mine, kept, caplog, method, error):
    mine.Failing = failing(method, error)
    names = ("jsonl", "mine:Failing", "mine:Kept")
    with loggers.opened(names, directory=tmp_path, config=config("jsonl"), first_step=0, num_steps=9) as records:
        for step in (1, 2, 3):
            records.log(STEP | {"step": step})
    assert mine.Failing.calls == 1
    assert [r["step"] for r in kept.made[0].records] == [1, 2, 3]
    assert kept.made[0].records == rundir.read_metrics(tmp_path / rundir.METRICS_LINES)
    assert kept.made[0].finished == 1
    kind = type(error).__name__
    sentence = f"the logger mine:Failing is left out for the rest of the run: {kind}: no network"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [sentence]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["__init__", "log", "finish"])
def test_a_logger_that_fails_neither_ends_nor_changes_a_run(tmp_path, mine, method, plain):
    mine.Failing = failing(method, OSError(28, "No space left on device"))
    run(config("jsonl,progress,mine:Failing"), tmp_path)
    assert numbers_of(tmp_path) == plain
    assert (tmp_path / "log.txt").read_text().count("mine:Failing is left out for the rest of the run: OSError") == 1


def test_an_error_of_a_logger_that_a_run_needs_ends_it(tmp_path, kept):
    (tmp_path / rundir.METRICS_LINES).mkdir()
    names = ("jsonl", "mine:Kept")
    with (
        pytest.raises(OSError, match="Is a directory"),
        loggers.opened(names, directory=tmp_path, config=config("jsonl"), first_step=0, num_steps=9) as records,
    ):
        records.log(STEP)
    assert kept.made[0].finished == 1


@pytest.mark.slow
def test_a_stopped_run_finishes_its_loggers_and_goes_on_with_new_ones(tmp_path, mine, kept, plain):
    stop = threading.Event()

    class Stops(Kept):
        def log(self, record):
            super().log(record)
            stop.set()

    mine.Stops = Stops
    with pytest.raises(Interrupted):
        run(config("jsonl,mine:Stops"), tmp_path, stop)
    assert [logger.finished for logger in kept.made] == [1]
    run(config("jsonl,mine:Kept"), tmp_path)
    first, second = kept.made
    assert second.asked[2] == 6  # the step after the first record, at which the run sees that it is to stop
    assert first.records + second.records == rundir.read_metrics(tmp_path / rundir.METRICS_LINES)
    assert numbers_of(tmp_path) == plain


@pytest.mark.slow
def test_a_run_that_fails_finishes_its_loggers(tmp_path, kept, monkeypatch):
    def not_finite(*args, **named):
        raise NonFiniteError("the loss is not finite")

    monkeypatch.setattr(loop, "_check_finite", not_finite)
    with pytest.raises(NonFiniteError):
        run(config("jsonl,mine:Kept"), tmp_path)
    assert kept.made[0].finished == 1


@pytest.mark.slow
def test_the_logger_of_the_document_works(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/loggers.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert code.count("\n") < 30
    (tmp_path / "my_loggers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    *_, argument = shlex.split(re.findall(r"```sh\n(.*?)```", text, flags=re.S)[1])
    run(config(argument.partition("=")[2]), tmp_path / "run")
    sys.modules.pop("my_loggers")
    records = [r for r in rundir.read_metrics(tmp_path / "run" / rundir.METRICS_LINES) if "split" in r]
    best = {split: max(r["accuracy"] for r in records if r["split"] == split) for split in ("validation", "test")}
    assert (tmp_path / "run" / "best.txt").read_text() == f"{best}\n"
    assert "is left out" not in capsys.readouterr().err


def test_the_document_names_every_logger():
    text = (ROOT / "docs/loggers.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, flags=re.M) == list(registry.entries("logger"))


def logged(name, directory, steps, first_step=0, evaluation=True):
    """Give a logger of another tool the records of some steps, as a run does that takes `first_step` as taken."""
    run_config = config("jsonl")
    with loggers.opened(
        (name,), directory=directory, config=run_config, first_step=first_step, num_steps=22
    ) as records:
        for step in steps:
            records.log(STEP | {"step": step, "loss": 1 / step})
        if evaluation:
            records.log(EVALUATION)
        assert records._active  # it did not fail
    return run_config


def test_tensorboard_shows_the_records_and_hides_those_that_a_run_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    logged("tensorboard", tmp_path, (5, 10, 15, 20))
    logged("tensorboard", tmp_path, (15, 20), first_step=11, evaluation=False)
    scalars, starts = events_of(tmp_path / "tensorboard")
    assert starts == [1, 12]
    assert scalars["validation/ece"] == [(11, 0.125)]
    assert scalars["train/loss"] == [(s, pytest.approx(1 / s, rel=1e-6)) for s in (5, 10, 15, 20, 15, 20)]  # float32
    assert scalars.keys() == {
        "train/loss", "train/accuracy", "train/learning_rate", "validation/accuracy", "validation/ece", "validation/nll"
    }  # fmt: skip


def events_of(folder):
    """Return {tag: [(step, value)]} and the steps of starts, parsed from the event files by their framing."""
    from tensorboardX.proto import event_pb2

    scalars, starts = {}, []
    for path in sorted(folder.iterdir(), key=lambda path: path.name.rpartition(".")[2]):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.WhichOneof("what") == "session_log":
                starts.append(event.step)
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars, starts


def test_the_reader_of_tensorboard_hides_what_a_run_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged("tensorboard", tmp_path, (5, 10, 15, 20))
    logged("tensorboard", tmp_path, (15, 20), first_step=11, evaluation=False)
    shown = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("train/loss")] == [5, 10, 15, 20]
    assert [event.step for event in shown.Scalars("validation/ece")] == [11]


@pytest.mark.slow
def test_wandb_keeps_its_files_without_credentials_and_its_run_at_resume(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    caplog.set_level(logging.INFO)
    logged("wandb", tmp_path, (5, 10, 15))
    assert "wandb has no credentials here" in caplog.text
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    time.sleep(1)  # its folders are named after the second
    logged("wandb", tmp_path, (15,), first_step=11, evaluation=False)
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == run_id
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert [b"train/loss" in file.read_bytes() for file in files] == [True, True]
    assert b"validation/ece" in files[0].read_bytes()


@pytest.mark.slow
def test_mlflow_has_the_records_in_one_run_of_the_run_directory(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "run"
    directory.mkdir()
    run_config = logged("mlflow", directory, (5, 10, 15))
    logged("mlflow", directory, (15, 20), first_step=11, evaluation=False)
    client = mlflow.MlflowClient(f"sqlite:///{directory}/mlflow.db")
    experiment = client.get_experiment_by_name("unimix_jax")
    (one,) = client.search_runs([experiment.experiment_id])
    assert (one.info.run_name, one.info.status) == ("run", "FINISHED")
    history = client.get_metric_history(one.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(s, 1 / s) for s in (5, 10, 15, 15, 20)]
    assert [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, "validation/ece")] == [(11, 0.125)]
    assert one.data.params["optim.learning_rate"] == str(run_config.optim.learning_rate)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}  # nothing in the current folder
