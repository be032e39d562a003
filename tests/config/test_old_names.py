"""Names of before give the new ones and a sentence that says them."""

import json
import logging

import pytest

from unimix_jax.config import fields, old_names, parse
from unimix_jax.config.compare import differing_keys, flat
from unimix_jax.errors import UserError
from unimix_jax.methods.recipes import NEW_ENTRIES

DIGITS = "--config=digits_lt.py"
# Old name, a value, new name, its value there.
FIELDS = [
    ("accumulate", "2", "grad_accum_steps", 2),
    ("init", "w.safetensors", "pretrained", "w.safetensors"),
    ("data.residence", "device", "data.on_device", True),
    ("data.residence", "host", "data.on_device", False),
    ("data.cut_seed", "3", "data.subset_seed", 3),
    ("parallel.cores", "4", "parallel.cpu_threads", 4),
    ("parallel.how", "pmap", "parallel.spmd", "pmap"),
    ("parallel.native", "auto", "parallel.ops", "auto"),
    ("parallel.native", "on", "parallel.ops", "cpu_kernels"),
    ("parallel.native", "off", "parallel.ops", "xla"),
]
ENTRIES = [
    ("order.name", "balanced", "sampler.name", "class_balanced"),
    ("order.name", "natural", "sampler.name", "instance_balanced"),
    ("partners.name", "permutation", "pair_sampler.name", "permutation"),
    ("partners.class_exponent", "-.5", "pair_sampler.class_exponent", -0.5),
    ("trains.backbone", ".5", "lr_multipliers.backbone", 0.5),
]
ENTRIES = [tuple(f"method.stages.mixed.{e}" if i % 2 == 0 else e for i, e in enumerate(entry)) for entry in ENTRIES]


@pytest.fixture
def logged(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    return caplog


def test_every_old_name_is_tried_here():
    assert {old for old, *_ in FIELDS} == {f.old for f in fields.FIELDS.values() if f.old}
    assert {old.split(".")[3] for old, *_ in ENTRIES} == NEW_ENTRIES.keys()


@pytest.mark.parametrize(("old", "text", "new", "value"), FIELDS + ENTRIES)
def test_an_override_by_its_old_name(logged, old, text, new, value):
    config = parse(["main", DIGITS, f"--config.{old}={text}"]).config
    assert flat(config.to_dict())[new] == value
    assert old not in flat(config.to_dict())
    assert len(logged.records) == 1
    assert f"config.{old} is now config.{new}" in logged.text


def test_new_names_say_nothing(logged):
    parse(["main", DIGITS, "--config.grad_accum_steps=2", "--config.method.stages.mixed.sampler.name=class_balanced"])
    assert not logged.records


@pytest.mark.parametrize(("old", "text", "new", "value"), FIELDS)
def test_a_config_file_that_sets_a_field_by_its_old_name(tmp_path, logged, old, text, new, value):
    path = tmp_path / "mine.py"
    value_text = text if text.isdigit() else repr(text)
    path.write_text(
        "from configs.digits_lt import get_config as digits\n"
        f"def get_config():\n    config = digits()\n    config.{old} = {value_text}\n    return config\n"
    )
    config = parse(["main", f"--config={path}"]).config
    assert flat(config.to_dict())[new] == value
    assert f"{path} uses old names, which the next release does not know: {old} is now {new}" in logged.text
    assert set(flat(config.to_dict())) == set(flat(parse(["main", DIGITS]).config.to_dict()))


def test_a_config_file_that_reads_a_field_by_its_old_name_is_told_the_new_one(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs.digits_lt import get_config as digits\n"
        "def get_config():\n    config = digits()\n    config.epochs = config.parallel.cores\n    return config\n"
    )
    with pytest.raises(Exception, match=r"config\.parallel\.cores is now config\.parallel\.cpu_threads"):
        parse(["main", f"--config={path}"])


def test_a_config_file_that_reads_an_entry_of_a_stage_by_its_old_name_is_told_the_new_one(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs.digits_lt import get_config as digits\n"
        "def get_config():\n    config = digits()\n"
        "    config.method.stages.mixed.partners.class_exponent = -0.5\n    return config\n"
    )
    with pytest.raises(UserError, match="the entry partners of a stage is now pair_sampler"):
        parse(["main", f"--config={path}"])


def test_a_config_file_that_changes_a_stage_by_an_old_name(tmp_path, logged):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs.digits_lt import get_config as digits\n"
        "def get_config():\n    config = digits()\n"
        "    config.method.stages.mixed.order = {'name': 'balanced'}\n    return config\n"
    )
    stage = parse(["main", f"--config={path}"]).config.method.stages.mixed
    assert stage.sampler.name == "class_balanced"
    assert "order" not in stage
    assert "method.stages.mixed.order is now method.stages.mixed.sampler" in logged.text


def test_a_config_file_that_imports_settings_still_works(tmp_path, logged, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "unimix_jax.settings", raising=False)
    monkeypatch.delattr("unimix_jax.settings", raising=False)
    path = tmp_path / "mine.py"
    path.write_text(
        "from unimix_jax import settings\ndef get_config():\n    config = settings.default()\n"
        "    config.data.source = 'digits'\n    settings.use_method(config, 'erm')\n    return config\n"
    )
    assert parse(["main", f"--config={path}"]).config.method.name == "erm"
    assert "unimix_jax.settings is now unimix_jax.config" in logged.text


def old_config():
    """The config of a run as before: nested dicts with every old name."""
    config = parse(["main", "--config=digits_lt.py:method=crt"]).config.to_dict()
    config["accumulate"] = config.pop("grad_accum_steps")
    config["init"] = config.pop("pretrained")
    config["data"]["cut_seed"] = config["data"].pop("subset_seed")
    config["data"]["residence"] = "device" if config["data"].pop("on_device") else "host"
    parallel = config["parallel"]
    parallel |= {"how": parallel.pop("spmd"), "cores": parallel.pop("cpu_threads"), "native": parallel.pop("ops")}
    for stage in config["method"]["stages"].values():
        for old, new in NEW_ENTRIES.items():
            if new in stage:
                stage[old] = stage.pop(new)
        if "order" in stage:
            stage["order"]["name"] = "balanced" if stage["order"]["name"] == "class_balanced" else "natural"
    return config


def test_the_config_of_an_older_run_is_that_of_today_in_other_words():
    today = parse(["main", "--config=digits_lt.py:method=crt"]).config.to_dict()
    config, renamed = old_names.with_new_names(old_config())
    assert config == today
    assert {f.old for f in fields.FIELDS.values() if f.old} <= renamed.keys()
    assert renamed["method.stages.plain.trains"] == "method.stages.plain.lr_multipliers"
    assert old_names.with_new_names(today) == (today, {})
    assert differing_keys(json.loads(json.dumps(old_config())), today) == ([], [])


def test_the_config_of_an_older_run_is_left_as_it_is():
    before = old_config()
    old_names.with_new_names(before)
    assert before == old_config()


@pytest.mark.parametrize(
    "config",
    [{}, {"data": 5, "parallel": None}, {"method": 1}, {"method": {"stages": []}}, {"method": {"stages": {"a": 1}}},
     {"method": {"stages": {"a": {"order": 1, "sampler": {"name": []}}}}}, {"accumulate": {"a": 1}}],
)  # fmt: skip
def test_configs_that_no_run_writes_raise_nothing(config):
    old_names.with_new_names(config)
