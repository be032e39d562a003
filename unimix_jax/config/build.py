"""What a run can be told: the fields of every config, the command line, and what is refused.

A config file in `configs/` is a few lines on top of `default()`. It takes arguments after a colon
(`--config=configs/cifar_lt.py:dataset=cifar10,imbalance=100`), and every field can be overridden
(`--config.optim.learning_rate=.05`). The last wins: config file, method row, arguments, overrides.
"""

import ast
import copy
import importlib.util
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from unimix_jax import cli
from unimix_jax.errors import UserError, did_you_mean, one_of
from unimix_jax.methods.recipes import RECIPES

USAGE = """\
Train a model on long-tailed images and measure its calibration.

  python -m unimix_jax.main --config=configs/digits_lt.py [--workdir=DIR] [--config.FIELD=VALUE ...]

  --config=FILE[:NAME=VALUE,...]  a config of configs/ ({configs}) or your own
  --config.FIELD=VALUE            another value for a field, such as --config.epochs=3
  --workdir=DIR                   the run directory; an interrupted run there goes on
                                  (default: a new one under runs/)
  --report=now                    write the report at the end of a run; later: say the command that does; no: neither
  --timings                       say at the end of a run where the time went
  --methods                       list the methods
  --help                          this text; the fields stand in unimix_jax/settings.py and configs/
"""


class Command(NamedTuple):
    """A parsed command line."""

    config: Any  # ConfigDict
    workdir: str | None
    name: str  # of the config file, for a new run directory
    timings: bool = False  # say where the time went
    report: str = "now"  # write the report; "later": say the command that does; "no": neither


def default():
    """Return a config with every field that all tasks have; `use_method` puts a method into it."""
    from ml_collections import ConfigDict

    config = ConfigDict()
    config.seed = 0  # of initial weights, order, partners, augmentation; not of which images are used
    config.epochs = 200  # length of the run
    config.batch_size = 128  # images a step, over all devices
    config.grad_accum_steps = 1  # parts of a device's share that go through the network in turn: less memory
    config.eval_batch_size = 500  # images a prediction step, over all devices; rounded up to a multiple of them
    config.network = "resnet32"  # a name in models/resnet.py NETWORKS
    config.dtype = "float32"  # of convolutions and activations: float32 or bfloat16
    config.remat = False  # compute activations again in the backward pass: less memory, more time
    config.pretrained = ""  # trained weights to start from: a .safetensors file with torchvision's names
    config.test_prior = (
        "uniform"  # of the data to predict: uniform, train, imbalance:R, or a file; for losses that take it
    )
    config.log_every = 50  # steps between records of the training loss
    config.eval_every = 5  # epochs between evaluations; 0 for the last step only

    config.data = ConfigDict()
    config.data.source = ""  # a name in data/sources.py SOURCES; set by the config file
    config.data.imbalance = 100.0  # largest training class / smallest
    config.data.profile = "exp"  # exp, step or pareto
    config.data.subset_seed = 0  # which images the long-tailed cut keeps; 0 gives the published subsets
    config.data.split_seed = 0  # which images are held out, where the data has no splits of its own
    config.data.on_device = False  # keep the training images on the devices, not on the host
    config.data.pad = 4  # black pixels on each side before the random crop; 0 for no crop
    config.data.flip = True  # mirror half of the training images
    config.data.jitter = (0.0, 0.0, 0.0)  # change of brightness, contrast, saturation, each in 0..1

    config.optim = ConfigDict()
    config.optim.learning_rate = 0.1  # peak
    config.optim.momentum = 0.9
    config.optim.weight_decay = 2e-4  # on every parameter, added to the gradient
    # Linear; 0 for none; -1 for the usual: 5 epochs, in runs under 50 epochs a tenth of the run.
    config.optim.warmup_epochs = -1.0
    config.optim.schedule = "steps"  # the rate falls in steps, or by the cosine to 0: cosine
    config.optim.decay_at = (0.8, 0.9)  # fractions of the run after which the rate falls
    config.optim.decay_factor = 0.01  # each time by this

    config.parallel = ConfigDict()
    config.parallel.devices = 0  # how many of this process's devices; 0 for all
    config.parallel.spmd = "shard_map"  # shard_map or pmap: the same update
    config.parallel.cpu_threads = 0  # threads of XLA on this machine; 0 for one a core; $NPROC goes before it
    # Layers by programs made for this CPU, with llvmlite: auto, where they work; cpu_kernels, or it is a mistake; xla.
    config.parallel.ops = "auto"
    config.parallel.batch_norm = "global"  # statistics of the whole batch, or of each device's share: device

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 5  # epochs
    config.checkpoint.keep = 2  # newest ones that stay, at least 2

    config.method = ConfigDict()  # a row of methods/rows.py, see use_method
    return config


def use_photographs(config) -> None:
    """Put the fields of photographs into a config, read from files and augmented as the field does it."""
    config.data.source = "photographs"
    config.data.dir = ""  # the image root, or a folder with a sub-folder a class; "" for $UNIMIX_DATA_DIR or ~/data
    config.data.train_list = ""  # list file, "path label" a line, or iNaturalist's JSON; "" for a folder
    config.data.validation_list = ""  # looked for as given, then in `dir` and its folders
    config.data.test_list = ""
    config.data.test_share = 0.2  # of each class, held out for the test where no test split is given
    config.data.validation_share = 0.1  # then also for validation
    config.data.imbalance = 1.0  # all training images; above 1, a long-tailed cut is made of them
    config.data.image_size = 224  # pixels of a side
    # Pixels of the shorter side, before the centre is cut out for evaluation: image_size * 256/224 unless it is set.
    config.data.resize = (config.data.get_ref("image_size") * 256 + 112) // 224
    config.data.min_area = 0.08  # smallest share of a photograph that a random crop takes
    config.data.pad = 0
    config.data.jitter = (0.4, 0.4, 0.4)
    config.data.mean = (0.485, 0.456, 0.406)  # of ImageNet's pixels / 255
    config.data.std = (0.229, 0.224, 0.225)
    config.data.skip_unreadable = False  # leave damaged images out, found by reading all once; else stop at one
    config.data.layout = "auto"  # of `dir`: auto to see splits in it; classes where its sub-folders are classes
    config.data.skip_other_files = False  # go on where a class loses a tenth of its files, which are no images
    config.data.max_megapixels = 179.0  # of an image; a larger one counts as unreadable
    config.data.threads = 0  # that decode; 0: one a core
    config.data.workers = 0  # processes that decode instead of threads of the training process
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 0
    config.eval_batch_size = 100


def use_method(config, name: str, data: str = "", recipe: str = "") -> None:
    """Put a row into a config: its stages, and the fields of the run that it changes.

    Called last by a config file, for a row may say other things for other data.

    Args:
      config: of `default`.
      name: a key of `RECIPES`.
      data: the data set's key in `by_data`; "" for the name of the source.
      recipe: of the config file, where it has several; a row may say other things for one of them.

    Raises:
      UserError: no row has that name.
    """
    from ml_collections import ConfigDict

    row = RECIPES[one_of("method", name, RECIPES)]
    by_data = row.get("by_data", {})
    data = data or config.data.source
    for key in (data, f"{data}_{config.data.imbalance:g}", f"{data}_{recipe}"):
        row = _merged(row, by_data.get(key, {}))
    shown = {"name": name, "head": RECIPES["erm"]["head"], "posthoc": RECIPES["erm"]["posthoc"]}
    shown |= {key: row[key] for key in ("head", "posthoc") if key in row}
    # The first stage is shown with all it takes from erm, so that every option can be overridden there; the others
    # go on from it.
    first = min(row["stages"], key=lambda stage: row["stages"][stage].get("begin", 0.0))
    defaults, changes = RECIPES["erm"]["stages"]["plain"], row["stages"][first]
    factors = {**defaults["lr_multipliers"], **changes.get("lr_multipliers", {})}
    shown["stages"] = {**row["stages"], first: {**defaults, **changes, "lr_multipliers": factors}}
    config.method = ConfigDict(copy.deepcopy(shown))
    config.update(copy.deepcopy(row.get("config", {})))


def _merged(row: dict, changes: dict) -> dict:
    """Return a row with some leaves changed; the row itself stays."""
    result = dict(row)
    for key, value in changes.items():
        result[key] = _merged(row.get(key, {}), value) if isinstance(value, dict) else value
    return result


def arguments(text: str | None, **defaults: Any) -> dict[str, Any]:
    """Parse what follows the colon of --config: NAME=VALUE pairs with commas between.

    Args:
      text: such as "dataset=cifar10,imbalance=100".
      defaults: the names that are taken, with their values where `text` is silent; a value must have
        the type of its default.

    Raises:
      UserError: an unknown name, a name given twice, no "=", or another type.
    """
    values, given = dict(defaults), set()
    for pair in filter(None, (text or "").split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"config argument {pair!r} has no value; write NAME=VALUE, known: {', '.join(defaults)}")
        one_of("config argument", name, defaults)
        if name in given:
            raise UserError(f"config argument {name!r} is given twice")
        given.add(name)
        kind = type(defaults[name])
        try:
            values[name] = kind(value)
        except ValueError:
            raise UserError(f"config argument {pair!r}: {value!r} is no {kind.__name__}") from None
    return values


def parse(argv: list[str]) -> Command | str:
    """Parse a command line, argv[0] the program's name; a text if it asks for one.

    Raises:
      UserError: one sentence for anything that is wrong with it.
    """
    if cli.asks_for_help(argv):
        return USAGE.format(configs=", ".join(shipped_configs()))
    if "--methods" in argv[1:]:
        return "\n".join(f"{name:<26}{row['about']}" for name, row in RECIPES.items())
    from absl import flags
    from ml_collections import config_flags

    argv, name, text = _without_config(argv)
    path = find_config(name)
    config = _get_config(path, text)
    _make_room(argv, config)
    _check_fields(argv, config)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("timings", False, "", flag_values=values)
    flags.DEFINE_enum("report", "now", ["now", "later", "no"], "", flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None
    config = values.config
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; options begin with --, see --help")
    _drop_options_of_other_functions(config, set(config_flags.get_override_values(values["config"])))
    check(config)
    return Command(config, values.workdir, path.stem, values.timings, values.report)


def find_config(name: str) -> pathlib.Path:
    """Return the file that --config names: as given, else one of the shipped configs of that name.

    Raises:
      UserError: it is not there, or not a Python file.
    """
    path = pathlib.Path(name)
    if path.is_file():
        if path.suffix != ".py":
            raise UserError(f"--config names {name}, which is not a Python file (.py)")
        return path
    tail = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for root in _config_roots():
        if tail.name and (found := root / tail.with_suffix(".py")).is_file():
            return found
    what = "is a folder" if path.is_dir() else "is not there"
    raise UserError(f"--config names {name}, which {what}; shipped: {', '.join(shipped_configs())}")


def shipped_configs() -> list[str]:
    """Return the names of the configs that come with the project."""
    return sorted({path.name for root in _config_roots() for path in root.glob("[!_]*.py")})


def check(config) -> None:
    """Refuse values out of range before anything is loaded or compiled.

    Raises:
      UserError: the first field that is wrong, its value, and what would be right.
    """
    photographs = _PHOTOGRAPHS if config.get("data", {}).get("source") == "photographs" else {}
    for field, (right, words) in (_RANGES | photographs).items():
        value = config
        try:
            for part in field.split("."):
                value = value[part]
        except (KeyError, TypeError):
            raise UserError(f"the config has no field {field}; begin it with unimix_jax.config.default()") from None
        try:
            wrong = value is None or not right(value)
        except TypeError:  # another type than that of the default
            wrong = True
        if wrong:
            raise UserError(f"config.{field} is {value!r}; it must be {words}")
    if photographs:
        _check_photographs(config.data)


def _check_photographs(data) -> None:
    """Refuse fields of photographs that do not go together."""
    if data.resize < data.image_size:
        raise UserError(
            f"config.data.resize is {data.resize}, less than config.data.image_size, {data.image_size}; an evaluation "
            "cuts its centre out of the resized image"
        )
    if data.test_share + data.validation_share > 0.5:
        raise UserError("config.data.test_share and validation_share are more than .5 together; training keeps half")


def _in(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, " or ".join(choices)


def _at_least(least: float, words: str = "") -> tuple[Callable[[Any], bool], str]:
    return lambda value: math.isfinite(value) and value >= least, words or f"at least {least:g}"


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda v: 0 <= v < 2**32, "in 0..4294967295"),
    "epochs": _at_least(1),
    "batch_size": _at_least(1),
    "grad_accum_steps": _at_least(1),
    "eval_batch_size": _at_least(1),
    "dtype": _in("float32", "bfloat16"),
    "log_every": _at_least(1),
    "eval_every": _at_least(0, "a number of epochs, or 0 for the last step only"),
    "data.imbalance": _at_least(
        1, "the largest class divided by the smallest, at least 1 (where a source gives its inverse, .01, use 100)"
    ),
    "data.subset_seed": (lambda v: 0 <= v < 2**32, "in 0..4294967295"),
    "data.split_seed": (lambda v: 0 <= v < 2**32, "in 0..4294967295"),
    "data.profile": _in("exp", "step", "pareto"),
    "data.on_device": (lambda v: isinstance(v, bool), "true or false"),
    "data.pad": _at_least(0),
    "data.jitter": (
        lambda v: len(v) == 3 and all(isinstance(x, int | float) and 0 <= x <= 1 for x in v),
        "three numbers in 0..1: brightness, contrast, saturation",
    ),
    "optim.schedule": _in("steps", "cosine"),
    "optim.learning_rate": (lambda v: math.isfinite(v) and v > 0, "above 0"),
    "optim.momentum": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "optim.weight_decay": _at_least(0),
    "optim.warmup_epochs": (
        lambda v: math.isfinite(v) and (v >= 0 or v == -1),
        "a number of epochs, 0 for none, or -1 for the usual: 5, or a tenth of a run under 50 epochs",
    ),
    "optim.decay_at": (
        lambda v: all(isinstance(x, int | float) and 0 < x <= 1 for x in v) and list(v) == sorted(v),
        "rising fractions of the run, such as (0.8,0.9)",
    ),
    "optim.decay_factor": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "parallel.devices": _at_least(0, "a number of devices, or 0 for all"),
    "parallel.cpu_threads": _at_least(0, "a number of threads, or 0 for all"),
    "parallel.spmd": _in("shard_map", "pmap"),
    "parallel.ops": _in("auto", "cpu_kernels", "xla"),
    "parallel.batch_norm": _in("global", "device"),
    "checkpoint.every": _at_least(1, "at least 1 epoch"),
    "checkpoint.keep": _at_least(2, "at least 2, for one checkpoint may be damaged"),
    "method.stages": (lambda v: len(v) > 0, "at least one stage"),
}


_PHOTOGRAPHS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.test_share": (lambda v: 0 <= v < 1, "a share of each class, at least 0 and below 1"),
    "data.validation_share": (lambda v: 0 <= v < 1, "a share of each class, at least 0 and below 1"),
    "data.image_size": _at_least(1),
    "data.resize": _at_least(1),
    "data.layout": _in("auto", "classes"),
    "data.skip_other_files": (lambda v: isinstance(v, bool), "true or false"),
    "data.max_megapixels": (lambda v: 0 < v <= 10**5, "a number of megapixels above 0, at most 100000"),
    "data.min_area": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "data.mean": (lambda v: _numbers(v, 3), "three numbers"),
    "data.std": (lambda v: _numbers(v, 3) and min(v) > 0, "three numbers above 0"),
    "data.threads": _at_least(0, "a number of threads, or 0 for one a core"),
    "data.workers": _at_least(0, "a number of processes, or 0 for threads"),
    "data.on_device": (lambda v: v is False, "false, for photographs are read from files"),
}


def _numbers(values: Any, length: int) -> bool:
    return len(values) == length and all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _config_roots() -> tuple[pathlib.Path, ...]:
    here = pathlib.Path(__file__).resolve().parents[1]
    return here / "configs", here.parent / "configs"  # an installed wheel; a clone


def _without_config(argv: list[str]) -> tuple[list[str], str, str | None]:
    """Take --config=NAME:TEXT out of a command line; return the rest, NAME and TEXT (None without a colon)."""
    argv, value = list(argv), None
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            value = value if equals else argv.pop(i + 1) if i + 1 < len(argv) else ""
            del argv[i]
            break
    else:
        value = None
    if not value:
        raise UserError(f"--config is missing; give one of {', '.join(shipped_configs())}, or your own")
    name, colon, text = value.partition(":")
    return argv, name, text if colon else None


def _get_config(path: pathlib.Path, text: str | None):
    """Run a config file and return what its get_config() makes of `text`."""
    from ml_collections import ConfigDict

    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no get_config(); see the shipped configs")
        config = module.get_config() if text is None else module.get_config(text)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{path} is not Python: {' '.join(str(error).split())}") from None
    except Exception as error:  # a config is the user's program and may raise anything
        raise UserError(f"{path} fails with {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict) or "stages" not in config.get("method", {}):
        raise UserError(
            f"get_config() in {path} must return a config made by unimix_jax.config.default() and given a method by "
            "use_method()"
        )
    return config


def _drop_options_of_other_functions(config, overridden: set[str]) -> None:
    """Where the command line names another function, drop what the row says of the one it had."""
    row = RECIPES.get(config.method.get("name"), {})
    groups = [("method", config.method, row)]
    groups += [(f"method.stages.{s}", v, row.get("stages", {}).get(s, {})) for s, v in config.method.stages.items()]
    for path, entries, said in groups:
        for kind, entry in entries.items():
            named = f"{path}.{kind}.name" in overridden
            if not named or not isinstance(said.get(kind, {}), dict) or entry.name == said.get(kind, {}).get("name"):
                continue
            with entry.unlocked():
                for option in [k for k in entry if k != "name" and f"{path}.{kind}.{k}" not in overridden]:
                    del entry[option]


def _make_room(argv: list[str], config) -> None:
    """Add options of a method that the command line gives and its row does not show.

    A later stage shows only what it changes, and another function has other options; `build.build` refuses what
    its function does not take.
    """
    for argument in argv:
        field, equals, text = argument.partition("=")
        path = field.removeprefix("--config.").split(".")
        stage = path[:2] == ["method", "stages"] and len(path) > 3 and path[2] in config.method.stages
        if not equals or not (
            (stage and path[3] in RECIPES["erm"]["stages"]["plain"]) or path[:2] == ["method", "posthoc"]
        ):
            continue
        group = config
        with config.unlocked():
            for part in path[:-1]:
                if part not in group:
                    group[part] = type(config)()
                group = group[part]
                if not hasattr(group, "keys"):
                    break
            else:
                if path[-1] not in group:
                    group[path[-1]] = _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _check_fields(argv: list[str], config) -> None:
    """Refuse --config.FIELD for a field that the config has not."""
    for argument in argv:
        field = argument.partition("=")[0].removeprefix("--config.")
        if field == argument.partition("=")[0]:
            continue
        value = config
        for part in field.split("."):
            if not hasattr(value, "keys") or part not in value:
                from unimix_jax.training.rundir import flat

                hint = did_you_mean(field, flat(config.to_dict()))
                raise UserError(f"unknown config field {field!r}{hint}; the fields stand in unimix_jax/settings.py")
            value = value[part]
        if field == "method.name":
            raise UserError("a method is chosen by its name after the colon, as in --config=FILE:method=NAME")
