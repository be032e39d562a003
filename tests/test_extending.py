"""The parts of docs/extending.md are named by a config and trained with; no file of the project knows them."""

import functools
import importlib
import pathlib
import re
import shlex
import shutil
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from unimix_jax import main, metrics, registry, storage
from unimix_jax.config import parse
from unimix_jax.errors import UserError
from unimix_jax.methods import build
from unimix_jax.models import heads
from unimix_jax.training import input as training_input
from unimix_jax.training import schedules
from unimix_jax.training.devices import distribute, replicate
from unimix_jax.training.setup import prepare
from unimix_jax.training.step import StepInputs, first_state, predict_step, train_step

from . import quick

TEXT = (pathlib.Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
MODULES = {match[1]: match[0] for match in re.finditer(r"# (my_\w+)\.py\n.*?(?=```)", TEXT, flags=re.S)}
COMMANDS = [shlex.split(block) for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.S)]
FILE = "test_extending.py"
SMALL_VIT = ["network=vit_s16"] + [
    f"network_options.{option}" for option in ("patch_size=4", "width=16", "depth=1", "heads=2")
]
DIGITS = ["main", "--config=digits_lt.py:method=unimix_bayias", "--config.epochs=1"]
# The random numbers of the mixer and of the augmentations are most of a program, and eight devices a part: they are
# left out where the network, the head or the measure is what is looked at.
SMALL_PROGRAM = ["--config.data.augment=", "--config.parallel.devices=1", "--config.eval_every=0"]
PLAIN = ["main", "--config=digits_lt.py:method=erm", "--config.epochs=1", *SMALL_PROGRAM]


class ConvNeXt(nn.Module):
    """A small network of another kind, without batch statistics."""

    num_classes: int
    head: str = "linear"

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(16, (2, 2), (2, 2))(images)
        y = nn.LayerNorm()(nn.Conv(16, (3, 3), feature_group_count=16)(x))
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(y)))
        return heads.build(self.head, self.num_classes)(nn.LayerNorm()(x.mean(axis=(1, 2))))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with the document's modules, as the current one, and a module of this file's parts."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])
    importlib.invalidate_caches()
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


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


@pytest.mark.usefixtures("mine")
def test_a_stage_may_have_a_schedule_of_the_user_s():
    argv = ["--config.method.stages.retrained.schedule.name=my_schedules:one_cycle"]
    argv += ["--config.method.stages.retrained.schedule.learning_rate=0.5", "--config.epochs=2"]
    config = parse(["main", "--config=digits_lt.py:method=crt", *argv]).config
    stage = prepare(config, pathlib.Path("unwritten")).method.stages[1]
    rates = [stage.schedule(step) for step in range(stage.last - stage.first)]
    assert max(rates) == pytest.approx(0.5, rel=0.05)
    assert rates[-1] == 0


def test_a_stage_may_fall_in_steps_with_their_defaults_or_its_own():
    argv = [f"--config.method.stages.retrained.schedule.{x}" for x in ("name=steps", "learning_rate=.5")]
    for more, expected in (
        ([], (0.8, 0.9)),
        (["--config.method.stages.retrained.schedule.decay_at=(.5,.6)"], (0.5, 0.6)),
    ):
        config = parse(["main", "--config=digits_lt.py:method=crt", *argv, *more]).config
        assert registry.option(methods_schedule(config), "decay_at") == expected


def methods_schedule(config):
    """The schedule of the last stage."""
    recipe = config.method.to_dict()
    built = build.build(recipe, np.array([3, 2]), name="crt", epochs=1, steps_per_epoch=5, test_prior=np.full(2, 0.5))
    return built.stages[-1].schedule


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


def two_steps(experiment, devices):
    """The parameters after two steps on the first devices, and their losses."""
    stage = experiment.method.stages[0]
    step = functools.partial(train_step, stage=stage, network=experiment.network, config=experiment.step_config)
    placed = jax.devices()[:devices]
    compiled = distribute(step, placed)
    state = replicate(first_state(experiment.variables, experiment.step_config.optimiser), placed)
    batches = training_input.dispatches(experiment, 0)
    losses = []
    for _ in range(2):
        _, _, batch = next(batches)
        inputs = StepInputs(np.uint32(0), np.float32(0.01), stage.class_weight)
        state, sums = compiled(state, batch, replicate(inputs, placed))
        losses.append(float(sums["loss"][0]) / float(sums["loss"][1]))
    return jax.device_get(state.params), losses


@pytest.mark.slow
@pytest.mark.usefixtures("mine", "quick_compilation")
@pytest.mark.parametrize("network", ["my_vit:ViT", "my_networks:ConvNeXt", "my_networks:Synchronised"])
def test_networks_from_outside_train_alike_on_one_and_on_eight_devices(network):
    # A large eps: AdamW divides by the root of squared gradients, of which small ones differ by the order of sums.
    argv = [f"--config.network={network}", "--config.optim.name=adamw", "--config.optim.options.eps=0.1"]
    if network == "my_vit:ViT":
        argv += ["--config.network_options.depth=1"]
    # One program draws augmentations, another one mixes: their random numbers are most of a program.
    if network == "my_networks:ConvNeXt":
        argv += ["--config.data.augment=random_erasing,my_augmentations:noise"]
    else:
        argv += ["--config.data.augment="]
    base = DIGITS if network == "my_networks:Synchronised" else PLAIN[:3]
    trained = {}
    for count in (1, 8):
        experiment = prepare(
            parse([*base, *argv, f"--config.parallel.devices={count}"]).config, pathlib.Path("unwritten")
        )
        assert experiment.step_config.dropout == (network == "my_vit:ViT")
        trained[count] = two_steps(experiment, count)
    start = experiment.variables["params"]
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(trained[1][0]), jax.tree.leaves(start), strict=True)]
    assert min(moved) > 0
    largest = max(moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), trained[8][0], trained[1][0])
    np.testing.assert_allclose(trained[8][1], trained[1][1], rtol=1e-5)


class Dropped(nn.Module):
    """A linear network behind dropout: the smallest that draws random numbers."""

    num_classes: int
    head: str = "linear"

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1))
        return heads.build(self.head, self.num_classes)(x)


@pytest.mark.slow
@pytest.mark.usefixtures("mine")
def test_dropout_draws_other_numbers_in_each_step_and_none_in_prediction():
    """Steps at the rate 0 on one batch differ by nothing but the number of the step."""
    argv = [*PLAIN, "--config.network=my_networks:Dropped"]
    experiment = prepare(parse(argv).config, pathlib.Path("unwritten"))
    stage, config = experiment.method.stages[0], experiment.step_config
    step = quick.jit(functools.partial(train_step, stage=stage, network=experiment.network, config=config))
    _, _, batch = next(training_input.dispatches(experiment, 0))
    first = first_state(experiment.variables, config.optimiser)

    def loss(state, seed):
        state, sums = step(state, batch, StepInputs(np.uint32(seed), np.float32(0), stage.class_weight))
        return state, float(sums["loss"][0])

    second, of_first = loss(first, 0)
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)
    assert len({of_first, loss(second, 0)[1], loss(first, 1)[1]}) == 3
    assert loss(first, 0)[1] == of_first
    predict = quick.jit(functools.partial(predict_step, network=experiment.network, config=config))
    variables = {"params": first.params, "batch_stats": first.batch_stats}
    np.testing.assert_array_equal(predict(variables, batch.image), predict(variables, batch.image))
    bias, kernel = sorted(map(np.asarray, jax.tree.leaves(first.params)), key=np.ndim)
    flat = (batch.image / 255.0 - config.mean) / config.std
    np.testing.assert_allclose(
        predict(variables, batch.image), flat.reshape(len(flat), -1) @ kernel + bias, rtol=1e-4, atol=1e-5
    )


class Headless(nn.Module):
    """A network whose last layer has another name."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="last")(images.reshape(len(images), -1))


class BatchNormAndDropout(nn.Module):
    """A network that cannot be trained image by image."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1))
        return heads.build("linear", self.num_classes)(nn.Dropout(0.5, deterministic=not train)(x))


class HeadWithoutLinear(nn.Module):
    """A network whose head is a layer of Flax."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="head")(images.reshape(len(images), -1))


class HeadIsAnArray(nn.Module):
    """A network with a parameter called head."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        return x @ self.param("head", nn.initializers.normal(), (x.shape[-1], self.num_classes))


class Unsynchronised(nn.Module):
    """A network whose statistics are those of a device's share."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), (2, 2))(images))
        return heads.build("linear", self.num_classes)(x.mean(axis=(1, 2)))


class Synchronised(nn.Module):
    """The same with statistics of the whole batch."""

    num_classes: int
    axis: str | None = None

    @nn.compact
    def __call__(self, images, train):
        norm = nn.BatchNorm(use_running_average=not train, axis_name=self.axis, use_fast_variance=False)
        return heads.build("linear", self.num_classes)(norm(nn.Conv(8, (3, 3), (2, 2))(images)).mean(axis=(1, 2)))


class Raises(nn.Module):
    """A network, and a head, with a mistake in its call."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), 7))


class Exits(nn.Module):
    """A network that ends the process."""

    num_classes: int

    def __post_init__(self):
        raise SystemExit("no licence")


class LogitsOf(nn.Module):
    """A network that returns logits of another type."""

    num_classes: int
    type: str = "bfloat16"

    @nn.compact
    def __call__(self, images, train):
        return heads.build("linear", self.num_classes)(images.reshape(len(images), -1)).astype(self.type)


class NoModule:
    """A network of another library."""

    def __init__(self, num_classes, name=""):
        pass


class Features(nn.Module):
    """A network that returns no logits."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return images.reshape(len(images), -1)


@pytest.mark.parametrize(
    ("method", "argv", "message"),
    [
        ("crt", ["network=my_networks:Headless"], "has no module named head .* stage 'retrained' of method 'crt'"),
        ("tau_norm", ["network=my_networks:Headless"], "has no module named head .* the posthoc function tau_norm"),
        ("erm", ["network=my_networks:BatchNormAndDropout"], "has batch statistics and draws random numbers"),
        ("erm", ["network=my_networks:Features"], r"must return logits \[2, 10\]"),
        ("erm", ["network_options.depht=3"], "network resnet8 takes no option 'depht'.* it takes "),
        ("erm", ["network=my_networks:Absent"], "cannot import 'my_networks:Absent'"),
        ("erm", ["network=my_exit:Anything"], "cannot import 'my_exit:Anything': SystemExit: 3"),
        ("erm", ["network=my_networks:Exits"], "network my_networks:Exits cannot be made: SystemExit: no licence"),
        ("erm", ["network=my_networks:NoModule"], "NoModule is of type NoModule; it must be a Flax module"),
        (
            "erm",
            ["method.head=my_networks:NoModule"],
            "head my_networks:NoModule is of type NoModule; it must be a Fla",
        ),
        ("erm", ["method.head=my_networks:Exits"], "head my_networks:Exits cannot be made: SystemExit: no licence"),
        ("erm", ["network=builtins:dict"], "network builtins:dict is no class of a Flax module"),
        ("erm", ["network=my_networks:Raises"], rf"fails on images of 8 x 8 x 1: Type.*, in line \d+ of .*{FILE}$"),
        ("erm", ["method.head=my_networks:Raises"], rf"head my_networks:Raises fails on .*, in line \d+ of .*{FILE}$"),
        ("ldam", ["network=my_networks:Headless"], "no attribute `head`, so it cannot have the head cosine that the"),
        ("erm", ["network=my_networks:Headless", "dtype=bfloat16"], "no attribute `dtype`, so .* the dtype bfloat16"),
        ("erm", ["network=my_networks:Headless", "remat=true"], "no attribute `remat`, so .* the remat True that"),
        (
            "erm",
            ["network=my_networks:Unsynchronised", "parallel.devices=8"],
            "no attribute `axis`, so 8 devices cannot",
        ),
        ("erm", ["network=my_networks:HeadIsAnArray"], "has a parameter named head at its top"),
        (
            "erm",
            ["network=my_networks:LogitsOf", "network_options.type=int32"],
            "logits of the type int32; they must be",
        ),
        (
            "tau_norm",
            ["network=my_networks:HeadWithoutLinear"],
            "parameters bias, kernel; .* linear/kernel and linear/b",
        ),
        (
            "tau_norm",
            ["method.head=scaled"],
            "parameters linear/bias, linear/kernel, scale; tau_norm of method 'tau_norm' nee",
        ),
        ("erm", [*SMALL_VIT, "network_options.heads=5"], "the 5 heads of the attention do not divide .* width, 16"),
        (
            "erm",
            [*SMALL_VIT, "network_options.dropout=1.5"],
            "dropout of network 'vit_s16' is 1.5; it must be a number",
        ),
        ("erm", [*SMALL_VIT, "network_options.dropout=true"], "dropout of network 'vit_s16' is True; it must be"),
        ("erm", [*SMALL_VIT, "network_options.drop_path=-.5"], "drop_path of network 'vit_s16' is -0.5; it must be"),
        (
            "erm",
            [*SMALL_VIT, "network_options.mlp_ratio=2.5"],
            "mlp_ratio of network 'vit_s16' is 2.5; .* whole number",
        ),
        ("erm", ["network_options.blocks=0"], "blocks of network 'resnet8' is 0; it must be a whole number"),
        ("manifold_mixup", ["network=my_networks:ConvNeXt"], "mixes at level 1 of the network, which has no level but"),
        ("manifold_mixup", SMALL_VIT, "mixes at level 1 of the network, which has no level but its input, 0"),
        ("manifold_mixup", ["network=my_vit:ViT"], "my_vit:ViT draws random numbers, so stage .* cannot mix inside"),
        ("erm", ["optim.name=adamww"], "unknown optimiser 'adamww' .did you mean 'adamw'"),
        ("erm", ["optim.name=adamw", "optim.options.b3=.9"], "takes no option 'b3'"),
        ("erm", ["optim.name=adam", "optim.decay_biases_and_norms=false"], "adam takes no mask of its decay"),
        ("erm", ["optim.schedule=cosin"], "unknown schedule 'cosin' .did you mean 'cosine'"),
        ("erm", ["optim.schedule=my_networks:negative"], "the schedule of config.optim is -0.2 at step 0"),
        ("erm", ["data.augment=crop,crop"], "names crop twice"),
        ("erm", ["data.augment=my_networks:halved"], "the augmentation halved returns .*; it must return .*float32"),
        ("erm", ["data.augment_options.cutout.size=3"], "unknown augmentation of config.data.augment_options 'cutout'"),
        ("erm", ["data.source=my_networks:nothing"], "returns NoneType; it must return unimix_jax.data.types.Splits"),
        ("erm", ["measures=my_networks:nothing"], "the measure my_networks:nothing returns None"),
        ("erm", ["method.head=cosin"], "unknown head 'cosin' .did you mean 'cosine'"),
    ],
)
def test_parts_that_cannot_be_used_get_a_sentence_before_the_first_step(mine, method, argv, message):
    (mine / "my_exit.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=message):
        prepare(
            parse(["main", f"--config=digits_lt.py:method={method}", *(f"--config.{a}" for a in argv)]).config,
            pathlib.Path("unwritten"),
        )


def negative(step):
    return -1.0


def halved(keys, images):
    return images[:, ::2]


def nothing(*arguments):
    return None


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("crt", ["network=my_vit:ViT", "network_options.depth=1"]),
        *((method, [*SMALL_VIT, "network_options.dropout=.1"]) for method in ("mislas", "tau_norm", "ldam")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_methods_with_stages_and_other_heads_train_networks_without_batch_statistics(mine, method, network):
    argv = [f"--config.{a}" for a in (*network, "epochs=1", "batch_size=128")] + [*SMALL_PROGRAM, "--report=no"]
    argv += ["--config.method.stages.smoothed.epochs=1"] if method == "mislas" else []
    assert main.main(["main", f"--config=digits_lt.py:method={method}", *argv, f"--workdir={method}"]) == 0
    assert storage.read_json(mine / method / "metrics.json")["test"]["images"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_logits_of_few_bits_are_measured_and_written_as_float32(mine):
    argv = [*PLAIN, "--config.network=my_networks:LogitsOf", "--report=no", "--workdir=run"]
    assert main.main(argv) == 0
    assert metrics.predictions.read_predictions(mine / "run" / "predictions.npz").logits.dtype == np.float32


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


def test_restarts_are_those_of_sgdr():
    """Against torch's CosineAnnealingWarmRestarts written out: T_0 = 2 epochs, doubled at each restart."""
    rate = functools.partial(schedules.cosine_restarts, learning_rate=0.1, steps_per_epoch=5, first_epochs=2, growth=2)
    expected, length = [], 10
    for _ in range(3):
        expected += [0.05 * (1 + np.cos(np.pi * t / length)) for t in range(length)]
        length *= 2
    np.testing.assert_allclose([rate(step) for step in range(len(expected))], expected, rtol=1e-12)
