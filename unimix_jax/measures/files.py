"""What is evaluated comes from files, and reports go to files. Touches files."""

import csv
import io
import logging
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unimix_jax import storage, workdir
from unimix_jax.errors import UserError, unwritten
from unimix_jax.measures import page, plots, report
from unimix_jax.measures.evaluation import Given

_log = logging.getLogger(__name__)

_KINDS = ("png", "pdf")  # of picture files
_LARGEST_COUNTS = 4 * storage.MIB  # bytes of a file of counts


def read_run(directory: str | os.PathLike, name: str | None = None) -> Given:
    """Read a finished run.

    Args:
      directory: a run directory.
      name: what a report calls it; None for the directory's own.

    Raises:
      UserError: no run directory, or a run that has not been finished.
    """
    directory = pathlib.Path(directory)
    if directory.is_file():
        raise UserError(f"--workdir={directory} is a file; give predictions by --predictions={directory}")
    config = workdir.read_json(directory / workdir.CONFIG)
    if config is None:
        raise UserError(f"{directory} is no run directory: it has no {workdir.CONFIG}")
    test = directory / workdir.predictions_file("test")
    if not test.exists():
        raise UserError(f"the run in {directory} is not finished: it has no {test.name}; start its command again first")
    validation = directory / workdir.predictions_file("validation")
    about = {
        "config": config,
        "run": workdir.read_json(directory / workdir.RUN),
        "metrics": workdir.read_json(directory / workdir.METRICS),
        "lines": workdir.read_metrics(directory / workdir.METRICS_LINES),
    }
    about["digests"] = workdir.output_digests(directory)
    about["changed"], about["gone"] = workdir.changed_outputs(directory, about["run"])
    given = Given(
        name or directory.resolve().name,
        workdir.read_predictions(test),
        workdir.read_predictions(validation) if validation.exists() else None,
        about,
    )
    try:
        report.facts(given)
        _check_stages(config)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{directory} holds records that no run writes ({error!r}); restore them") from None
    return given


def _check_stages(config: dict) -> None:
    """Fail where a config's stages are not what a run writes: the report draws the laws of their factor."""
    for stage in config.get("method", {}).get("stages", {}).values():
        mixer, partners = stage.get("mixer", {}), stage.get("partners", {})
        if (mixer.get("name"), partners.get("name")) != ("unimix", "by_class"):
            continue
        for part, key, least, most in ((mixer, "alpha", 1e-9, 1e6), (partners, "class_exponent", -1e3, 1e3)):
            value = part.get(key, 1)
            if type(value) not in (int, float) or not least <= value <= most:
                raise ValueError(f"{key} {str(value)[:40]}")
        if type(mixer.get("wrap", True)) is not bool:
            raise ValueError("wrap is neither true nor false")


def read_files(
    predictions: str | os.PathLike,
    validation: str | os.PathLike | None = None,
    counts: str | os.PathLike | None = None,
    name: str | None = None,
) -> Given:
    """Read anyone's predictions.

    Args:
      predictions: an .npz with `logits` or `probabilities`, and what else `batch.Predictions` holds.
      validation: the same for validation images of the same model, with `labels`.
      counts: see `read_counts`; they win over an array `counts`.
      name: what a report calls them; None for the file's own.

    Raises:
      UserError: a file that is not there, not whole, or does not hold what it should.
    """
    test = workdir.read_predictions(predictions)
    held = None if validation is None else workdir.read_predictions(validation)
    if held is not None and held.labels is None:
        raise UserError(f"{validation} holds no array 'labels', which validation predictions must have")
    if counts is not None:
        classes, found = test.logits.shape[1], read_counts(counts)
        if len(found) != classes:
            raise UserError(f"{counts} holds {len(found)} numbers, but {predictions} has {classes} classes")
        test = test._replace(counts=found)
    return Given(name or pathlib.Path(predictions).stem, test, held)


def read_all(
    workdirs: Sequence[str],
    predictions: Sequence[str] = (),
    validations: Sequence[str] = (),
    counts: str | os.PathLike | None = None,
) -> list[Given]:
    """Read runs and files, each under a name of its own: that of its folder or file, or the path where two have one.

    Args:
      workdirs: run directories.
      predictions: see `read_files`.
      validations: one for each of `predictions`, or none.
      counts: for all of `predictions`.

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
    found = [read_run(path, name) for path, name in zip(workdirs, names, strict=False)]
    held = validations or [None] * len(predictions)
    for path, validation, name in zip(predictions, held, names[len(found) :], strict=True):
        found.append(read_files(path, validation, counts or None, name))
    return found


def read_counts(path: str | os.PathLike) -> np.ndarray:
    """Read the training images of each class: an .npz with an array `counts`, or text with a number a class.

    Returns:
      int64[K].

    Raises:
      UserError: no such file, or other contents.
    """
    wrong = UserError(f"{path} must hold a whole number for each class, none below 0: its training images")
    if str(path).endswith(".npz"):
        counts = storage.read_arrays(path, ("counts",), _LARGEST_COUNTS).get("counts")
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
    """Where a report goes: FILE.html, .md, .csv and .json beside it, and a folder of pictures."""

    html: pathlib.Path
    figures: pathlib.Path

    @property
    def others(self) -> dict[str, pathlib.Path]:
        """The files beside the HTML, by their kind."""
        return {kind: self.html.with_suffix(f".{kind}") for kind in ("md", "csv", "json")}


def output(path: str | os.PathLike) -> Output:
    """Return where a report goes: report.html in a folder, or the .html file that is named.

    Raises:
      UserError: it would overwrite what is no report, or nothing can be written there.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix.lower() in (".html", ".htm") and not path.is_dir():
        found = Output(path, path.with_name(f"{path.stem}_figures"))
    else:
        of_a_file = path.suffix.lower() in (".pdf", ".png", ".md", ".csv", ".json") and not path.is_dir()
        if path.is_file() or of_a_file:
            raise UserError(f"--output={path} is no folder; name a folder, or a file that ends in .html")
        found = Output(path / "report.html", path / "figures")
    taken = [p for p in (found.html, *found.others.values(), found.figures) if os.path.lexists(p)]
    if taken and not (found.html.is_file() and _is_report(found.html)):
        raise UserError(f"{taken[0]} is there already and is no report; give another --output")
    if why := _unwritable(found.html):
        raise UserError(f"{why}; give another --output")
    return found


def output_of_run(directory: str | os.PathLike) -> Output:
    """Return where a run's report goes, into its own directory; move aside what has a name of it and is none.

    A run directory is the run's own: files of a report that was never finished, or lost its page, are written anew.

    Raises:
      UserError: nothing can be written there.
    """
    found = Output(pathlib.Path(directory, "report.html"), pathlib.Path(directory, "figures"))
    if why := _unwritable(found.html):
        raise UserError(f"{why}; see that this directory can be written")
    if found.html.is_file() and _is_report(found.html):
        return found
    strange = [path for path in found.others.values() if os.path.lexists(path) and not path.is_file()]
    strange += [found.html] if os.path.lexists(found.html) else []
    strange += [found.figures] if os.path.lexists(found.figures) and not _only_pictures(found.figures) else []
    for path in strange:
        aside = workdir.unused(path)
        _log.warning("%s is no part of a report; it is moved to %s", path, aside.name)
        try:
            path.rename(aside)
        except OSError as error:
            raise UserError(f"cannot move {path} aside ({error.strerror or error}); move or remove it") from None
    return found


def _only_pictures(folder: pathlib.Path) -> bool:
    """Whether a folder holds nothing but files that `write` may have left there."""
    known = {f"{name}.{kind}{more}" for name in report.PICTURES for kind in _KINDS for more in ("", ".tmp")}
    try:
        return not folder.is_symlink() and all(path.name in known and path.is_file() for path in folder.iterdir())
    except OSError:
        return False


def _unwritable(html: pathlib.Path) -> str:
    """Say why a file cannot be made, "" if it can."""
    try:
        with tempfile.TemporaryFile(dir=next(p for p in html.absolute().parents if p.exists())):
            return ""
    except OSError as error:
        return f"cannot write {html} ({error.strerror or error})"


def is_of(place: Output, digests: dict[str, str]) -> bool:
    """Whether a report is there, and of one run's results as they are now.

    Args:
      place: of the report.
      digests: of the results, of `workdir.output_digests`.
    """
    try:
        made = workdir.read_json(place.others["json"])
    except UserError:
        return False
    return made is not None and made.get("inputs") == [digests] and place.html.is_file()


def _is_report(path: pathlib.Path) -> bool:
    try:
        with storage.open_regular(path) as file:
            return page.GENERATOR.encode() in file.read(2000)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def write(
    place: Output,
    title: str,
    about: str,
    sections: list[report.Section],
    results: list[dict],
    kinds: tuple[str, ...] = _KINDS,
    digests: list[dict[str, str] | None] | None = None,
) -> None:
    """Write a report: every file whole; the HTML, which marks the rest as a report's, first, the .json last.

    Where there is no HTML yet, one that says so stands there before anything else is made: a process killed in
    between leaves nothing that is not known as a report's. What an earlier report left there and this one has not is
    removed.

    Args:
      place: of `output`.
      title, about: see `page.html_page`.
      sections: of `report.of_one` or `of_many`.
      results: of `evaluation.evaluate`; what the .json and .csv hold.
      kinds: of picture files; "png", which the HTML shows, must be one of them.
      digests: of each result's input files, which `is_of` compares; None for a result that is of no run.

    Raises:
      UserError: it cannot be written.
      Failure: the disk is full, or failed.
    """
    drawn = [picture for section in sections for picture in section.pictures]
    pictures = {(p.name, kind): plots.image(p.figure, kind) for p in drawn for kind in kinds}
    pngs = {p.name: pictures[p.name, "png"] for p in drawn}
    contents = {place.html: page.html_page(title, about, sections, pngs)}
    contents |= {place.figures / f"{name}.{kind}": data for (name, kind), data in pictures.items()}
    contents[place.others["md"]] = page.markdown(title, about, sections, place.figures.name)
    if results:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(report.csv_rows(results))
        contents[place.others["csv"]] = lines.getvalue()
        contents[place.others["json"]] = workdir.json_text({"models": results, "inputs": digests or []})
    known = {place.figures / f"{name}.{kind}" for name in report.PICTURES for kind in _KINDS}
    try:
        place.html.parent.mkdir(parents=True, exist_ok=True)
        if not place.html.exists():
            begun = report.Section("Not finished", ("This report was being written and was stopped; make it again.",))
            workdir.write_whole(place.html, page.html_page(title, about, [begun], {}))
        if pictures:
            place.figures.mkdir(exist_ok=True)
        for path, content in contents.items():
            workdir.write_whole(path, content)
        for path in (known | set(place.others.values())) - contents.keys():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritten(f"cannot write {error.filename or place.html}", error) from None
