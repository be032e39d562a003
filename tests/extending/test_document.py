"""The parts of docs/extending.md are named by a config and trained with; no file of the project knows them."""

import pathlib
import shutil
import sys

import numpy as np
import pytest

from unimix_jax import main, metrics, storage
from unimix_jax.config import parse
from unimix_jax.training.setup import prepare

from .document import COMMANDS, DIGITS, MODULES, PLAIN


def test_every_part_has_an_example_of_less_than_thirty_lines():
    kinds = {"optimisers", "schedules", "augmentations", "vit", "heads", "data", "measures", "mixers"}
    assert {f"my_{kind}" for kind in kinds} == MODULES.keys()
    for name, code in MODULES.items():
        assert len(code.splitlines()) < 30, name
        assert any(f"{name}:" in argument for command in COMMANDS for argument in command), name


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0].removeprefix("--config."))
def test_the_commands_of_the_document_set_up_a_run(command):
    experiment = prepare(parse([*DIGITS, *command]).config, pathlib.Path("unwritten"))
    assert experiment.steps > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "undrawn", "unsampled", "without_distributions")
def test_a_run_with_all_parts_of_the_document(mine, capsys):
    arguments = {}
    for argument in (argument for command in COMMANDS for argument in command):
        name, _, value = argument.partition("=")
        arguments[name] = value  # the last one wins: those of the own parts stand behind those of the project
    arguments |= {
        "--config.optim.name": "my_optimisers:clipped_adamw",
        "--config.data.augment": "my_augmentations:noise",
    }
    del arguments["--config.optim.options.b2"]
    arguments |= {
        "--config.network_options.depth": "1",
        "--config.loggers": "jsonl",
        "--workdir": "run",
        "--config.eval_every": "0",
        "--config.epochs": "2",
        "--config.parallel.devices": "1",
    }
    argv = [f"{name}={value}" for name, value in arguments.items()]
    assert main.main([*DIGITS[:2], *argv]) == 0
    values = storage.read_json(mine / "run" / "metrics.json")["test"]
    predictions = metrics.predictions.read_predictions(mine / "run" / "predictions.npz")
    confident = (
        np.exp(predictions.logits - np.logaddexp.reduce(predictions.logits, axis=1, keepdims=True)).max(axis=1) >= 0.9
    )
    wrong = predictions.logits.argmax(axis=1) != predictions.labels
    assert values["my_measures:confident_mistakes"] == pytest.approx((wrong & confident).mean())
    assert predictions.class_names == ("1", "3", "5", "7", "9")
    assert "confident mistakes" in (mine / "run" / "report.md").read_text()
    run = storage.read_json(mine / "run" / "run.json")
    assert run["starts"][0]["code"].keys() == MODULES.keys()
    rates = [
        line["learning_rate"]
        for line in map(storage.parse_json, (mine / "run" / "metrics.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    assert rates[-1] == pytest.approx(0, abs=1e-3)
    assert "error" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "shared_programs", "stem")
def test_a_run_that_goes_on_with_a_changed_module_says_so(mine):
    argv = [*PLAIN, "--config.network=stem", "--config.measures=my_measures:confident_mistakes"]
    argv += ["--report=no", "--workdir=run"]

    def told():
        """What the log says of a start."""
        (mine / "run" / "log.txt").unlink(missing_ok=True)
        assert main.main(argv) == 0
        return (mine / "run" / "log.txt").read_text()

    def lost():
        shutil.rmtree(mine / "run" / "checkpoints")
        (mine / "run" / "predictions.npz").unlink()

    def change():
        with (mine / "my_measures.py").open("a") as file:
            file.write("# changed\n")
        sys.modules.pop("my_measures", None)

    assert "my_measures" not in told()
    assert "my_measures" not in told()  # complete, and nothing was changed
    change()
    changed = "the module my_measures, on which parts of the config depend, was changed"
    log = told()
    assert f"{changed} or is gone since this run was started; the results are those of the module as it was" in log
    lost()
    log = told()
    assert f"{changed} since the last start, and is used as it is now" in log
    assert "predictions.npz is gone; there is no checkpoint, so that it is trained again from its first step" in log
    digests = [s["code"]["my_measures"] for s in storage.read_json(mine / "run" / "run.json")["starts"]]
    assert len(set(digests)) == 2
