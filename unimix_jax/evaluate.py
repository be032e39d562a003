"""Measure predictions and report on them: `python -m unimix_jax.evaluate --workdir=runs/digits`."""

import functools
import pathlib
import sys

from unimix_jax import __version__, doors, workdir
from unimix_jax.errors import UserError

USAGE = """\
Measure predictions of classes: accuracy, calibration, test priors, pictures.

  python -m unimix_jax.evaluate --workdir=RUN [--workdir=RUN2 ...] [--output=DIR | --output=FILE.html]
  python -m unimix_jax.evaluate --predictions=FILE.npz [--validation=FILE.npz] [--counts=FILE] [--output=...]
  python -m unimix_jax.evaluate --figure=A1 --classes=10 --imbalance=100 --output=DIR

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
  --test_prior=PRIOR      a column corrected for uniform, train, imbalance:R, a file of shares, or estimate (by EM); of
                          calibrated logits where there are validation predictions
  --figure=A1             the class distributions of Corollaries 1 to 3, with --classes, --imbalance, and for UniMix
                          --alpha=.5, --class_exponent=-1, --nowrap; the paper's panel (f) has --classes=100
                          --imbalance=200
  --help                  this text
"""


_ABOUT = f"Report by unimix_jax {__version__}."
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
    """Run a command line and return its exit code (see `errors`).

    Args:
      argv: program name and arguments; None for the process's own.
    """
    return doors.answered(functools.partial(_answer, sys.argv if argv is None else argv))


def _answer(argv: list[str]) -> str:
    """Do what a command line says; return what is to be printed."""
    if doors.asks_for_help(argv):
        return USAGE.rstrip()
    given = _parse(argv)

    from unimix_jax.measures import evaluation, files

    if given.figure:
        return _law_figure(given)
    inputs = files.read_all(given.workdir, given.predictions, given.validation, given.counts)
    own = not given.output and len(inputs) == len(given.workdir) == 1
    place = files.output_of_run(given.workdir[0]) if own else files.output(given.output) if given.output else None
    options = evaluation.Options(given.bins, given.groups, given.samples, given.classwise_intervals, given.test_prior)
    return report_on(inputs, place, options)


def _parse(argv: list[str]):
    from absl import flags

    values = flags.FlagValues()
    for name in ("workdir", "predictions", "validation"):
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


def report_on(inputs: list, place, options=None, kinds=("png", "pdf")) -> str:
    """Evaluate models, write the report, and return its tables as text.

    Args:
      inputs: of `files.read_all`.
      place: of `files.output`; None writes nothing.
      options: `evaluation.Options`.
      kinds: of picture files, see `files.write`.
    """
    from unimix_jax.measures import evaluation, files, report, tables

    results = [evaluation.evaluate(each, options or evaluation.Options()) for each in inputs]
    if place is not None:
        if len(inputs) == 1:
            sections, title = report.of_one(inputs[0], results[0], _laws(inputs[0])), inputs[0].name
        else:
            sections, title = report.of_many(inputs, results), f"{len(inputs)} models side by side"
        digests = [(each.about or {}).get("digests") for each in inputs]
        files.write(place, title, _ABOUT, sections, results, kinds, digests)
    text = [
        "\n\n".join(filter(None, (found.title, tables.table(found.rows), found.note)))
        for found in report.printed(results)
    ]
    for word, kind in (("warning", "warnings"), ("missing", "missing")):
        text += ["\n".join(f"{word}: {line}" for line in report.remarks(results, kind))]
    text += [f"report: {place.html}" if place is not None else "report: none; --output=DIR writes one"]
    return "\n\n".join(filter(None, text))


def report_run(directory: pathlib.Path) -> pathlib.Path:
    """Write the report of a finished run into its directory, if there is none of its results; return where it is.

    Raises:
      UserError: it cannot be written.
    """
    from unimix_jax.measures import files

    place = files.output_of_run(directory)
    if not files.is_of(place, workdir.output_digests(directory)):
        report_on([files.read_run(directory)], place, kinds=("png",))
    return place.html


def _laws(given) -> tuple[list[dict], dict] | None:
    """The class distributions under the counts and the factor of a model; the paper's factor where it has none."""
    if given.test.counts is None:
        return None
    from unimix_jax.training import laws

    factor = laws.factor_of((given.about or {}).get("config", {}))
    panels = laws.class_laws(given.test.counts, **factor)
    return None if panels is None else (panels, factor)


def _law_figure(given) -> str:
    from unimix_jax.measures import files, report, theory
    from unimix_jax.training import laws

    if not given.output:
        raise UserError("--figure=A1 needs an --output=DIR")
    place = files.output(given.output)
    if place.others["json"].exists():
        raise UserError(f"{place.html} is a report on models, which this figure would replace; give another --output")
    profile = theory.exponential_profile(given.classes, given.imbalance)
    factor = {name: given[name].value for name in _FACTOR}
    title = f"Class distributions: {given.classes} classes, imbalance {given.imbalance:g}"
    files.write(place, title, _ABOUT, [report.laws_section(laws.class_laws(profile, **factor), factor)], [])
    return f"report: {place.html}"


if __name__ == "__main__":
    sys.exit(main())
