"""The files of an evaluation: read runs and predictions, write reports."""

import csv
import io
import logging
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unimix_jax import npz, storage
from unimix_jax.config import old_names
from unimix_jax.errors import UserError, raise_write_error
from unimix_jax.metrics.predictions import Predictions, read_predictions
from unimix_jax.report import html, plots
from unimix_jax.report.evaluation import ModelOutputs
from unimix_jax.report.sections import PICTURES, Section, csv_rows, facts
from unimix_jax.training import rundir

_log = logging.getLogger(__name__)

_KINDS = ("png", "pdf")  # of picture files
_FACTOR = {"alpha": 0.5, "class_exponent": -1.0, "wrap": True}  # of UniMix, in the paper
_LARGEST_COUNTS = 4 * storage.MIB  # bytes of a file of counts


def read_run(directory: str | os.PathLike, name: str | None = None) -> ModelOutputs:
    """Read a finished run.

    Args:
      directory: a run directory.
      name: of the run in the report; None for the name of the directory.

    Returns:
      The outputs of the run.

    Raises:
      UserError: no run directory, or a run that has not been finished.
    """
    directory = pathlib.Path(directory)
    if directory.is_file():
        raise UserError(f"--workdir={directory} is a file; give predictions by --predictions={directory}")
    config = storage.read_json(directory / rundir.CONFIG)
    if config is None:
        raise UserError(f"{directory} is no run directory: it has no {rundir.CONFIG}")
    config, renamed = old_names.with_new_names(config)
    old_names.warn(str(directory / rundir.CONFIG), renamed)
    test = directory / rundir.predictions_file("test")
    if not test.exists():
        raise UserError(f"the run in {directory} is not finished: it has no {test.name}; start its command again first")
    validation = directory / rundir.predictions_file("validation")
    name = name or directory.resolve().name
    about = {
        "name": name,
        "config": config,
        "run": storage.read_json(directory / rundir.RUN),
        "metrics": storage.read_json(directory / rundir.METRICS),
        "lines": rundir.read_metrics(directory / rundir.METRICS_LINES),
    }
    about["digests"] = rundir.output_digests(directory)
    about["changed"], about["gone"] = rundir.changed_outputs(directory, about["run"])
    replicates = config.get("replicates", 1)
    together = f", ensemble of {replicates} seeds" if replicates != 1 else ""
    outputs = ModelOutputs(
        name + together,
        read_predictions(test),
        read_predictions(validation) if validation.exists() else None,
        about,
        _read_seeds(directory) if replicates != 1 else None,
    )
    try:
        facts(outputs)
        unimix_factor(config)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{directory} holds records that no run writes ({error!r}); restore them") from None
    return outputs


def _read_seeds(directory: pathlib.Path) -> dict[int, Predictions]:
    """Read the test predictions of each replicate of a run; `changed_outputs` knows of those that are gone."""
    folders = {path.name: path for path in directory.glob(rundir.seed_folder("*"))}
    paths = {int(seed): path / rundir.predictions_file("test") for seed, path in folders.items() if seed.isdecimal()}
    return {seed: read_predictions(path) for seed, path in sorted(paths.items()) if path.exists()}


def unimix_factor(config: dict) -> dict:
    """Return alpha, class_exponent and wrap of UniMix in a run: of its first UniMix stage, or the paper's without one.

    Args:
      config: of the run, as config.json has it.

    Returns:
      The three options by name.

    Raises:
      ValueError: a stage has a value that no run writes.
    """
    for stage in config.get("method", {}).get("stages", {}).values():
        options = {**stage.get("mixer", {}), **stage.get("pair_sampler", {})}
        names = [stage.get(entry, {}).get("name") for entry in ("mixer", "pair_sampler")]
        if names == ["unimix", "by_class"]:
            factor = {name: options.get(name, value) for name, value in _FACTOR.items()}
            _check_factor(factor)
            return factor
    return dict(_FACTOR)


def _check_factor(factor: dict) -> None:
    """Raise a ValueError for options of UniMix that no run writes."""
    for name, least, most in (("alpha", 1e-9, 1e6), ("class_exponent", -1e3, 1e3)):
        if type(factor[name]) not in (int, float) or not least <= factor[name] <= most:
            raise ValueError(f"{name} {str(factor[name])[:40]}")
    if type(factor["wrap"]) is not bool:
        raise ValueError("wrap is neither true nor false")


def read_files(
    predictions: str | os.PathLike,
    validation: str | os.PathLike | None = None,
    counts: str | os.PathLike | None = None,
    name: str | None = None,
) -> ModelOutputs:
    """Read predictions from an .npz file of any origin.

    Args:
      predictions: an .npz with `logits` or `probabilities`, and what else `metrics.Predictions` holds.
      validation: the same for validation images of the same model, with `labels`.
      counts: see `read_counts`; they win over an array `counts`.
      name: of the model in the report; None for the name of the file.

    Returns:
      The outputs of the model.

    Raises:
      UserError: a file that is not there, not whole, or does not hold what it should.
    """
    test = read_predictions(predictions)
    of_validation = None if validation is None else read_predictions(validation)
    if of_validation is not None and of_validation.labels is None:
        raise UserError(f"{validation} holds no array 'labels', which validation predictions must have")
    if counts is not None:
        classes, class_counts = test.logits.shape[1], read_counts(counts)
        if len(class_counts) != classes:
            raise UserError(f"{counts} holds {len(class_counts)} numbers, but {predictions} has {classes} classes")
        test = test._replace(counts=class_counts)
    return ModelOutputs(name or pathlib.Path(predictions).stem, test, of_validation)


def read_all(
    workdirs: Sequence[str],
    predictions: Sequence[str] = (),
    validations: Sequence[str] = (),
    counts: str | os.PathLike | None = None,
) -> list[ModelOutputs]:
    """Read runs and files, each with a unique name: that of its folder or file, or the path if two would be equal.

    Args:
      workdirs: run directories.
      predictions: see `read_files`.
      validations: one for each of `predictions`, or none.
      counts: for all of `predictions`.

    Returns:
      The outputs of each model.

    Raises:
      UserError: nothing to read, the same twice, or what `read_run` and `read_files` refuse.
    """
    if validations and len(validations) != len(predictions):
        raise UserError(
            f"there are {len(predictions)} --predictions and {len(validations)} --validation files; give one of the "
            "latter for each of the former, in the same order, or none (a run has its own)"
        )
    if counts and not predictions:
        raise UserError("--counts goes with --predictions; a run has its own")
    if not workdirs and not predictions:
        raise UserError("nothing to evaluate; give --workdir=RUN or --predictions=FILE.npz, see --help")
    paths = [pathlib.Path(os.path.realpath(path)) for path in (*workdirs, *predictions)]
    names = [path.stem if i >= len(workdirs) else path.name for i, path in enumerate(paths)]
    names = [os.fsencode(name).decode(errors="replace") for name in names]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    models = [read_run(path, name) for path, name in zip(workdirs, names, strict=False)]
    validation_files = validations or [None] * len(predictions)
    for path, validation, name in zip(predictions, validation_files, names[len(models) :], strict=True):
        models.append(read_files(path, validation, counts or None, name))
    return models


def read_counts(path: str | os.PathLike) -> np.ndarray:
    """Read the number of training images of each class from an .npz file with an array `counts`, or from text.

    Args:
      path: of the file; text holds a number for each class.

    Returns:
      int64[K].

    Raises:
      UserError: no such file, or other contents.
    """
    wrong = UserError(f"{path} must hold a whole number for each class, none below 0: its training images")
    if str(path).endswith(".npz"):
        counts = npz.read_arrays(path, ("counts",), _LARGEST_COUNTS).get("counts")
    else:
        words = storage.read_text(path, _LARGEST_COUNTS).replace(",", " ").split()
        if not all(word.removeprefix("+").isdecimal() and len(word) < 19 for word in words):
            raise wrong
        counts = np.array([int(word) for word in words], np.int64)
    if counts is None or counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts) or counts.min() < 0:
        raise wrong
    if counts.max() > 2**53:  # sums of more would be wrong
        raise wrong
    return counts.astype(np.int64)


class Output(NamedTuple):
    """The files of a report: FILE.html, .md, .csv and .json beside it, and a folder of pictures."""

    html: pathlib.Path
    figures: pathlib.Path

    @property
    def others(self) -> dict[str, pathlib.Path]:
        """The files beside the HTML file by their kind."""
        return {kind: self.html.with_suffix(f".{kind}") for kind in ("md", "csv", "json")}


def output(path: str | os.PathLike) -> Output:
    """Return the files of a report: report.html in a folder, or the named .html file.

    Args:
      path: of the folder or of the .html file.

    Returns:
      The paths.

    Raises:
      UserError: it would overwrite what is no report, or nothing can be written there.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix.lower() in (".html", ".htm") and not path.is_dir():
        paths = Output(path, path.with_name(f"{path.stem}_figures"))
    else:
        of_a_file = path.suffix.lower() in (".pdf", ".png", ".md", ".csv", ".json") and not path.is_dir()
        if path.is_file() or of_a_file:
            raise UserError(f"--output={path} is no folder; name a folder, or a file that ends in .html")
        paths = Output(path / "report.html", path / "figures")
    existing = [p for p in (paths.html, *paths.others.values(), paths.figures) if os.path.lexists(p)]
    if existing and not (paths.html.is_file() and _is_report(paths.html)):
        raise UserError(f"{existing[0]} is there already and is no report; give another --output")
    if reason := _unwritable(paths.html):
        raise UserError(f"{reason}; give another --output")
    return paths


def output_of_run(directory: str | os.PathLike) -> Output:
    """Return the files of a run's report in its own directory; move aside what has such a name and is not a report.

    Files of a report that was never finished, or that lost its HTML file, belong to the run and are written again.

    Args:
      directory: of the run.

    Returns:
      The paths.

    Raises:
      UserError: the directory cannot be written.
    """
    paths = Output(pathlib.Path(directory, "report.html"), pathlib.Path(directory, "figures"))
    if reason := _unwritable(paths.html):
        raise UserError(f"{reason}; see that this directory can be written")
    if paths.html.is_file() and _is_report(paths.html):
        return paths
    foreign = [path for path in paths.others.values() if os.path.lexists(path) and not path.is_file()]
    foreign += [paths.html] if os.path.lexists(paths.html) else []
    foreign += [paths.figures] if os.path.lexists(paths.figures) and not _has_only_pictures(paths.figures) else []
    for path in foreign:
        aside = storage.unused(path)
        _log.warning("%s is no part of a report; it is moved to %s", path, aside.name)
        try:
            path.rename(aside)
        except OSError as error:
            raise UserError(f"cannot move {path} aside ({error.strerror or error}); move or remove it") from None
    return paths


def _has_only_pictures(folder: pathlib.Path) -> bool:
    """Return whether a folder holds nothing but files that `write` may have left there."""
    known = {f"{name}.{kind}{more}" for name in PICTURES for kind in _KINDS for more in ("", ".tmp")}
    try:
        return not folder.is_symlink() and all(path.name in known and path.is_file() for path in folder.iterdir())
    except OSError:
        return False


def _unwritable(html: pathlib.Path) -> str:
    """Return why a file cannot be made, "" if it can."""
    try:
        with tempfile.TemporaryFile(dir=next(p for p in html.absolute().parents if p.exists())):
            return ""
    except OSError as error:
        return f"cannot write {html} ({error.strerror or error})"


def is_report_of(output: Output, digests: dict[str, str]) -> bool:
    """Return whether a report exists that was made from the present results of one run.

    Args:
      output: the paths of the report.
      digests: of the results, see `rundir.output_digests`.

    Returns:
      True if the report need not be made again.
    """
    try:
        content = storage.read_json(output.others["json"])
    except UserError:
        return False
    return content is not None and content.get("inputs") == [digests] and output.html.is_file()


def _is_report(path: pathlib.Path) -> bool:
    try:
        with storage.open_regular(path) as file:
            return html.GENERATOR.encode() in file.read(2000)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def write(
    output: Output,
    title: str,
    about: str,
    sections: list[Section],
    results: list[dict],
    kinds: tuple[str, ...] = _KINDS,
    digests: list[dict[str, str] | None] | None = None,
) -> None:
    """Write a report, each file whole: first the HTML, which marks the others as parts of a report, last the .json.

    Where there is no HTML yet, one that says so stands there before anything else is made: a process killed in
    between leaves nothing that is not known as a report's. What an earlier report left there and this one has not is
    removed.

    Args:
      output: of `output`.
      title: see `html.html_document`.
      about: see `html.html_document`.
      sections: of `sections.of_one` or `of_many`.
      results: of `evaluation.evaluate`; what the .json and .csv hold.
      kinds: of picture files; "png", which the HTML shows, must be one of them.
      digests: of the input files of each result, which `is_report_of` compares; None for a result that is not of a run.

    Raises:
      UserError: it cannot be written.
      Failure: the disk is full, or failed.
    """
    drawn = [picture for section in sections for picture in section.pictures]
    pictures = {(p.name, kind): plots.image(p.figure, kind) for p in drawn for kind in kinds}
    pngs = {p.name: pictures[p.name, "png"] for p in drawn}
    contents = {output.html: html.html_document(title, about, sections, pngs)}
    contents |= {output.figures / f"{name}.{kind}": data for (name, kind), data in pictures.items()}
    contents[output.others["md"]] = html.markdown(title, about, sections, output.figures.name)
    if results:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(csv_rows(results))
        contents[output.others["csv"]] = lines.getvalue()
        contents[output.others["json"]] = storage.json_text({"models": results, "inputs": digests or []})
    known = {output.figures / f"{name}.{kind}" for name in PICTURES for kind in _KINDS}
    try:
        output.html.parent.mkdir(parents=True, exist_ok=True)
        if not output.html.exists():
            begun = Section("Not finished", ("This report was being written and was stopped; make it again.",))
            storage.write_whole(output.html, html.html_document(title, about, [begun], {}))
        if pictures:
            output.figures.mkdir(exist_ok=True)
        for path, content in contents.items():
            storage.write_whole(path, content)
        for path in (known | set(output.others.values())) - contents.keys():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise_write_error(f"cannot write {error.filename or output.html}", error)
