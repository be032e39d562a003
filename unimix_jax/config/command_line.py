"""The command line of training, read once from left to right."""

import re
from typing import Any, NamedTuple

from unimix_jax import __version__, cli
from unimix_jax.config import hints, load, overrides
from unimix_jax.config.checks import check
from unimix_jax.config.listing import listing
from unimix_jax.config.overrides import Override
from unimix_jax.errors import UserError
from unimix_jax.methods.recipes import RECIPES

_USAGE = """\
Train a model on long-tailed images and measure its calibration.

  python -m unimix_jax.main --config=configs/digits_lt.py [--workdir=DIR] [--config.FIELD=VALUE ...]

  --config=FILE[:NAME=VALUE,...]  a config of configs/ or your own Python file; RUN/config.json repeats a run; a YAML
                                  file names fields and a method (docs/configs.md). Shipped:
                                  {configs}
  --config.FIELD=VALUE            another value for a field, such as --config.epochs=3
  --config=FILE --help            every field of that config, with its value and what it is
  --workdir=DIR                   the run directory; an interrupted run there goes on
                                  (default: a new one under runs/)
  --report=now                    write the report at the end of a run; later: say the command that does; no: neither
  --coordinator=HOST:PORT --processes=N --process=I
                                  this is process I of N; process 0 listens there (docs/launching.md; TPU pods, Slurm,
                                  Kubernetes and Cloud Batch are found without them)
  --timings                       say at the end of a run where the time went
  --methods                       list the methods; one is chosen by --config=FILE:method=NAME
  --version                       the version of this program
  --help                          this text
"""
_WITH_VALUE = ("workdir", "report", "coordinator", "processes", "process")
_SWITCHES = ("timings", "methods", "version")
_OPTIONS = (*_WITH_VALUE, *_SWITCHES)
_OPTION = re.compile(r"--?(?P<name>[^-=][^=]*)(=(?P<value>.*))?", re.DOTALL)


class Command(NamedTuple):
    """A parsed command line."""

    config: Any  # ConfigDict
    workdir: str | None
    name: str  # of the config file, for a new run directory
    timings: bool = False  # say where the time went
    report: str = "now"  # write the report; "later": say the command that does; "no": neither
    coordinator: str | None = None  # HOST:PORT of process 0 of several
    processes: int | None = None  # how many
    process: int | None = None  # the number of this one


class _Line(NamedTuple):
    """The parts of a command line, before anything is loaded."""

    config: str | None  # FILE:TEXT of --config
    overrides: list[Override]
    options: list[str]  # the others, for absl
    switches: set[str]  # "help", "methods", "version" where they are asked for


def usage() -> str:
    """Return the text of --help."""
    return _USAGE.format(configs=", ".join(load.shipped_configs()))


def parse(argv: list[str]) -> Command | str:
    """Parse a command line.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The command; a text if the command line asks for one.

    Raises:
      UserError: one sentence for anything that is wrong with it.
    """
    line = _split(argv[1:])
    if "methods" in line.switches:
        return "\n".join(f"{name:<26}{recipe['about']}" for name, recipe in RECIPES.items())
    if "version" in line.switches:
        return f"unimix_jax {__version__}"
    if "help" in line.switches and not line.config:
        return usage()
    if not line.config:
        raise UserError(f"--config is missing; give one of {', '.join(load.shipped_configs())}, or your own")
    name, colon, text = line.config.partition(":")
    path = load.find_config(name)
    config = overrides.apply(load.load(path, text if colon else None), line.overrides, name)
    if "help" in line.switches:
        return listing(config, name)
    flags = _parse_options(line.options)
    check(config)
    name = load.run_name(path, config)
    several = flags.coordinator, flags.processes, flags.process
    return Command(config, flags.workdir, name, flags.timings, flags.report, *several)


def _split(arguments: list[str]) -> _Line:
    """Read the arguments of a command line once; a value stands behind "=" or is the next argument.

    Returns:
      The line.

    Raises:
      UserError: an option that does not exist, an argument that is no option, or --config twice.
    """
    config, fields, options, switches = None, [], [], set()
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        if cli.asks_for_help(["", argument]):
            switches.add("help")
            continue
        option = _OPTION.fullmatch(argument)
        if option is None:
            raise UserError(f"unexpected argument {argument!r}; options begin with --, see --help")
        name, text = option["name"], option["value"]
        if text is None and name not in (*_SWITCHES, "notimings") and rest and _is_value(rest[-1]):
            text = rest.pop()
        if name == "config":
            if config:
                raise UserError(f"--config is given twice: {config} and {text}")
            config = text
        elif name.startswith("config."):
            fields.append(Override(name.removeprefix("config."), text))
        elif name.startswith("noconfig."):
            fields.append(Override(name.removeprefix("noconfig."), "false"))
        elif name in ("methods", "version"):
            switches.add(name)
        elif name in (*_OPTIONS, "notimings"):
            options.append(f"--{name}" if text is None else f"--{name}={text}")
        else:
            raise UserError(hints.unknown_option(name, text, (*_OPTIONS, "config")))
    return _Line(config, fields, options, switches)


def _is_value(argument: str) -> bool:
    """Return whether an argument is the value of the option before it: no option itself, or a negative number."""
    return re.match(r"-(?![.\d])", argument) is None


def _parse_options(options: list[str]):
    """Return absl's values of the options that are no fields of the config.

    Raises:
      UserError: a value that an option does not take.
    """
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("timings", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("processes", None, "", flag_values=values)
    flags.DEFINE_integer("process", None, "", flag_values=values)
    flags.DEFINE_enum("report", "now", ["now", "later", "no"], "", flag_values=values)
    try:
        values(["", *options])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    return values
