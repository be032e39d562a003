"""Measure predictions and report on them: `python -m unimix_jax.evaluate --workdir=runs/digits`.

The command has the name of the function `unimix_jax.evaluate`. So this module can be called, and is that function,
whether or not it was imported before.
"""

import functools
import inspect
import sys
import types
from typing import Any

from unimix_jax import cli
from unimix_jax.errors import UserError
from unimix_jax.library import Evaluation, evaluate

__all__ = ["evaluate", "main"]

__signature__ = inspect.signature(evaluate)  # of the module where it is called

USAGE = """\
Measure predictions of classes: accuracy, calibration, test priors, pictures.

  python -m unimix_jax.evaluate --workdir=RUN [--workdir=RUN2 ...] [--output=DIR | --output=FILE.html]
  python -m unimix_jax.evaluate --predictions=FILE.npz [--validation=FILE.npz] [--counts=FILE] [--output=...]
  python -m unimix_jax.evaluate --figure=A1 [--classes=10 --imbalance=100] --output=DIR

  --workdir=RUN           a finished run; give several to see them side by side
  --predictions=FILE.npz  arrays `logits` or `probabilities` [N, K] and `labels` [N]; and, if you have them, `counts`
                          [K] (training images), `class_names`, `logits_prior` (what softmax(logits) stands for)
  --validation=FILE.npz   the same of validation images: for the temperature and the estimate of the test prior; one
                          for each --predictions, or none
  --counts=FILE           training images of each class: text with a number a class, or an .npz
  --output=DIR            report.html, .md, .csv, .json and figures/ there (one RUN: by default into RUN);
                          FILE.html: the same beside that file
  --groups=shots          many, medium, few by shots or thirds (default: shots if each group has a class)
  --bins=15               of the calibration errors
  --samples=1000          of the bootstrap; 0 for no intervals
  --classwise_intervals   intervals of SCE, ACE and TACE too, which takes longer
  --measure=my:function   one more measure, (probabilities, labels) -> number, of your module; may be repeated
  --test_prior=PRIOR      a column corrected for uniform, train, imbalance:R, a file of shares, or estimate (by EM); of
                          calibrated logits where there are validation predictions
  --figure=A1             the class distributions of Corollaries 1 to 3: the paper's six panels, or with --classes and
                          --imbalance one of them with draws (panel (f): --classes=100 --imbalance=200); for UniMix
                          --alpha=.5, --class_exponent=-1, --nowrap
  --help                  this text
"""
_NUMBERS = {  # options: default, least, most
    "bins": (15, 1, 10_000),
    "samples": (1000, 0, 100_000),
    "classes": (10, 2, 1000),
    "imbalance": (100.0, 1, 1e6),
    "alpha": (0.5, 0.01, 100),
    "class_exponent": (-1.0, -10, 10),
}
_FACTOR = ("alpha", "class_exponent", "wrap")
_OF_FIGURE = ("classes", "imbalance", *_FACTOR)


def main(argv: list[str] | None = None) -> int:
    """Run a command line.

    Args:
      argv: program name and arguments; None for those of the process.

    Returns:
      The exit code (see `errors`).
    """
    return cli.run_command(functools.partial(_execute, sys.argv if argv is None else argv))


def _execute(argv: list[str]) -> str:
    """Carry out a command line; return the text to print."""
    if cli.asks_for_help(argv):
        return USAGE.rstrip()
    flags = _parse(argv)

    from unimix_jax.report import build, evaluation, files

    if flags.figure:
        if not flags.output:
            raise UserError("--figure=A1 needs an --output=DIR")
        factor = {name: flags[name].value for name in _FACTOR}
        of_one_panel = flags["classes"].present or flags["imbalance"].present
        panel = (flags.classes, flags.imbalance) if of_one_panel else None
        return build.write_class_distributions(flags.output, panel, factor)
    inputs = files.read_all(flags.workdir, flags.predictions, flags.validation, flags.counts)
    output = files.output(flags.output) if flags.output else None
    if output is None and len(inputs) == len(flags.workdir) == 1:
        output = files.output_of_run(flags.workdir[0])
    options = evaluation.Options(
        bins=flags.bins,
        by=flags.groups,
        samples=flags.samples,
        classwise=flags.classwise_intervals,
        test_prior=flags.test_prior,
        measures=tuple(flags.measure),
    )
    return build.write_report(inputs, output, options)


def _parse(argv: list[str]):
    from absl import flags

    values = flags.FlagValues()
    for name in ("workdir", "predictions", "validation", "measure"):
        flags.DEFINE_multi_string(name, [], "", flag_values=values)
    for name in ("counts", "output", "test_prior"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_enum("groups", "auto", ["auto", "shots", "thirds"], "", flag_values=values)
    flags.DEFINE_enum("figure", None, ["A1"], "", flag_values=values)
    for name, (default, least, most) in _NUMBERS.items():
        define = flags.DEFINE_integer if isinstance(default, int) else flags.DEFINE_float
        define(name, default, "", lower_bound=least, upper_bound=most, flag_values=values)
    flags.DEFINE_boolean("wrap", True, "", flag_values=values)
    flags.DEFINE_boolean("classwise_intervals", False, "", flag_values=values)
    try:
        rest = values(argv)
    except (flags.Error, ValueError) as error:
        raise UserError(" ".join(str(error).replace("flag --", "--").split())) from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; options begin with --, see --help")
    if values.samples == 1:
        raise UserError("--samples=1 makes no interval; give 0 for none, or some hundreds")
    for name in values:
        if values[name].present and name not in ("output", "figure") and (name in _OF_FIGURE) != bool(values.figure):
            raise UserError(f"--{name} {'does not go' if values.figure else 'goes'} with --figure=A1")
        if values[name].value != values[name].value:  # bounds let nan through
            raise UserError(f"--{name} is nan; it must be a number")
    return values


class _Callable(types.ModuleType):
    """A module that is called as the function of its name."""

    @functools.wraps(evaluate)
    def __call__(self, *args: Any, **options: Any) -> Evaluation:
        return evaluate(*args, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
