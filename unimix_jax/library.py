"""Training and evaluation as functions: `unimix_jax.train` and `unimix_jax.evaluate`.

The commands `main` and `evaluate` do the same by the same code; heavy packages are imported when a function is called.
"""

import contextlib
import copy
import dataclasses
import os
import pathlib
import re
import secrets
import sys
from collections.abc import Callable, Iterator
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
_HELP = re.compile(r"[;,] (?:see|add) --help\b[^;]*|; --help lists the options")  # of a command line only
_OPTION = re.compile(r"(?<![\w/.-])--(?:config\.)?(?=[a-z])")  # the dashes before the name of an option or field
_VALUES = "a number, a text, True or False, or a list of numbers"


@contextlib.contextmanager
def _worded_for_a_call() -> Iterator[None]:
    """Let the sentence of a mistake speak of arguments, as workdir, where the command has options, as --workdir."""
    try:
        yield
    except UserError as error:
        raise UserError(_OPTION.sub("", _HELP.sub("", str(error)))) from error.__cause__


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run; `print` shows its closing table.

    Attributes:
      workdir: the run directory.
      metrics: what metrics.json of the run directory holds: under "test", and "validation" if there are such images,
        what `metrics.summary` returns of the network's last state ("accuracy", "ece", "many", "class_accuracy", ...);
        under "best" the evaluation during training with the highest accuracy ("split", "epoch", "accuracy", ...);
        under "posthoc" what a correction of the trained logits chose, if the method has one.
      predictions: of the same splits by name: `run.predictions["test"].logits`, and beside them labels, counts of the
        training images, the prior that the logits stand for, and the names of the classes.
    """

    workdir: pathlib.Path
    metrics: dict = dataclasses.field(repr=False)
    predictions: "dict[str, Predictions]" = dataclasses.field(repr=False)

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


@_worded_for_a_call()
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
    if workdir is not None and not isinstance(workdir, str | os.PathLike):
        raise UserError(f"workdir is {workdir!r}; it must be the path of the run directory, or None for a new one")
    command = _command(config, workdir, overrides)

    from unimix_jax.metrics.predictions import read_predictions
    from unimix_jax.training import rundir, runtime
    from unimix_jax.training.run import run

    with run_directory(command) as directory, runtime.runtime(command.config.parallel.cpu_threads):
        metrics = run(command.config, directory)
    paths = {split: directory / rundir.predictions_file(split) for split in ("test", "validation")}
    return Run(directory, metrics, {split: read_predictions(path) for split, path in paths.items() if path.exists()})


@_worded_for_a_call()
def load_config(name: str | os.PathLike, **overrides: Any) -> "ConfigDict":
    """Load a config, to look at its fields and change them before `train`.

    Args:
      name: of a shipped config, with arguments after a colon if there are any ("digits_lt:method=erm"), or the path of
        a config file.
      **overrides: values of fields, as `train` takes them.

    Returns:
      A `ConfigDict`: config.epochs, config.optim.learning_rate, config.method.stages.plain.loss.name, ...

    Raises:
      UserError: a mistake in the config, in one sentence.
    """
    if not isinstance(name, str | os.PathLike):
        raise UserError(f"config is {name!r}; it must be the name of a shipped config, or the path of a file")
    return _command(name, None, overrides).config


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
    from unimix_jax.training import processes, rundir

    if processes.count() > 1:
        with _shared_directory(command) as directory:
            yield directory
        return
    directory = rundir.create(command.workdir) if command.workdir else rundir.new_rundir(command.name)
    try:
        with cli.redirect_library_output(directory / rundir.LOG):
            yield directory
    finally:
        if not command.workdir:
            rundir.discard(directory)  # it stays as soon as a run has begun in it


@contextlib.contextmanager
def _shared_directory(command: "Command") -> Iterator[pathlib.Path]:
    """Make the run directory of several processes, which all of them must see; process 0 alone writes results."""
    from unimix_jax.training import processes, rundir

    if not command.workdir:
        raise UserError("a run of several processes needs --workdir, a folder that all of them see")
    directory = pathlib.Path(command.workdir)
    seal = secrets.token_hex(8) if processes.is_first() else ""
    seal = processes.from_first(lambda: rundir.seal(rundir.create(command.workdir), seal))
    seen = rundir.is_sealed(directory, seal)
    if not processes.all_of(seen):
        raise UserError(
            f"process 0 has made the run directory {directory}, which "
            f"{'another process' if seen else f'process {processes.index()}'} does not see; --workdir must be a folder "
            "that all processes share"
        )
    with cli.redirect_library_output(directory / rundir.log_file(processes.index())):
        yield directory


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
            f"config is {config!r}; it must be the name of a shipped config, the path of a file, or a ConfigDict, such "
            "as unimix_jax.load_config('digits_lt') returns"
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
    """The measures of a model's predictions; `print` shows them as a table.

    The measures stand for the predictions as they are; `calibrated` and `corrected` hold those of changed ones.

    Attributes:
      top5: None for five classes or fewer.
      groups: accuracy of many, medium and few; {} where they are not known, None for a group without images.
      grouped_by: "shots" (more than 100 training images, fewer than 20) or "thirds" (of the classes); None without.
      temperature: fitted on the validation predictions; None without them.
      intervals: of 95 %, by measure: {"ece": (low, high), ...}.
      class_accuracy: float64[K], nan for a class without images.
      class_ece: float64[K].
      warnings: sentences that a reader should know before trusting the numbers.
      missing: a sentence for each thing that the inputs do not allow, and what would.
      summary: what `metrics.summary` returns, and beside it `intervals`, and `by_chance`: the errors that a perfectly
        calibrated model with the same confidences shows.
      results: everything, as report.json holds it of this model: `test` (the summary), `validation`,
        `test_at_temperature`, `corrected`, `estimates` of the test prior by method, `cut_tests`, `test_share`,
        `counts`, `options`, each where it can be had.
      outputs: the predictions that were measured: outputs.test, outputs.validation.
    """

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
    top5: float | None
    groups: dict[str, float | None]
    grouped_by: str | None
    temperature: float | None
    intervals: dict[str, tuple[float, float]] = dataclasses.field(repr=False)
    class_accuracy: "np.ndarray" = dataclasses.field(repr=False)
    class_ece: "np.ndarray" = dataclasses.field(repr=False)
    warnings: tuple[str, ...] = dataclasses.field(repr=False)
    missing: tuple[str, ...] = dataclasses.field(repr=False)
    summary: dict = dataclasses.field(repr=False)
    results: dict = dataclasses.field(repr=False)
    outputs: "ModelOutputs" = dataclasses.field(repr=False)

    @property
    def calibrated(self) -> dict | None:
        """The measures of the logits divided by the temperature, as `metrics.summary`; None without validation."""
        return self.results.get("test_at_temperature")

    @property
    def corrected(self) -> dict | None:
        """The measures of the logits corrected for `test_prior`, and that prior; None where none was asked for."""
        return self.results.get("corrected")

    @_worded_for_a_call()
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


@_worded_for_a_call()
def evaluate(
    predictions: "Predictions | Run | str | os.PathLike | None" = None,
    labels: "ArrayLike | None" = None,
    counts: "ArrayLike | str | os.PathLike | None" = None,
    *,
    logits: "ArrayLike | None" = None,
    probabilities: "ArrayLike | None" = None,
    logits_prior: "ArrayLike | None" = None,
    class_names: "tuple[str, ...] | list[str] | None" = None,
    validation: "Predictions | tuple[ArrayLike, ArrayLike] | str | os.PathLike | None" = None,
    name: str | None = None,
    bins: int = 15,
    groups: str = "auto",
    samples: int = 1000,
    classwise_intervals: bool = False,
    test_prior: "ArrayLike | str | os.PathLike" = "",
    measures: "tuple[str | Callable, ...] | str | Callable" = (),
    seed: int = 0,
) -> Evaluation:
    """Measure predictions of any framework: accuracy, calibration, groups of classes, intervals, test priors.

    Give predictions, or logits, or probabilities. Other arguments replace what the predictions hold.

    Args:
      predictions: `metrics.Predictions`, the `Run` of `train`, a run directory, or an .npz file.
      labels: int[N].
      counts: int[K], training images of each class, or a file of them; they give many, medium and few.
      logits: float[N, K], arrays of numpy, JAX or PyTorch.
      probabilities: float[N, K], rows that sum to 1.
      logits_prior: float[K], the prior that softmax(logits) stands for.
      class_names: of the K classes.
      validation: labelled predictions of validation images, the pair (logits, labels), or their .npz file: for the
        temperature, and for the estimate of the test prior. A run has its own.
      name: of the model in the report.
      bins: of the calibration errors.
      groups: "shots", "thirds", or "auto": by shots if each group has a class.
      samples: of the bootstrap; 0 for no intervals.
      classwise_intervals: intervals of SCE, ACE and TACE too, which takes longer.
      test_prior: measure a correction, too, for the shares of the classes, float[K], a file of them, "uniform",
        "train", "imbalance:R", or "estimate" (by EM); the result is `corrected`.
      measures: more measures, (probabilities, labels) -> number: functions of a module, or "module:function".
      seed: of the bootstrap.

    Returns:
      The measures, and a method that writes the report.

    Raises:
      UserError: arrays or files that are not predictions, none or several of them, or no labels.
    """
    from unimix_jax.metrics.predictions import labelled_predictions
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
        validation = labelled_predictions(validation, "validation")
        pair = {name: _array(getattr(validation, name), f"{name} of validation") for name in ("logits", "labels")}
        outputs = outputs._replace(validation=validation._replace(**pair))
    options = evaluation.Options(
        bins=bins,
        by=groups,
        samples=samples,
        classwise=classwise_intervals,
        test_prior=_test_prior(test_prior),
        measures=_measures(measures),
        seed=seed,
    )
    return _evaluation(evaluation.evaluate(outputs, options), outputs)


def _test_prior(shares: "ArrayLike | str | os.PathLike") -> str | tuple[float, ...]:
    """Return a test prior as `report.evaluation` takes it."""
    if isinstance(shares, str | os.PathLike):
        return os.fspath(shares)
    from unimix_jax import priors

    return tuple(priors.checked_counts(_array(shares, "test_prior"), "test_prior").tolist())


def _measures(measures: "tuple[str | Callable, ...] | str | Callable") -> tuple[str, ...]:
    """Return the names of measures; that of a function is its module and its own name, as a report shows it."""
    if isinstance(measures, str) or callable(measures):
        measures = (measures,)
    return tuple(_measure_name(measure) for measure in measures)


def _measure_name(measure: "str | Callable") -> str:
    if isinstance(measure, str):
        return measure
    name = getattr(measure, "__name__", "")
    module = sys.modules.get(getattr(measure, "__module__", None) or "")
    if not callable(measure) or getattr(module, name, None) is not measure:
        raise UserError(
            f"the measure {measure!r} is no function at the top of a module, by whose name a report could call it; "
            "give such a function, or 'module:function'"
        )
    return f"{module.__name__}:{name}"


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
            f"predictions are of the type {type(predictions).__name__}; give an array as logits=... or "
            "probabilities=..., or metrics.Predictions, a run directory, or the path of an .npz file"
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
