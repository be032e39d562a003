import json

import pytest

from unimix_jax import config as configs
from unimix_jax.config import arguments, find_config, shipped_configs
from unimix_jax.errors import UserError
from unimix_jax.methods.recipes import RECIPES

DIGITS = "--config=configs/digits_lt.py"


def parse(*argv):
    return configs.parse(["main", *argv])


def test_the_last_of_file_row_argument_and_override_wins():
    command = parse(f"{DIGITS}:imbalance=50,method=erm", "--config.data.imbalance=10", "--config.optim.learning_rate=1")
    assert command.config.method.name == "erm"
    assert command.config.data.imbalance == 10.0
    assert command.config.optim.learning_rate == 1.0
    assert parse(f"{DIGITS}:imbalance=50").config.data.imbalance == 50.0
    assert parse(DIGITS).config.data.imbalance == 20.0
    assert command.name == "digits_lt"


def test_every_leaf_of_a_row_can_be_overridden():
    config = parse(
        DIGITS, "--config.method.stages.mixed.mixer.alpha=.8", "--config.method.stages.plain.begin=0.9"
    ).config
    assert config.method.stages.mixed.mixer.alpha == 0.8
    assert config.method.stages.plain.begin == 0.9
    assert RECIPES["unimix_bayias"]["stages"]["mixed"]["mixer"]["alpha"] == 0.5


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_stage_of_every_row_shows_every_option(name):
    stages = parse(f"{DIGITS}:method={name}").config.method.stages
    first = min(stages, key=lambda stage: stages[stage].get("begin", 0.0))
    assert set(stages[first]) == set(RECIPES["erm"]["stages"]["plain"])


def test_any_loss_goes_with_any_mixer_from_the_command_line():
    stages = parse(f"{DIGITS}:method=mixup", "--config.method.stages.mixed.loss.name=bayias").config.method.stages
    assert stages.mixed.loss.name == "bayias"
    assert stages.mixed.mixer.name == "mixup"


def test_another_function_comes_with_its_options_from_the_command_line():
    config = parse(
        DIGITS + ":method=crt",
        "--config.method.stages.plain.loss.name=focal",
        "--config.method.stages.plain.loss.gamma=2.",
        "--config.method.stages.plain.class_weight.name=effective_number_weights",
        "--config.method.stages.plain.class_weight.beta=.99",
        "--config.method.stages.retrained.batch_norm=frozen",
        "--config.method.stages.retrained.lr_multipliers.classifier=.5",
        "--config.method.posthoc.name=tau_norm",
        "--config.method.posthoc.scan=false",
    ).config
    assert config.method.stages.plain.loss.to_dict() == {"name": "focal", "gamma": 2.0}
    assert config.method.stages.plain.class_weight.beta == 0.99
    assert config.method.stages.retrained.batch_norm == "frozen"
    assert config.method.stages.retrained.lr_multipliers.to_dict() == {"backbone": 0.0, "classifier": 0.5}
    assert config.method.posthoc.to_dict() == {"name": "tau_norm", "scan": False}
    posthoc = parse(DIGITS + ":method=logit_adjustment_posthoc", "--config.method.posthoc.name=tau_norm").config
    assert posthoc.method.posthoc.to_dict() == {"name": "tau_norm"}


@pytest.mark.parametrize("field", ["plain.reduction.name", "plan.loss.name", "plain.los.name"])
def test_there_is_no_room_for_what_is_no_option(field):
    with pytest.raises(UserError, match="unknown config field"):
        parse(DIGITS + ":method=erm", f"--config.method.stages.{field}=x")


def test_an_override_of_a_stage_that_is_not_there_gets_the_names_of_the_stages():
    with pytest.raises(UserError, match="method 'erm' has no stage 'mixed'; its stages: plain$"):
        parse(DIGITS + ":method=erm", "--config.method.stages.mixed.loss.name=focal")
    with pytest.raises(UserError, match=r"has no stage 'mixd' .did you mean 'mixed'.*; its stages: mixed, plain$"):
        parse(DIGITS + ":method=unimix", "--config.method.stages.mixd.loss.name=focal")


def test_naming_another_function_drops_the_options_of_the_one_before():
    config = parse(
        DIGITS, "--config.method.stages.mixed.mixer.name=none", "--config.method.stages.mixed.pair_sampler.name=none"
    ).config
    assert config.method.stages.mixed.mixer.to_dict() == {"name": "none"}
    assert config.method.stages.mixed.pair_sampler.to_dict() == {"name": "none"}


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_parses(name):
    assert parse(f"--config={name}").name == name.removesuffix(".py")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_row_fits_every_shipped_config(name):
    for file in shipped_configs():
        config = parse(f"--config={file}:method={name}").config
        assert config.method.name == name
        assert set(config.method.stages) == set(RECIPES[name]["stages"])


def test_a_row_says_other_things_for_other_data():
    def smoothed(text):
        return parse(f"--config=cifar_lt.py:method=mislas,{text}").config.method.stages.smoothed

    assert smoothed("dataset=cifar10,imbalance=10").loss.head == 0.1
    assert smoothed("dataset=cifar10,imbalance=100").loss.head == 0.3
    assert smoothed("dataset=cifar10,imbalance=200").loss.head == 0.3
    assert smoothed("dataset=cifar100,imbalance=50").batch_norm == "train"
    assert smoothed("dataset=cifar100,imbalance=100").loss.tail == 0.1
    assert smoothed("dataset=cifar100,imbalance=100").lr_multipliers.to_dict() == {
        "backbone": 0,
        "classifier": 0.2,
        "scale": 1,
    }


def test_a_row_changes_fields_of_the_run_and_the_command_line_wins():
    assert parse("--config=cifar_lt.py").config.batch_size == 128
    assert parse("--config=cifar_lt.py:method=unimix_bayias_code").config.batch_size == 64
    assert parse("--config=cifar_lt.py:method=unimix_bayias_code", "--config.batch_size=32").config.batch_size == 32
    assert parse("--config=cifar_lt.py:method=mislas").config.optim.decay_factor == 0.1


def test_methods_are_listed_a_line_each():
    lines = parse("--methods").splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)


def test_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/digits_lt.py", "digits_lt.py", "digits_lt"):
        assert find_config(name).name == "digits_lt.py"
    (tmp_path / "digits_lt.py").write_text("")
    assert find_config("digits_lt.py").resolve() == tmp_path / "digits_lt.py"


@pytest.mark.parametrize("name", ["configs", "configs/", "."])
def test_a_folder_is_no_config(name):
    with pytest.raises(UserError, match="which is a folder"):
        find_config(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"dataset": "cifar10", "imbalance": 100.0}),
        (None, {"dataset": "cifar10", "imbalance": 100.0}),
        ("imbalance=10", {"dataset": "cifar10", "imbalance": 10.0}),
        ("dataset=cifar100,imbalance=1e2", {"dataset": "cifar100", "imbalance": 100.0}),
    ],
)
def test_arguments(text, expected):
    assert arguments(text, dataset="cifar10", imbalance=100.0) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imbalanse=10", "unknown config argument 'imbalanse' .did you mean 'imbalance'"),
        ("imbalance", "has no value"),
        ("imbalance=ten", "'ten' is no float"),
        ("imbalance=1,imbalance=2", "given twice"),
    ],
)
def test_wrong_arguments(text, message):
    with pytest.raises(UserError, match=message):
        arguments(text, dataset="cifar10", imbalance=100.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed is -1"),
        ("epochs=0", "epochs is 0; it must be at least 1"),
        ("batch_size=0", "batch_size is 0"),
        ("dtype=float16", "must be float32 or bfloat16"),
        ("eval_every=-1", "or 0 for the last step only"),
        ("data.imbalance=0.5", "at least 1"),
        ("data.imbalance=nan", "at least 1"),
        ("data.profile=linear", "must be exp or step or pareto"),
        ("data.on_device=disk", "data.on_device is 'disk'; it must be true or false"),
        ("optim.learning_rate=0", "above 0"),
        ("optim.momentum=1", "below 1"),
        ("optim.warmup_epochs=-2", "or -1 for the usual"),
        ("optim.warmup_epochs=nan", "or -1 for the usual"),
        ("optim.decay_at=(0.9,0.8)", "rising fractions"),
        ("optim.decay_at=abc", "rising fractions"),
        ("parallel.spmd=xmap", "must be shard_map or pmap"),
        ("parallel.ops=yes", "must be auto or cpu_kernels or accelerator or pallas or xla"),
        ("parallel.cpu_threads=-1", "a number of threads, or 0 for all"),
        ("checkpoint.keep=1", "at least 2"),
    ],
)
def test_values_out_of_range(override, message):
    with pytest.raises(UserError, match=message):
        parse(DIGITS, f"--config.{override}")


IMAGES = "--config=image_folder.py"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param([], 256, id="the field's"),
        pytest.param(["--config.data.image_size=224"], 256, id="exactly at 224"),
        pytest.param(["--config.data.image_size=64"], 73, id="it follows the size"),
        pytest.param(["--config.data.image_size=448"], 512, id="to larger ones too"),
        pytest.param(["--config.data.image_size=64", "--config.data.resize=64"], 64, id="unless it is set"),
        pytest.param(["--config.data.resize=300", "--config.data.image_size=64"], 300, id="in any order"),
    ],
)
def test_the_resize_of_an_evaluation_follows_the_size_of_the_images(argv, expected):
    assert parse(IMAGES, *argv).config.data.resize == expected


@pytest.mark.parametrize(
    ("fields", "argv", "expected"),
    [
        ("config.data.image_size = 64", [], 73),
        ("config.data.image_size = 64", ["--config.data.image_size=32"], 37),
        ("config.data.resize = 80", ["--config.data.image_size=64"], 80),
    ],
)
def test_the_resize_of_a_config_file_is_kept_and_its_size_followed(tmp_path, fields, argv, expected):
    lines = ["config = default()", "use_photographs(config)", fields]
    lines += ['use_method(config, "erm")', "return config"]
    text = "from unimix_jax.config import default, use_method, use_photographs\ndef get_config():\n" + "".join(
        f"    {line}\n" for line in lines
    )
    (tmp_path / "mine.py").write_text(text)
    config = parse(f"--config={tmp_path / 'mine.py'}", *argv).config
    assert config.data.resize == expected
    assert json.loads(config.to_json_best_effort())["data"]["resize"] == expected


@pytest.mark.parametrize("name", ["unimix", "unimix_bayias", "unimix_bayias_las"])
@pytest.mark.parametrize(
    ("file", "alpha"),
    [
        ("imagenet_lt.py:recipe=paper", 1.0),  # E: that of mixup and Remix; C.1: theirs is 1
        ("imagenet_lt.py:recipe=usual", 0.5),
        ("inat2018.py:recipe=paper", 1.0),
        ("inat2018.py:recipe=usual", 0.5),
        ("places_lt.py:network=resnet152", 0.5),
        ("cifar_lt.py:dataset=cifar100", 0.5),
    ],
)
def test_the_alpha_of_unimix_is_the_supplement_s_for_each_data_set(name, file, alpha):
    assert parse(f"--config={file},method={name}").config.method.stages.mixed.mixer.alpha == alpha


def test_other_rows_keep_their_alpha_and_the_command_line_wins():
    def alpha(method, *argv):
        return parse(f"--config=imagenet_lt.py:method={method}", *argv).config.method.stages.mixed.mixer.alpha

    assert alpha("mixup") == alpha("remix") == 1.0
    assert alpha("mislas") == 0.2
    assert alpha("unimix_bayias_code") == 0.8
    assert alpha("unimix", "--config.method.stages.mixed.mixer.alpha=.3") == 0.3
    smoothed = parse("--config=imagenet_lt.py:method=unimix_bayias_las").config.method.stages.smoothed
    assert smoothed.lr_multipliers.classifier == 0.05
