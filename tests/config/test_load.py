"""Files that are no Python: config.json of a run, and YAML."""

import json
import logging

import pytest
import yaml

from unimix_jax import registry
from unimix_jax.config import default, parse, shipped_configs, use_source
from unimix_jax.config.compare import flat
from unimix_jax.errors import UserError
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.storage import write_json

DIGITS = "--config=digits_lt.py"


@pytest.fixture
def logged(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    return caplog


def saved(path, *argv):
    """Write config.json as a run does; return the config."""
    config = parse(["main", *argv]).config
    write_json(path, json.loads(config.to_json_best_effort()))
    return config


def typed(config):
    return {
        k: typed(v) if isinstance(v, dict) else (type(v), v)
        for k, v in (config if isinstance(config, dict) else config.to_dict()).items()
    }


@pytest.mark.parametrize("method", ["erm", "crt", "unimix_bayias_las"])
@pytest.mark.parametrize("name", shipped_configs())
def test_config_json_of_a_run_repeats_it(tmp_path, logged, name, method):
    config = saved(tmp_path / "config.json", f"--config={name}:method={method}", "--config.seed=7")
    again = parse(["main", f"--config={tmp_path}/config.json"])
    assert typed(again.config) == typed(config)
    write_json(tmp_path / "again.json", json.loads(again.config.to_json_best_effort()))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    assert again.name == f"{config.data.source}-{method}"
    assert not logged.records


def test_config_json_takes_overrides(tmp_path):
    saved(tmp_path / "config.json", "--config=image_folder.py")
    argv = [f"--config={tmp_path}/config.json", "--config.seed=3", "--config.data.image_size=64"]
    config = parse(["main", *argv, "--config.method.stages.mixed.mixer.alpha=.8"]).config
    assert (config.seed, config.data.image_size, config.data.resize) == (3, 64, 73)
    assert config.method.stages.mixed.mixer.alpha == 0.8


def test_config_json_of_a_run_with_fields_of_its_own_keeps_them(tmp_path, logged):
    saved(tmp_path / "config.json", DIGITS)
    values = json.loads((tmp_path / "config.json").read_text())
    values["data"]["mine"] = [1, 2]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert parse(["main", f"--config={tmp_path}/config.json"]).config.data.mine == (1, 2)
    assert "config.data.mine, which is no field of this version; it is kept" in logged.text


def test_config_json_of_an_older_run(tmp_path, logged):
    config = saved(tmp_path / "config.json", DIGITS)
    values = json.loads((tmp_path / "config.json").read_text())
    values["accumulate"] = values.pop("grad_accum_steps")
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert typed(parse(["main", f"--config={tmp_path}/config.json"]).config) == typed(config)
    assert "accumulate is now grad_accum_steps" in logged.text


def test_a_folder_of_a_run_names_its_config(tmp_path):
    saved(tmp_path / "config.json", DIGITS)
    with pytest.raises(UserError, match=f"the config of the run in it is {tmp_path}/config.json"):
        parse(["main", f"--config={tmp_path}"])


FUNCTIONS = (  # of a method of one's own
    "{loss: {name: focal, gamma: 2}, mixer: {name: none}, pair_sampler: {name: none}, "
    "sampler: {name: class_balanced}, class_weight: {name: none}}"
)
YAML = """\
network: resnet8
epochs: 3
data: {source: digits, imbalance: 20, jitter: [0, 0.1, 0]}
optim:
  weight_decay: 2e-4   # YAML takes this for a text
  warmup_epochs: 1
method: mixup
"""


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_yaml(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_text(YAML)
    command = parse(["main", f"--config={path}", "--config.epochs=4"])
    config = command.config
    assert command.name == "mine"
    assert (config.network, config.epochs, config.data.source, config.method.name) == ("resnet8", 4, "digits", "mixup")
    assert (config.data.imbalance, config.data.jitter) == (20.0, (0, 0.1, 0))
    assert config.optim.weight_decay == 2e-4
    assert type(config.optim.warmup_epochs) is float
    assert config.optim.momentum == 0.9
    assert list(config.method.stages) == ["mixed", "plain"]


def test_yaml_may_change_fields_of_a_method(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML.replace("method: mixup", "method: {name: mixup, head: cosine}"))
    config = parse(["main", f"--config={path}"]).config
    path.write_text(YAML)
    expected = parse(["main", f"--config={path}"]).config.method.to_dict()
    assert config.method.to_dict() == {**expected, "head": "cosine"}
    path.write_text(YAML.replace("method: mixup", f"method: {{name: mine, stages: {{only: {FUNCTIONS}}}}}"))
    method = parse(["main", f"--config={path}"]).config.method
    assert (method.name, method.head, method.posthoc.name) == ("mine", "linear", "none")
    assert method.stages.to_dict() == {"only": yaml.safe_load(FUNCTIONS)}
    with pytest.raises(UserError, match=r"mine\.yaml holds the method; change it there"):
        parse(["main", f"--config={path}", "--config.method=erm"])


def config_of(path, text):
    path.write_text(text)
    return parse(["main", f"--config={path}"]).config


def method_of(path, text):
    return config_of(path, YAML.replace("method: mixup", text)).method.to_dict()


LAID = [
    (
        "method: {name: unimix, stages: {mixed: {loss: {name: 'poly_loss:poly1'}}}}",
        {"loss": {"name": "poly_loss:poly1"}},
    ),
    ("method: unimix\nmethod.stages.mixed.loss.name: focal", {"loss": {"name": "focal"}}),
    ("method: {name: unimix, stages: {mixed: {mixer: {alpha: 1}}}}", {"mixer": {"alpha": 1.0}}),
    ("method: {name: unimix, stages.mixed.mixer.alpha: 8e-1}", {"mixer": {"alpha": 0.8}}),
    ("method: {name: unimix, stages: {mixed: {mixer: {name: mixup}}}}", {"mixer": {"name": "mixup"}}),
    ("method: {name: unimix, stages: {}}", {}),
]


@pytest.mark.parametrize(("text", "changes"), LAID)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_method_in_a_file_is_laid_over_the_recipe_of_its_name(tmp_path, suffix, text, changes):
    recipe = method_of(tmp_path / "recipe.yaml", "method: unimix")
    whole = YAML.replace("method: mixup", text)
    laid = config_of(tmp_path / f"mine.{suffix}", whole if suffix == "yaml" else json.dumps(yaml.safe_load(whole)))
    mixed = registry.inherit(recipe["stages"]["mixed"], changes)
    expected = {**recipe, "stages": {**recipe["stages"], "mixed": mixed}}
    assert typed(laid.method.to_dict()) == typed(expected)


def test_a_stage_that_is_new_on_purpose_says_when_it_begins(tmp_path):
    path = tmp_path / "mine.yaml"
    stages = method_of(path, "method: {name: unimix, stages: {late: {begin: 9e-1, sampler: {name: class_balanced}}}}")
    assert stages["stages"]["late"] == {"begin": 0.9, "sampler": {"name": "class_balanced"}}
    assert stages["stages"].keys() == {"mixed", "plain", "late"}
    text = "method: {name: unimix, stages: {warm: {begin: 0, loss: {name: focal}}, mixed: {begin: .1}}}"
    stages = method_of(path, text)["stages"]
    assert stages["warm"] == {**RECIPES["erm"]["stages"]["plain"], "loss": {"name": "focal"}}
    assert stages["mixed"] == {**RECIPES["unimix"]["stages"]["mixed"], "begin": 0.1}  # it goes on with the loss of warm


def test_what_a_file_says_goes_before_what_the_recipe_says(tmp_path):
    text = YAML.replace("method: mixup", "method: mislas")
    assert config_of(tmp_path / "mine.yaml", text).optim.decay_factor == 0.1
    assert config_of(tmp_path / "mine.yaml", text + "optim.decay_factor: 0.5\n").optim.decay_factor == 0.5


@pytest.mark.parametrize("argv", [["plain.begin=0", "mixed.begin=.4"], ["mixed.mixer.name=none"], ["plain.begin=.7"]])
def test_config_json_of_a_run_is_taken_as_it_is_whatever_its_recipe_has_become(tmp_path, monkeypatch, argv):
    argv = [f"--config.method.stages.{override}" for override in argv]
    config = saved(tmp_path / "config.json", "--config=digits_lt.py:method=unimix", *argv)
    changed = {**RECIPES["unimix"], "head": "cosine", "config": {"epochs": 3}, "stages": {"other": {}}}
    monkeypatch.setitem(RECIPES, "unimix", changed)
    assert typed(parse(["main", f"--config={tmp_path}/config.json"]).config) == typed(config)
    monkeypatch.delitem(RECIPES, "unimix")
    assert typed(parse(["main", f"--config={tmp_path}/config.json"]).config) == typed(config)


def test_config_json_of_a_run_whose_stages_its_file_made_anew_is_taken_as_it_is(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs.digits_lt import get_config as digits\n"
        "def get_config():\n    config = digits()\n"
        "    config.method.stages = {'plain': {'loss': {'name': 'focal', 'gamma': 1}}}\n    return config\n"
    )
    config = saved(tmp_path / "config.json", f"--config={tmp_path}/mine.py")
    again = parse(["main", f"--config={tmp_path}/config.json"]).config
    assert typed(again) == typed(config)
    assert again.method.stages.to_dict() == {"plain": {"loss": {"name": "focal", "gamma": 1}}}


def test_dotted_keys_are_nested_ones(tmp_path):
    nested = config_of(tmp_path / "nested.yaml", YAML)
    values = flat(yaml.safe_load(YAML))
    dotted = config_of(tmp_path / "dotted.yaml", "\n".join(f"{name}: {value}" for name, value in values.items()))
    assert typed(dotted) == typed(nested)
    assert typed(config_of(tmp_path / "dotted.json", json.dumps(values))) == typed(nested)
    mixed = config_of(tmp_path / "mixed.yaml", YAML + "data.flip: false\noptim.options: {b2: .99}\n")
    assert (mixed.data.flip, mixed.data.imbalance, mixed.optim.options.b2) == (False, 20.0, 0.99)


def test_a_source_of_one_s_own_takes_its_images_as_they_are(tmp_path):
    text = YAML.replace("{source: digits, imbalance: 20, jitter: [0, 0.1, 0]}", "{source: 'mine:images'}")
    data = config_of(tmp_path / "mine.yaml", text).data
    assert (data.imbalance, data.pad, data.flip, data.jitter) == (1.0, 0, False, (0.0, 0.0, 0.0))
    data = config_of(tmp_path / "mine.yaml", text + "data.flip: true\n").data
    assert (data.pad, data.flip) == (0, True)
    config = default()
    use_source(config, "mine:images")
    assert (config.data.imbalance, config.data.pad, config.data.flip) == (1.0, 0, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs: 3", "epoch: 3"), r"unknown config field 'epoch' \(did you mean 'epochs'\?\)"),
        (("epochs: 3", "epochs: many"), "epochs is 'many'; it must be a whole number"),
        (("epochs: 3", "epochs: true"), "epochs is True; it must be a whole number"),
        (("epochs: 3", "epochs: 0"), "config.epochs is 0; it must be at least 1"),
        (("epochs: 3", "remat: 1"), "remat is 1; it must be true or false"),
        (("{source: digits, imbalance: 20, jitter: [0, 0.1, 0]}", "3"), "names no data source"),
        ((YAML[YAML.index("optim") : YAML.index("method")], "optim: 3\n"), "unknown config field 'optim'"),
        (("source: digits", "pad: 1"), "names no data source"),
        (("imbalance: 20", "image_size: 20"), "sets data.image_size, which the data source 'digits' does not have"),
        (("[0, 0.1, 0]", "0"), "data.jitter is 0; it must be a list of numbers"),
        (("[0, 0.1, 0]", "[0, 0.1]"), "three numbers in 0..1"),
        (("network: resnet8", "network: 8"), "network is 8; it must be a text"),
        (("method: mixup", ""), "has no method"),
        (("method: mixup", "method: mixip"), "unknown method 'mixip'"),
        (
            ("method: mixup", "method: {name: mixip, stages: {mixed: {loss: {name: focal}}}}"),
            "unknown method 'mixip' .did you mean 'mixup'.*own has a first stage with loss, mixer, pair_sampler",
        ),
        (
            ("method: mixup", "method: {name: mixup, stages: {mixd: {loss: {name: focal}}}}"),
            "method 'mixup' has no stage 'mixd' .did you mean 'mixed'.*; its stages: mixed, plain; a new one must say",
        ),
        (("method: mixup", "method: {name: mixup, stage: {}}"), "unknown entry .* 'stage' .did you mean 'stages'"),
        (("method: mixup", f"method: {{name: m, stage: 1, stages: {{a: {FUNCTIONS}}}}}"), "unknown entry .* 'stage'"),
        (("method: mixup", "method: {name: mixup, mixer: {alpha: 1}}"), "write method.stages.mixed.mixer"),
        (
            ("method: mixup", "method: {name: mixup, stages: {mixed: {begin: soon}}}"),
            "config.method.stages.mixed.begin is 'soon'; it must be a number",
        ),
        (("method: mixup", "method: {name: mixup, stages: {plain: {begin: {a: 1}}}}"), "plain.begin is .* be a number"),
        (("method: mixup", "method: mixup\ndata.source: digits"), "sets data.source twice, nested and by a dotted key"),
        (("method: mixup", "method: mixup\nmethod.name: erm"), "sets method.name twice"),
        (("imbalance: 20", "method: 20"), "unknown config field 'data.method'"),
        (("method: mixup", "method: mixup\nepochs.many: 1"), "sets epochs twice"),
        (("method: mixup", f"method: mixup\n{'a.' * 40}b: 1"), "has a key of 41 parts"),
        (("method: mixup", "method: {stages: {}}"), "has no method; it must have the field method with a name"),
        (("method: mixup", "method: {name: mine, stages: {plain: 3}}"), "method.stages.plain is 3; it must be a group"),
        (("method: mixup", "method: {name: mine, stages: 3}"), "method.stages is 3; it must be a group of fields"),
        (("method: mixup", "method: {name: mixup, head: 3}"), "config.method.head is 3; it must be a text"),
        (("method: mixup", "method: {name: mixup, posthoc: none}"), "method.posthoc is 'none'; it must be a group"),
        (
            ("method: mixup", "method: mixup\nparallel: {native: off}"),
            "parallel.ops is False; .* put the word in quotes",
        ),
        (("method: mixup", "method: mixup\naccumulate: 2\ngrad_accum_steps: 2"), "accumulate and grad_accum_steps"),
        (("optim:\n", "optim:\n  lr: .1\n"), "did you mean 'optim.learning_rate'"),
        (("network: resnet8", "network: !!python/name:os.system"), "is no YAML of plain values"),
        (("network: resnet8", "network: ["), "is no YAML of plain values"),
        (("network: resnet8", "a: &a {b: 1}\nc: *a"), "has aliases"),
        (("network: resnet8", "epochs: 4"), "has the key epochs twice"),
        (("imbalance: 20", "source: arrays"), "has the key source twice"),
        (("network: resnet8", "1: 2"), "must hold names of fields"),
    ],
)
def test_wrong_yaml_gets_a_sentence(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML.replace(*change))
    with pytest.raises(UserError, match=message):
        parse(["main", f"--config={path}"])


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "- 1", "text", "[" * 1500])
def test_yaml_of_another_kind_gets_a_sentence(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="must hold names of fields|is no YAML"):
        parse(["main", f"--config={path}"])


def test_files_of_values_take_no_arguments(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    with pytest.raises(UserError, match="takes no arguments after a colon"):
        parse(["main", f"--config={path}:method=erm"])
