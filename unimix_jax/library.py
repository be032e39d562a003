"""Training and evaluation as functions: `unimix_jax.train` and `unimix_jax.evaluate`.

The commands `main` and `evaluate` do the same by the same code; heavy packages are imported when a function is called.
"""

import contextlib
import copy
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unimix_jax import cli
from unimix_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict
    from numpy.typing import ArrayLike

    from unimix_jax.config import Command
    from unimix_jax.metrics import Predictions
    from unimix_jax.report.evaluation import ModelOutputs

_CONFIG_DICT = "this ConfigDict (of unimix_jax.config)"  # its name in sentences that otherwise name a file
_VALUES = "a number, a text, True or False, or a list of numbers"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run; `print` shows its closing table."""

    workdir: pathlib.Path
    metrics: dict = dataclasses.field(repr=False)  # what metrics.json holds: the measures by split
    predictions: "dict[str, Predictions]" = dataclasses.field(
        repr=False
    )  # by split: test, and validation if there is one

    def report(self) -> pathlib.Path:
        """Write the report of the run into its directory, if it is not there.

        Returns:
          The path of the HTML file.
        """
        from unimix_jax.report import build

        return build.write_run_report(self.workdir)

    def __str__(self) -> str:
        from unimix_jax.report import tables

        return f"{tables.closing_table(self.metrics)}\n\nrun directory: {self.workdir}"


def train(
    config: "str | os.PathLike | ConfigDict" = "digits_lt",
    workdir: str | os.PathLike | None = None,
    **overrides: Any,
) -> Run:
    """Train as a config says, as the command `python -m unimix_jax.main` does, and return what came out.

    Progress goes to standard error. The first call starts JAX; threads that a later config asks for do not change those
    that JAX has. The same call with the same `workdir` goes on where an earlier one was stopped, and a finished run
    is returned at once.

    Args:
      config: the name of a shipped config, with arguments after a colon if there are any
        ("cifar_lt:dataset=cifar10,method=erm"); the path of a config file; or a ConfigDict of `unimix_jax.config`,
        which is not changed.
      workdir: the run directory; None for a new one under runs/.
      **overrides: values of fields, with "__" in the place of a dot: epochs=3, optim__learning_rate=.05; or
        **{"optim.learning_rate": .05}.

    Returns:
      The metrics, the predictions of each split, and the run directory.

    Raises:
      UserError: a mistake in config, data or directory, in one sentence; nothing is compiled before.
      NonFiniteError: the loss is not finite; the last sound checkpoint stays.
      Failure: a worker or the disk failed.
    """
    command = _command(config, workdir, overrides)

    from unimix_jax.metrics.predictions import read_predictions
    from unimix_jax.training import rundir, runtime
    from unimix_jax.training.run import run

    with run_directory(command) as directory, runtime.runtime(command.config.parallel.cpu_threads):
        metrics = run(command.config, directory)
    paths = {split: directory / rundir.predictions_file(split) for split in ("test", "validation")}
    return Run(directory, metrics, {split: read_predictions(path) for split, path in paths.items() if path.exists()})


@contextlib.contextmanager
def run_directory(command: "Command") -> Iterator[pathlib.Path]:
    """Make the run directory of a command, and send what libraries print to its log.

    A new directory in which no run has begun is removed at the end.

    Args:
      command: of `config.parse`.

    Yields:
      The directory.

    Raises:
      UserError: it cannot be made or written, or holds something else.
    """
    from unimix_jax.training import rundir

    directory = rundir.create(command.workdir) if command.workdir else rundir.new_rundir(command.name)
    try:
        with cli.redirect_library_output(directory / rundir.LOG):
            yield directory
    finally:
        if not command.workdir:
            rundir.discard(directory)  # it stays as soon as a run has begun in it


def _command(config: "str | os.PathLike | ConfigDict", workdir, overrides: dict[str, Any]) -> "Command":
    """Return the command that a call of `train` stands for, checked as a command line is."""
    from unimix_jax.config import Command, check, parse
    from unimix_jax.config.load import run_name
    from unimix_jax.config.overrides import Override, apply

    texts = {name.replace("__", "."): _text(name, value) for name, value in overrides.items()}
    if len(texts) < len(overrides):
        raise UserError(f"a field is given twice: {', '.join(overrides)}")
    if isinstance(config, str | os.PathLike):
        argv = ["train", f"--config={os.fspath(config)}"]
        argv += [f"--config.{field}={text}" for field, text in texts.items()]
        # Not by --workdir: an option of the command line is a text of one line.
        return parse(argv)._replace(workdir=workdir)
    if not (hasattr(config, "to_dict") and hasattr(config, "unlocked")):
        raise UserError(
            f"config is a {type(config).__name__}; it must be the name of a shipped config, the path of a file, or a "
            "ConfigDict made by unimix_jax.config.default()"
        )
    check(config)
    config = apply(copy.deepcopy(config), [Override(*pair) for pair in texts.items()], _CONFIG_DICT)
    check(config)
    return Command(config, workdir, run_name(pathlib.Path("config.json"), config))


def _text(name: str, value: Any) -> str:
    """Return a value as the command line has it."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # of numpy or JAX
        value = value.tolist()
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return repr(tuple(value))
    raise UserError(f"{name} is {value!r}; it must be {_VALUES}")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The measures of a model's predictions; `print` shows them as a table."""

    name: str
    images: int
    accuracy: float
    balanced_accuracy: float
    geometric_mean: float
    ece: float
    smooth_ece: float
    mce: float
    sce: float
    ace: float
    tace: float
    brier: float
    nll: float
    top5: float | None  # None for five classes or fewer
    groups: dict[
        str, float | None
    ]  # accuracy of many, medium and few; {} where they are not known, None without images
    grouped_by: str | None  # "shots" or "thirds"
    temperature: float | None  # fitted on the validation predictions; None without them
    intervals: dict[str, tuple[float, float]] = dataclasses.field(repr=False)  # of 95 %, by measure
    class_accuracy: "np.ndarray" = dataclasses.field(repr=False)  # float64[K], nan for a class without images
    class_ece: "np.ndarray" = dataclasses.field(repr=False)  # float64[K]
    warnings: tuple[str, ...] = dataclasses.field(repr=False)  # what a reader should know before trusting the numbers
    missing: tuple[str, ...] = dataclasses.field(repr=False)  # what the inputs do not allow, and what would
    summary: dict = dataclasses.field(repr=False)  # of `metrics.summary`, with intervals and what chance would give
    results: dict = dataclasses.field(repr=False)  # everything: what report.json holds of this model
    outputs: "ModelOutputs" = dataclasses.field(repr=False)  # of the model, which were measured

    def report(self, path: str | os.PathLike) -> pathlib.Path:
        """Write the report: HTML, Markdown, CSV, JSON and pictures.

        Args:
          path: of a folder, or of the HTML file.

        Returns:
          The path of the HTML file.

        Raises:
          UserError: it would overwrite what is no report, or nothing can be written there.
        """
        from unimix_jax.report import build, files

        output = files.output(path)
        build.write_report([self.outputs], output, results=[self.results])
        return output.html

    def __str__(self) -> str:
        from unimix_jax.report import tables

        return tables.table(tables.measures_table(self.results).rows)


def evaluate(
    predictions: "Predictions | Run | str | os.PathLike | None" = None,
    labels: "ArrayLike | None" = None,
    counts: "ArrayLike | str | os.PathLike | None" = None,
    *,
    logits: "ArrayLike | None" = None,
    probabilities: "ArrayLike | None" = None,
    logits_prior: "ArrayLike | None" = None,
    class_names: "tuple[str, ...] | list[str] | None" = None,
    validation: "Predictions | str | os.PathLike | None" = None,
    name: str | None = None,
    bins: int = 15,
    groups: str = "auto",
    samples: int = 1000,
    classwise_intervals: bool = False,
    test_prior: str = "",
    measures: tuple[str, ...] = (),
    seed: int = 0,
) -> Evaluation:
    """Measure predictions of any framework: accuracy, calibration, groups of classes, intervals, test priors.

    Give predictions, or logits, or probabilities. What else is given replaces what the predictions hold.

    Args:
      predictions: `metrics.Predictions`, the `Run` of `train`, a run directory, or an .npz file.
      labels: int[N].
      counts: int[K], training images of each class, or a file of them; they give many, medium and few.
      logits: float[N, K], arrays of numpy, JAX or PyTorch.
      probabilities: float[N, K], rows that sum to 1.
      logits_prior: float[K], the prior that softmax(logits) stands for.
      class_names: of the K classes.
      validation: labelled predictions of validation images, or their .npz file: for the temperature, and for the
        estimate of the test prior. A run has its own.
      name: of the model in the report.
      bins: of the calibration errors.
      groups: "shots", "thirds", or "auto": by shots if each group has a class.
      samples: of the bootstrap; 0 for no intervals.
      classwise_intervals: intervals of SCE, ACE and TACE too, which takes longer.
      test_prior: measure a correction, too, for "uniform", "train", "imbalance:R", a file of shares, or "estimate".
      measures: more measures, "module:function", (probabilities, labels) -> number.
      seed: of the bootstrap.

    Returns:
      The measures, and a method that writes the report.

    Raises:
      UserError: arrays or files that are not predictions, none or several of them, or no labels.
    """
    from unimix_jax.metrics.predictions import read_predictions
    from unimix_jax.report import evaluation, files

    outputs = _outputs(predictions, logits, probabilities)
    if counts is not None:
        counts = files.read_counts(counts) if isinstance(counts, str | os.PathLike) else _array(counts, "counts")
    changes = {
        "labels": None if labels is None else _array(labels, "labels"),
        "counts": counts,
        "logits_prior": None if logits_prior is None else _array(logits_prior, "logits_prior"),
        "class_names": None if class_names is None else tuple(class_names),
    }
    test = outputs.test._replace(**{field: value for field, value in changes.items() if value is not None})
    if test.labels is None:
        raise UserError(
            f"{outputs.name} has no labels, which measures need; label_shift.estimate_prior estimates the shares of "
            "the classes without them"
        )
    outputs = outputs._replace(test=test, name=name or outputs.name)
    if validation is not None:
        if isinstance(validation, str | os.PathLike):
            validation = read_predictions(validation)
        elif not hasattr(validation, "logits"):
            raise UserError(
                f"validation is a {type(validation).__name__}; it must be metrics.Predictions(logits, labels), or the "
                "path of an .npz file"
            )
        outputs = outputs._replace(validation=validation)
    options = evaluation.Options(
        bins=bins,
        by=groups,
        samples=samples,
        classwise=classwise_intervals,
        test_prior=test_prior,
        measures=tuple(measures),
        seed=seed,
    )
    return _evaluation(evaluation.evaluate(outputs, options), outputs)


def _outputs(predictions, logits, probabilities) -> "ModelOutputs":
    """Return the outputs of the one model that is given in one of the three ways."""
    from unimix_jax.metrics.predictions import Predictions, read_predictions
    from unimix_jax.report import files
    from unimix_jax.report.evaluation import ModelOutputs

    ways = {"predictions": predictions, "logits": logits, "probabilities": probabilities}
    named = [way for way, value in ways.items() if value is not None]
    if len(named) != 1:
        raise UserError(
            f"{' and '.join(named) or 'nothing'} given to evaluate; give one of predictions, logits and probabilities"
        )
    if logits is not None:
        return ModelOutputs("model", Predictions(_array(logits, "logits")))
    if probabilities is not None:
        return ModelOutputs("model", Predictions.from_probabilities(_array(probabilities, "probabilities")))
    if isinstance(predictions, Predictions):
        return ModelOutputs("model", predictions)
    if isinstance(predictions, Run):
        return files.read_run(predictions.workdir)
    if not isinstance(predictions, str | os.PathLike):
        raise UserError(
            f"predictions are a {type(predictions).__name__}; give an array as logits=... or probabilities=..., or "
            "metrics.Predictions, a run directory, or the path of an .npz file"
        )
    path = pathlib.Path(predictions)
    return files.read_run(path) if path.is_dir() else ModelOutputs(path.stem, read_predictions(path))


def _array(values: "ArrayLike", name: str) -> "np.ndarray":
    """Return an array of any framework as one of numpy."""
    import numpy as np

    if hasattr(values, "detach"):  # a tensor of PyTorch, which may have a gradient or be on a GPU
        values = values.detach()
        values = values.cpu() if hasattr(values, "cpu") else values
        values = values.numpy()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is no array of numbers: {' '.join(str(error).split())}") from None


def _evaluation(results: dict, outputs: "ModelOutputs") -> Evaluation:
    """Return the results of `report.evaluation.evaluate` by attributes."""
    import numpy as np

    from unimix_jax import metrics

    test = results["test"]
    return Evaluation(
        name=results["name"],
        images=results["images"],
        top5=test.get("top5"),
        groups={group: test[group] for group in ("many", "medium", "few") if group in test},
        grouped_by=test.get("groups"),
        temperature=results.get("temperature"),
        intervals={measure: tuple(ends) for measure, ends in test.get("intervals", {}).items()},
        class_accuracy=np.array(test["class_accuracy"], np.float64),
        class_ece=np.array(test["class_ece"], np.float64),
        warnings=tuple(results["warnings"]),
        missing=tuple(results["missing"]),
        summary=test,
        results=results,
        outputs=outputs,
        **{measure: test[measure] for measure in metrics.MEASURES if measure != "top5"},
    )
