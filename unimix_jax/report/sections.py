"""The sections of a report: sentences, tables and pictures, made from results. `html` lays them out."""

import re
from typing import NamedTuple

import numpy as np

from unimix_jax import metrics
from unimix_jax.errors import printable
from unimix_jax.metrics import per_example
from unimix_jax.report import plots, seeds, tables
from unimix_jax.report.evaluation import ModelOutputs
from unimix_jax.report.tables import Table

_CURVES = "Training (faint) and evaluation on the way (marked: circles for the first split, squares for the second)."
_GROUPS = {
    "shots": "many: more than 100 training images, few: fewer than 20",
    "thirds": "thirds of the classes by training images",
}
_PANELS, _MATRICES = 9, 8  # reliability diagrams and densities, and confusion matrices, side by side at most
_COLUMNS = "a column holds the predictions for the test images of one class and sums to one"


PICTURES = (
    "reliability",
    "density",
    "confusion",
    "log_confusion",
    "accuracy_by_count",
    "training_curves",
    "class_distributions",
    "test_errors",
    "errors_by_imbalance",
)


class Picture(NamedTuple):
    """A figure and its caption."""

    name: str  # of its files, one of PICTURES
    caption: str
    figure: object  # matplotlib's


class Section(NamedTuple):
    """A part of a report."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


# --- Reports


def of_one(outputs: ModelOutputs, result: dict, distributions: tuple[list[dict], dict] | None = None) -> list[Section]:
    """Return the sections of a report on one model.

    Args:
      outputs: what was evaluated.
      result: of `evaluation.evaluate`.
      distributions: arguments of `class_distributions_section`; None leaves the section out.
    """
    sections = [Section("What was run", tables=tables.run_tables(outputs))] if outputs.about else []
    numbers = [tables.measures_table(result)] if "test" in result else []
    if ((outputs.about or {}).get("metrics") or {}).get("best"):
        numbers.append(tables.best_table(outputs.about["metrics"]["best"]))
    if "ensemble" in ((outputs.about or {}).get("metrics") or {}):
        numbers.append(tables.replicates_table(outputs.about["metrics"]))
    if numbers:
        sections.append(Section("Measures", _measures_text(result), tuple(numbers)))
    if "test" in result:
        sections.append(Section("Calibration", (), (), _calibration_pictures(outputs, result)))
    classes = [tables.classes_table(result)] if "test" in result or result["estimates"] else []
    pictures = _class_pictures(outputs, result) if "test" in result else ()
    if classes:
        sections.append(Section("Classes", (), tuple(classes), pictures))
    priors_tables = (*tables.cut_tables(result), *tables.estimates_table(result))
    if priors_tables:
        sections.append(Section("The test prior", (), priors_tables))
    if lines := (outputs.about or {}).get("lines"):
        picture = Picture("training_curves", "Training and evaluation on the way.", plots.training_curves({"": lines}))
        sections.append(Section("Training", pictures=(picture,)))
    if distributions:
        sections.append(class_distributions_section(*distributions))
    return [*sections, *_remarks([result])]


def facts(outputs: ModelOutputs) -> list[Table]:
    """Return the tables of facts about a run; they raise an error if the records are not those of a run."""
    about = outputs.about
    best = (about["metrics"] or {}).get("best")
    if not all(isinstance(line["epoch"], int | float) for line in about["lines"]):
        raise ValueError("an epoch that is no number")
    replicates = [tables.replicates_table(about["metrics"])] if "ensemble" in (about["metrics"] or {}) else []
    return [*tables.run_tables(outputs), *([tables.best_table(best)] if best else []), *replicates]


def of_many(all_outputs: list[ModelOutputs], results: list[dict]) -> list[Section]:
    """Return the sections of a report on several models side by side."""
    measured = [(g, r) for g, r in zip(all_outputs, results, strict=True) if "test" in r]
    ran = [g for g in all_outputs if g.about]
    sections = [Section("What was run", tables=tables.runs_tables(ran))] if ran else []
    shown = []
    if measured:
        tested = [(r["name"], r["test"]) for _, r in measured]
        shown += [tables.side_by_side("Test measures", tested), *tables.intervals_side_by_side(tested)]
        if any("test_at_temperature" in r for _, r in measured):
            cooled = [
                (f"{r['name']} (T = {r['temperature']:.2f})", r["test_at_temperature"])
                for _, r in measured
                if "test_at_temperature" in r
            ]
            shown.append(tables.side_by_side("The same at the temperature fitted on validation", cooled))
        shown += [*seeds.seeds_tables(measured), *seeds.errors_tables(seeds.errors_by_imbalance(measured))]
        shown += [*tables.cut_tables_side_by_side(measured), *tables.estimates_side_by_side(results)]
        corrected = [
            (f"{r['name']}, corrected for {r['corrected']['for']}", r["corrected"])
            for _, r in measured
            if "corrected" in r
        ]
        shown += [tables.side_by_side("The same with corrected logits", corrected)] if corrected else []
        last = "; measures of the last step" if len(ran) == len(all_outputs) else ""
        bins = sorted({r["test"]["bins"] for _, r in measured})
        grouped = sorted({r["test"]["groups"] for _, r in measured if "groups" in r["test"]})
        text = (
            f"On the test images of each model, {_images(measured)}{last}; {bins[0]} bins or ranges, TACE from "
            f"{metrics.THRESHOLD:g} on, ranges weighted by count.",
            *(f"Groups by {by}: {_GROUPS[by]}." for by in grouped),
        )
        sections.append(Section("Measures", text, tuple(shown)))
        sections.append(Section("Pictures", pictures=_side_pictures(measured)))
    if lines := {g.name: g.about["lines"] for g in ran if g.about.get("lines")}:
        picture = Picture("training_curves", _CURVES, plots.training_curves(lines))
        sections.append(Section("Training", pictures=(picture,)))
    return [*sections, *_remarks(results)]


def remarks(results: list[dict], kind: str) -> list[str]:
    """Return the `warnings` or the `missing` of models, with the names of the models if there are several.

    A sentence that holds for all models is returned once.
    """
    lines: dict[str, list[str]] = {}
    for result in results:
        for line in result[kind]:
            lines.setdefault(line, []).append(result["name"])
    every = len(results)
    return [line if len(names) == every else f"{', '.join(names)}: {line}" for line, names in lines.items()]


def _remarks(results: list[dict]) -> list[Section]:
    titles = {"warnings": "Read with care", "missing": "What is missing, and what would give it"}
    sections = [Section(title, tuple(remarks(results, kind))) for kind, title in titles.items()]
    return [section for section in sections if section.text]


def csv_rows(results: list[dict]) -> list[list]:
    """Return every number as a row: run, part, class, measure, value, low, high; values in fractions and nats.

    Names that a spreadsheet would compute, such as =1+1, have an apostrophe before them there.
    """
    rows = [["run", "part", "class", "measure", "value", "low", "high"]]
    for result in results:
        name, names = result["name"], result["class_names"]
        for part in ("test", "validation", "test_at_temperature", "corrected"):
            values = result.get(part, {})
            ends = values.get("intervals", {})
            measured = [key for key in tables.shown_measures(values) if key in values]
            rows += [[name, part, "", key, values[key], *ends.get(key, ["", ""])] for key in measured]
            for key in ("class_accuracy", "class_ece"):
                if key in values:
                    rows += [[name, part, c, key, v, "", ""] for c, v in zip(names, values[key], strict=True)]
            rows += [[name, f"{part}, by chance", "", key, v, "", ""] for key, v in values.get("by_chance", {}).items()]
        for seed, values in result.get("seeds", {}).items():
            measured = [key for key in tables.shown_measures(values) if key in values]
            rows += [[name, f"test, seed {seed}", "", key, values[key], "", ""] for key in measured]
        if "temperature" in result:
            rows.append([name, "validation", "", "temperature", result["temperature"], "", ""])
        for row in result.get("cut_tests", ()):
            for variant, values in row["variants"].items():
                part = f"test cut to imbalance {row['imbalance']:g}, {variant}"
                rows += [[name, part, "", measure, value, "", ""] for measure, value in values.items()]
        for method, estimate in result["estimates"].items():
            ends = [estimate.get(end, [""] * len(names)) for end in ("low", "high")]
            columns = zip(names, estimate["prior"], *ends, strict=True)
            rows += [[name, f"test prior by {method.upper()}", c, "share", *rest] for c, *rest in columns]
    return [[_cell(value) if isinstance(value, str) else value for value in row] for row in rows]


# Characters that begin a formula in spreadsheets, plain and full-width; also behind a semicolon, at which those
# of many countries divide a line. A number is none.
_FORMULA = re.compile(r"(?:^|;)['\"\s]*(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)


def _cell(text: str) -> str:
    """Escape a name for a CSV file, so that no spreadsheet computes it and no terminal is controlled by it."""
    text = printable(text)
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(lambda match: f"{match[0]}'", text)


def printed(results: list[dict]) -> list[Table]:
    """Return the tables that a terminal shows."""
    if len(results) > 1:
        shown = {"Test measures": "test", "The same with corrected logits": "corrected"}
        measured = {title: [(r["name"], r[k]) for r in results if "ece" in r.get(k, {})] for title, k in shown.items()}
        return [tables.side_by_side(title, rows, tables.PRINTED) for title, rows in measured.items() if rows]
    measures = [tables.measures_table(results[0])] if "test" in results[0] else []
    return [*measures, *tables.cut_tables(results[0])[:1], *tables.estimates_table(results[0])]


def class_distributions_section(panels: list[dict], factor: dict) -> Section:
    """Return the section on the class distributions of Corollaries 1 to 3.

    Args:
      panels: of `class_distributions.panels`; the last is UniMix's.
      factor: alpha, class_exponent and wrap of UniMix.
    """
    prior = panels[0]["exact"]
    text = (
        "The red lines are the paper's closed forms, scaled to sum to 1 over the classes: A.4 of the training images, "
        "A.5 of mixup (Corollary 1: the same), A.8 of UniMix's factor with natural partners (Corollary 2), A.12 of "
        "UniMix, factor and sampler (Corollary 3). They are made for counts that fall exponentially from the most to "
        "the least frequent class.",
        "A.8 and A.12 are parts of a distribution: they count only pairs whose natural first image is the rarer one. "
        f"A.8 counts {_rarer_first(prior, 1.0):.2g} % of the pairs of these classes; the pairs whose second image is "
        "the rarer one are as many and have the same distribution. A.12 counts "
        f"{_rarer_first(prior, factor['class_exponent']):.2g} % with this sampler. Both take the factor for constant, "
        "which gives every mixed image to its rarer class.",
        "The bars are the exact distribution of the class that dominates a mixed image under this project's sampler "
        "and factor, the dots a sample of it.",
        _described_factor(factor),
    )
    rows = [
        ["class, most frequent first", *(f"{p['title']}, {kind}" for p in panels for kind in ("exact, %", "drawn, %"))]
    ]
    columns = [p[kind] for p in panels for kind in ("exact", "drawn")]
    rows += [[str(c), *(f"{100 * share:.2f}" for share in row)] for c, row in enumerate(zip(*columns, strict=True), 1)]
    caption = "Class distributions of Corollaries 1 to 3."
    picture = Picture("class_distributions", caption, plots.class_distributions(panels))
    return Section(
        "Class distributions of mixed images", text, (Table("Class distributions", rows, folded=True),), (picture,)
    )


def paper_distributions_section(panels: dict[str, list[dict]], factor: dict) -> Section:
    """Return the section on all panels of the paper's Fig. A1.

    Args:
      panels: of `class_distributions.paper_panels`.
      factor: alpha, class_exponent and wrap of UniMix.
    """
    text = (
        "Lines are the paper's closed forms, scaled to sum to 1 over the classes: A.4 of the training images, A.5 of "
        "mixup (Corollary 1: the same), A.8 of UniMix's factor with natural partners (Corollary 2), A.12 of UniMix, "
        "factor and sampler (Corollary 3). Marks are the exact distribution of the class that dominates a mixed image "
        "under this project's sampler and factor; of 100 classes every fourth or so has one.",
        "A.8 and A.12 are masses, not distributions: they count only the pairs whose natural first image is the rarer "
        "one, and give each of these to that image's class. The table has their share of the pairs of these classes.",
        _described_factor(factor),
    )
    counted = [["panel", "natural partners (A.8), %", "sampled partners (A.12), %"]]
    shares = []
    for title, distributions in panels.items():
        prior, columns = distributions[0]["exact"], [each["exact"] for each in distributions]
        counted.append([title, *(f"{_rarer_first(prior, e):.2g}" for e in (1.0, factor["class_exponent"]))])
        rows = [["class, most frequent first", *(f"{each['title']}, %" for each in distributions)]]
        rows += [[str(c), *(f"{100 * p:.2f}" for p in row)] for c, row in enumerate(zip(*columns, strict=True), 1)]
        shares.append(Table(f"Exact distributions: {title}", rows, folded=True))
    figure = plots.class_distributions_side_by_side(panels)
    caption = "Class distributions of Corollaries 1 to 3: closed forms as lines, exact distributions as marks."
    return Section(
        "Class distributions of mixed images",
        text,
        (Table("Pairs of these classes whose first image is the rarer one", counted), *shares),
        (Picture("class_distributions", caption, figure),),
    )


def _rarer_first(prior: np.ndarray, exponent: float) -> float:
    """Return the percentage of pairs whose natural first image is of a rarer class than its partner."""
    partner_prior = prior**exponent / (prior**exponent).sum()
    return 100 * (prior[:, None] * partner_prior * (prior[:, None] < prior)).sum()


def _described_factor(factor: dict) -> str:
    return (
        f"UniMix here: partner's class by prior to the power {factor['class_exponent']:g}, alpha {factor['alpha']:g}, "
        f"factor {'wrapped' if factor['wrap'] else 'un-wrapped'}."
    )


def _measures_text(result: dict) -> tuple[str, ...]:
    """Return sentences on the measures that a reader must know: bins, intervals, temperature, groups."""
    options, lines = result["options"], []
    lines.append(
        f"Calibration errors have {result['test']['bins']} bins or ranges; ACE and TACE weight ranges by count, TACE "
        f"from {metrics.THRESHOLD:g} on."
    )
    if "intervals" in result["test"]:
        lines.append(
            f"Intervals: bootstrap over the images, {options['samples']} samples; those of ECE and smooth ECE are of "
            "the error that endless images would show, which chance makes larger on few (the intervals of SCE, ACE and "
            "TACE, where there are some, do not allow for that). MCE has none, for it hangs on the few images of one "
            "bin. By chance: what a perfectly calibrated model with "
            "these confidences shows on so many images; a calibration error near that says nothing against the model."
        )
    if "temperature" in result:
        lines.append(
            f"The temperature T = {result['temperature']:.3f} was fitted on the {result['validation']['images']} "
            "validation images, and on nothing else."
        )
    if "groups" in result["test"]:
        lines.append(f"Groups by {result['test']['groups']} ({_GROUPS[result['test']['groups']]}).")
    return tuple(lines)


def _calibration_pictures(outputs: ModelOutputs, result: dict) -> tuple[Picture, ...]:
    bins, labels = result["test"]["bins"], outputs.test.labels
    probabilities = per_example.softmax(outputs.test.logits)
    panels = {"test": metrics.reliability(probabilities, labels, bins)}
    confidence, hits = per_example.top_label(probabilities, labels)
    if "temperature" in result:
        cooled = per_example.softmax(outputs.test.logits / result["temperature"])
        panels[f"test, T = {result['temperature']:.2f}"] = metrics.reliability(cooled, labels, bins)
    batch = _batch(len(hits))
    return (
        Picture(
            "reliability",
            "Accuracy in each bin of confidence, and how many images it holds.",
            plots.reliability(panels),
        ),
        Picture(
            "density",
            f"Accuracy against confidence of mini-batches of {batch} test images drawn at random.",
            plots.density(confidence, hits, batch=batch),
        ),
    )


def _class_pictures(outputs: ModelOutputs, result: dict) -> tuple[Picture, ...]:
    logits, labels, names = np.asarray(outputs.test.logits), outputs.test.labels, result["class_names"]
    counts = None if "counts" not in result else np.array(result["counts"])
    pictures = []
    if counts is not None:
        accuracy = np.array([np.nan if v is None else v for v in result["test"]["class_accuracy"]])
        figure = plots.accuracy_by_count({"": (counts, accuracy)}, names)
        pictures.append(Picture("accuracy_by_count", "Accuracy of each class against its training images.", figure))
    matrix = per_example.confusion_matrix(labels, logits.argmax(axis=1), len(names))
    for log in (False, True):
        name = "log_confusion" if log else "confusion"
        caption = "The same on a logarithmic scale." if log else f"Which class is taken for which: {_COLUMNS}."
        pictures.append(Picture(name, caption, plots.confusion(matrix, counts, names, log=log)))
    return tuple(pictures)


def _side_pictures(measured: list[tuple[ModelOutputs, dict]]) -> tuple[Picture, ...]:
    errors = {r["name"]: (r["test"]["accuracy"], r["test"].get("intervals", {}).get("accuracy")) for _, r in measured}
    intervals = ", with 95 % intervals over images" if any(ends for _, ends in errors.values()) else ""
    pictures = [Picture("test_errors", f"Test error{intervals}.", plots.error_bars(errors))]
    if by_imbalance := seeds.errors_by_imbalance(measured):
        caption = (
            "Test error by imbalance and method: means, standard deviations where there are several seeds, the best "
            "and the worst method of each imbalance."
        )
        pictures.append(Picture("errors_by_imbalance", caption, plots.errors_side_by_side(by_imbalance)))
    bins, tops, matrices = {}, {}, {}
    for outputs, result in measured[:_PANELS]:
        logits, labels, name = np.asarray(outputs.test.logits), outputs.test.labels, result["name"]
        probabilities = per_example.softmax(logits)
        bins[name] = metrics.reliability(probabilities, labels, result["test"]["bins"])
        tops[name] = per_example.top_label(probabilities, labels)
        if len(matrices) < _MATRICES:
            names, counts = result["class_names"], result.get("counts")
            matrix = per_example.confusion_matrix(labels, logits.argmax(axis=1), len(names))
            matrices[name] = matrix, None if counts is None else np.array(counts), names
    batch = _batch(min(len(hits) for _, hits in tops.values()))
    shown, of_matrices = (_first(most, measured) for most in (_PANELS, _MATRICES))
    confused = f"Which class is taken for which{of_matrices}: {_COLUMNS}."
    pictures += [
        Picture("reliability", f"Accuracy in each bin of confidence{shown}.", plots.reliability(bins)),
        Picture(
            "density",
            f"Accuracy against confidence of mini-batches of {batch} test images drawn at random{shown}.",
            plots.densities(tops, batch=batch),
        ),
        Picture("confusion", confused, plots.confusions(matrices)),
        Picture(
            "log_confusion", f"The same on a logarithmic scale{of_matrices}.", plots.confusions(matrices, log=True)
        ),
    ]
    by_count = {}
    for _, result in measured:
        if "counts" in result:
            accuracy = np.array([np.nan if v is None else v for v in result["test"]["class_accuracy"]])
            by_count[result["name"]] = np.array(result["counts"]), accuracy
    if by_count:
        figure = plots.accuracy_by_count(by_count)
        pictures.append(Picture("accuracy_by_count", "Accuracy of each class against its training images.", figure))
    return tuple(pictures)


def _first(most: int, measured: list) -> str:
    """Return words that say that only the first runs are shown; "" if all are."""
    return f" (the first {most} runs)" if len(measured) > most else ""


def _batch(images: int) -> int:
    """Return the size of the mini-batches whose density is drawn."""
    return min(int(np.clip(images // 20, 10, 100)), images)


def _images(measured: list[tuple[ModelOutputs, dict]]) -> str:
    sizes = sorted({r["test"]["images"] for _, r in measured})
    return f"{sizes[0]} each" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
