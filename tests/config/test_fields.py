"""The declarations of fields, and what is made of them."""

import json

import pytest

from unimix_jax.config import check, default, fields, parse, shipped_configs, use_method, use_source
from unimix_jax.config.compare import differing_keys, flat
from unimix_jax.data import longtail, sources
from unimix_jax.errors import UserError
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.training import devices

# The default config as it was before fields were declared, with the new names and fields.
DEFAULT = {
    "seed": 0,
    "replicates": 1,
    "epochs": 200,
    "batch_size": 128,
    "grad_accum_steps": 1,
    "steps_per_dispatch": 0,
    "eval_batch_size": 500,
    "network": "resnet32",
    "network_options": {},
    "dtype": "float32",
    "remat": False,
    "pretrained": "",
    "test_prior": "uniform",
    "measures": (),
    "log_every": 50,
    "eval_every": 5,
    "loggers": ("jsonl", "progress"),
    "data": {
        "source": "",
        "imbalance": 100.0,
        "profile": "exp",
        "subset_seed": 0,
        "split_seed": 0,
        "on_device": False,
        "augment": ("crop", "flip", "jitter"),
        "augment_options": {},
        "pad": 4,
        "flip": True,
        "jitter": (0.0, 0.0, 0.0),
    },
    "optim": {
        "name": "sgd",
        "options": {},
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "decay_biases_and_norms": True,
        "warmup_epochs": -1.0,
        "schedule": "steps",
        "schedule_options": {},
        "decay_at": (0.8, 0.9),
        "decay_factor": 0.01,
    },
    "parallel": {
        "devices": 0,
        "timeout": 300.0,
        "notice": 0.0,
        "spmd": "shard_map",
        "cpu_threads": 0,
        "ops": "auto",
        "deterministic": False,
        "batch_norm": "global",
    },
    "checkpoint": {"every": 5, "seconds": -1.0, "keep": 2},
    "method": {},
}
# What photographs change of it and add to it.
PHOTOGRAPHS = {
    "eval_batch_size": 100,
    "data.source": "photographs",
    "data.imbalance": 1.0,
    "data.pad": 0,
    "data.jitter": (0.4, 0.4, 0.4),
    "data.dir": "",
    "data.train_list": "",
    "data.validation_list": "",
    "data.test_list": "",
    "data.test_share": 0.2,
    "data.validation_share": 0.1,
    "data.image_size": 224,
    "data.resize": 256,
    "data.min_area": 0.08,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "data.skip_unreadable": False,
    "data.layout": "auto",
    "data.skip_other_files": False,
    "data.max_megapixels": 179.0,
    "data.threads": 0,
    "data.workers": 0,
    "optim.weight_decay": 1e-4,
    "optim.warmup_epochs": 0.0,
}
CIFAR = {"data.dir": "", "data.download": False, "data.validation_per_class": 0}
SOURCES = {
    "photographs": PHOTOGRAPHS,
    "cifar10": {"data.source": "cifar10", **CIFAR},
    "cifar100": {"data.source": "cifar100", **CIFAR},
    "arrays": {"data.source": "arrays", "data.file": ""},
    "digits": {"data.source": "digits", "data.imbalance": 20.0},
}
# What may differ when a run goes on: numbers stay the same; or the digests of the data are compared.
NEUTRAL = {
    "data.on_device", "data.threads", "data.workers", "eval_every", "log_every", "measures", "loggers",
    "parallel.cpu_threads", "parallel.ops", "parallel.spmd", "remat", "steps_per_dispatch", "checkpoint.every",
    "checkpoint.seconds", "parallel.deterministic", "parallel.devices", "parallel.timeout", "parallel.notice",
    "checkpoint.keep",
}  # fmt: skip
SEEN_IN_DATA = {
    "data.dir", "data.download", "data.file", "data.layout", "data.max_megapixels", "data.skip_other_files",
    "data.skip_unreadable", "data.test_list", "data.train_list", "data.validation_list",
}  # fmt: skip


def typed(config):
    """The leaves of a config with their types: 1 is not 1.0."""
    return {name: (type(value), value) for name, value in flat(config).items()}


def test_the_default_config_is_that_of_before():
    config = default().to_dict()
    assert typed(config) == typed(DEFAULT)
    assert config["method"] == {}


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_has_the_fields_of_before(source):
    config = default()
    use_source(config, source)
    assert typed(flat(config.to_dict())) == typed(flat(DEFAULT) | SOURCES[source])


def test_every_field_is_declared_in_full():
    for field in fields.FIELDS.values():
        assert field.help.endswith("."), field.name
        assert field.bound if isinstance(field.bound, str) else field.bound.words, field.name
        assert field.resume in (fields.FIXED, fields.FREE, fields.SEEN_IN_DATA), field.name
        assert set(field.sources) | set(field.by_source) <= SOURCES.keys(), field.name
    assert set(flat(DEFAULT)) | set().union(*SOURCES.values()) == fields.FIELDS.keys()


@pytest.mark.parametrize(
    ("field", "values"),
    [("data.profile", longtail.PROFILES), ("parallel.spmd", devices.SPMD), ("data.source", (*sources.SOURCES,))],
)
def test_choices_are_those_of_the_code_that_reads_the_field(field, values):
    if field == "data.source":  # refused where it is read
        assert set(values) == SOURCES.keys()
    else:
        assert fields.FIELDS[field].bound.words == " or ".join(values)


def test_a_hint_and_an_old_name_belong_to_one_field():
    hints = [hint for field in fields.FIELDS.values() for hint in field.hints]
    old = [field.old for field in fields.FIELDS.values() if field.old]
    lasts = [name.split(".")[-1] for name in fields.FIELDS]
    assert len(hints) == len(set(hints))
    assert not set(hints) & set(lasts)
    assert not set(old) & (fields.FIELDS.keys() | set(hints))


@pytest.mark.parametrize("source", SOURCES)
def test_every_default_is_within_its_bounds(source):
    config = default()
    use_source(config, source)
    use_method(config, "erm")
    check(config)


def test_what_may_differ_at_resume_is_that_of_before():
    free = {field.name for field in fields.FIELDS.values() if field.resume == fields.FREE}
    assert free == NEUTRAL
    assert {f.name for f in fields.FIELDS.values() if f.resume not in (fields.FREE, fields.FIXED)} == SEEN_IN_DATA


def test_configs_are_compared_by_what_changes_numbers():
    old = {"seed": 0, "data": {"dir": "a", "imbalance": 10.0}, "checkpoint": {"every": 1}, "t": [0.8, 0.9], "gone": 1}
    new = {"seed": 1, "data": {"dir": "b", "imbalance": 10.0}, "checkpoint": {"every": 2}, "t": (0.8, 0.9), "new": 1}
    assert differing_keys(old, new) == (["gone", "new", "seed"], ["checkpoint.every", "data.dir"])


@pytest.mark.parametrize("name", shipped_configs())
def test_help_of_a_config_lists_every_field_with_value_and_help(name):
    config, text = parse(["main", f"--config={name}"]).config, parse(["main", f"--config={name}", "--help"])
    lines = text.splitlines()
    for dotted, value in flat(config.to_dict()).items():
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"  --config.{dotted}="))
        written = lines[at].partition("=")[2].strip("'")
        if isinstance(value, tuple):
            names = not value or isinstance(value[0], str)
            assert written == (",".join(value) if names else repr(value).replace(" ", ""))
        else:
            assert written == str(value)
        expected = fields.FIELDS[dotted].help if dotted in fields.FIELDS else ""
        assert lines[at + 1].strip().startswith(expected)
        assert lines[at + 1].strip()


def test_help_of_a_config_has_the_values_of_the_command_line_and_its_own_fields(tmp_path):
    text = "from configs.digits_lt import get_config as digits\ndef get_config():\n    config = digits()\n"
    (tmp_path / "mine.py").write_text(text + "    config.data.mine = 3\n    return config\n")
    text = parse(["main", f"--config={tmp_path}/mine.py", "--config.epochs=7", "--help"])
    assert "  --config.epochs=7\n      Length of the run. [at least 1]\n" in text
    assert "  --config.data.mine=3\n      A field of the config file itself.\n" in text
    assert "  --config.method.stages.mixed.mixer.alpha=0.5\n      An option of unimix.\n" in text


def test_every_entry_of_a_stage_has_a_help():
    assert RECIPES["erm"]["stages"]["plain"].keys() <= fields.METHOD_ENTRIES.keys()


def test_the_list_of_help_can_be_typed_in_again():
    import shlex

    text = parse(["main", "--config=image_folder.py", "--help"])
    argv = [shlex.split(line)[0] for line in text.splitlines() if line.startswith("  --config.")]
    argv = [argument for argument in argv if not argument.startswith("--config.method.name=")]
    again = parse(["main", "--config=image_folder.py:network=resnet50", *argv]).config
    assert again.to_dict() == parse(["main", "--config=image_folder.py"]).config.to_dict()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("remat", None, "config.remat is None"),
        ("network", None, "config.network is None"),
        ("data.mean", "abc", "three numbers"),
        ("data.on_device", True, "must be false, for photographs are read from files"),
        ("data.flip", "maybe", "true or false"),
        ("pretrained", "True", "the path of a .safetensors file"),
        ("data.validation_share", 1.0, "at least 0 and below 1"),
    ],
)
def test_values_that_no_field_takes(field, value, words):
    config = parse(["main", "--config=image_folder.py"]).config
    *groups, last = field.split(".")
    group = config[groups[0]] if groups else config
    with config.ignore_type():
        group[last] = value
    with pytest.raises(UserError, match=words):
        check(config)


def test_a_config_without_a_field_or_a_stage_is_refused():
    config = json.loads(json.dumps(flat(DEFAULT)))
    assert "method" not in config
    config = default()
    with pytest.raises(UserError, match="at least one stage"):
        check(config)
    del config.epochs
    with pytest.raises(UserError, match=r"no field epochs; begin it with unimix_jax\.config\.default\(\)"):
        check(config)
