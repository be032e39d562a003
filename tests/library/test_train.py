"""`unimix_jax.train` and `load_config`: a run by a call is that of the command."""

import pathlib

import numpy as np
import pytest

import unimix_jax
from unimix_jax import main, metrics, storage
from unimix_jax.config import default, use_method, use_source
from unimix_jax.errors import UserError

FEW = {"config.epochs": "1", "config.network": "stem", "config.parallel.devices": "1", "config.seed": "3"}


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


def test_a_config_is_loaded_changed_and_checked():
    config = unimix_jax.load_config("digits_lt:method=unimix_bayias", epochs=3)
    assert (config.epochs, config.method.name) == (3, "unimix_bayias")
    config.epochs = -1
    with pytest.raises(UserError, match="config.epochs is -1"):
        unimix_jax.train(config)
    with pytest.raises(UserError, match="^config names digit_lt, which is not there"):
        unimix_jax.load_config("digit_lt")
