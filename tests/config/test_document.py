"""Every block of docs/configs.md is a config, a change of one, or a command."""

import importlib
import json
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest

from unimix_jax import storage
from unimix_jax.config import fields, parse
from unimix_jax.methods import build
from unimix_jax.methods.recipes import RECIPES

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "configs.md").read_text()


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


PYTHON, CHANGES = blocks("python")
YAML, LAID, WHOLE, SOURCE = blocks("yaml")
COMMANDS = "".join(blocks("sh")).splitlines()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the configs of the document and the module that they name, as the current one."""
    (tmp_path / "my_losses.py").write_text(blocks("python", (DOCS / "own_loss.md").read_text())[0])
    (tmp_path / "my_config.py").write_text(PYTHON)
    (tmp_path / "my_config.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("my_losses", None)


def config_of(*argv):
    return parse(["main", *argv]).config


def stages_of(config):
    """The stages that a method has on three classes, ready to train."""
    counts, uniform = np.array([100, 30, 10]), np.full(3, 1 / 3)
    name, options = config.method.name, {"epochs": config.epochs, "steps_per_epoch": 10, "test_prior": uniform}
    return {stage.name: stage for stage in build.build(config.method.to_dict(), counts, name=name, **options).stages}


def test_the_two_files_are_the_same_config():
    assert config_of("--config=my_config.yaml").to_dict() == config_of("--config=my_config.py").to_dict()
    pathlib.Path("my_config.json").write_text(json.dumps({"epochs": 60, "data.source": "digits", "method": "erm"}))
    assert config_of("--config=my_config.json").epochs == 60


def test_the_lines_that_change_the_method():
    lines = "".join(f"    {line}\n" for line in CHANGES.splitlines())
    pathlib.Path("changed.py").write_text(PYTHON.replace("    return config\n", f"{lines}    return config\n"))
    stages = stages_of(config_of("--config=changed.py"))
    assert stages["mixed"].mixer.keywords["alpha"] == 0.8
    assert [stage.loss.keywords["strength"] for stage in stages.values()] == [1.0, 1.0]


def test_a_mapping_is_laid_over_a_recipe():
    pathlib.Path("laid.yaml").write_text(YAML.replace("method: unimix\n", LAID))
    stages = stages_of(config_of("--config=laid.yaml"))
    assert list(stages) == ["mixed", "plain", "late"]
    mixer = RECIPES["unimix"]["stages"]["mixed"]["mixer"]
    assert stages["mixed"].mixer.keywords["wrap"] == mixer["wrap"]
    assert stages["mixed"].mixer.keywords["alpha"] == 0.8
    assert [stage.loss.keywords["strength"] for stage in stages.values()] == [1.0, 1.0, 1.0]
    assert (stages["plain"].class_weight == 1).all()
    assert (stages["late"].class_weight != 1).any()


def test_a_whole_method_needs_no_recipe():
    pathlib.Path("whole.yaml").write_text(YAML.replace("method: unimix\n", WHOLE))
    config = config_of("--config=whole.yaml")
    assert config.method.name == "mine"
    assert stages_of(config)["only"].loss.keywords["gamma"] == 2.0


def test_a_source_of_one_s_own_has_the_fields_of_the_document():
    pathlib.Path("own.yaml").write_text(f"{SOURCE}\nmethod: erm")
    config = config_of("--config=own.yaml")
    assert (config.data.pad, config.data.flip, config.data.imbalance) == (1, False, 10.0)
    named = {f"data.{name}": value for name, value in (("pad", 0), ("flip", False), ("imbalance", 1.0))}
    assert named == fields.OF_OWN_SOURCE
    assert (config.network, config.epochs, config.batch_size, config.optim.learning_rate) == ("resnet32", 200, 128, 0.1)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("--config=")[1])
def test_the_commands_are_commands(command):
    run = pathlib.Path("runs/mine")
    run.mkdir(parents=True)
    config = config_of("--config=my_config.py")
    storage.write_json(run / "config.json", json.loads(config.to_json_best_effort()))
    _, _, module, *argv = shlex.split(command)
    assert module == "unimix_jax.main"
    result = parse(["main", *argv])
    if argv[-1] == "--help":
        lines = result.partition("The method; ")[2]
        assert all(f"--config.method.stages.{stage}." in lines for stage in ("plain", "retrained"))
    else:
        assert stages_of(result.config)
        assert result.config != config


def test_a_run_may_go_on_with_other_values_of_the_fields_that_the_document_names():
    free, seen = TEXT.partition("When a run goes on")[2].split("And these")
    names = {kind: set(re.findall(r"`([a-z][\w.]+)`", text)) for kind, text in (("free", free), ("seen", seen))}
    assert names["free"] == {name for name, field in fields.FIELDS.items() if field.resume == fields.FREE}
    assert names["seen"] == {name for name, field in fields.FIELDS.items() if field.resume == fields.SEEN_IN_DATA}
