"""The tables of a report on one model: rows of texts, made from results."""

import json
from typing import NamedTuple

import numpy as np

from unimix_jax import metrics, priors, registry
from unimix_jax.config.compare import flat
from unimix_jax.errors import printable
from unimix_jax.metrics import label_shift
from unimix_jax.report.evaluation import ModelOutputs
from unimix_jax.training import rundir


def _shown_measures() -> dict[str, registry.Measure]:
    """Return how each measure is shown, in the order of a table: accuracies of groups follow those of all classes."""
    shown = {}
    for name, measure in metrics.MEASURES.items():
        shown[name] = measure.traits
        if name == "top5":
            shown |= {group: registry.percent(title=group) for group in priors.GROUPS}
    return shown


MEASURES = _shown_measures()


def shown_measures(*values: dict) -> dict[str, registry.Measure]:
    """Return how each measure is shown, in the order of a table: `MEASURES`, and a user's in these values."""
    return MEASURES | {key: metrics.traits_of(key) for each in values for key in each if ":" in key}


PRINTED = ("accuracy", "many", "medium", "few", "ece", "sce", "brier", "nll")
SIDE_BY_SIDE = ("accuracy", "many", "medium", "few", "ece", "smooth_ece", "mce", "sce", "ace", "tace", "brier", "nll")
_SHOWN_CLASSES = 1000  # rows of the table of classes at most; the CSV has all


class Table(NamedTuple):
    """A table of texts; the first row is the head, the first column the names of the rows."""

    title: str
    rows: list[list[str]]
    note: str = ""
    folded: bool = False  # shown on request


def table(rows: list[list[str]]) -> str:
    """Lay out rows of cells in columns, the first to the left, the others to the right; the first row is a head."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: list[list[str]]) -> str:
    """Lay out rows of cells as a Markdown table; the first row is the head, numbers stand to the right."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    rule = f"| --- |{' ---: |' * (len(rows[0]) - 1)}"
    return "\n".join([lines[0], rule, *lines[1:]])


def closing_table(values: dict) -> str:
    """Return the content of metrics.json as text: accuracy by group and calibration in per cent, by split.

    The splits are measured at the last step; the best evaluation during training has its own column.
    """
    splits = [name for name in ("test", "validation") if name in values]
    columns = [(name, values[name]) for name in splits]
    deviations = [values.get("deviation", {}).get(name, {}) for name in splits]
    if "ensemble" in values:
        columns = [(f"{name}, {len(values['seeds'])} seeds", of) for name, of in columns]
        columns += [(f"{name}, ensemble", values["ensemble"][name]) for name in splits]
    best = values.get("best")
    if best:
        columns.append((f"best {best['split']} (epoch {best['epoch']:g})", best))
    groups = values[splits[0]].get("groups")
    rows = [["per cent", *(name for name, _ in columns)]]
    for label, key in (
        ("accuracy", "accuracy"),
        (f"  many ({groups})", "many"),
        (f"  medium ({groups})", "medium"),
        (f"  few ({groups})", "few"),
        ("ECE", "ece"),
        ("MCE", "mce"),
    ):
        if any(key in values_of for _, values_of in columns):
            cells = [_number(values_of.get(key), 100, 1) for _, values_of in columns]
            for i, deviation in enumerate(deviations):
                if key in deviation:
                    cells[i] += f" ± {_number(deviation[key], 100, 1)}"
            rows.append([label, *cells])
    rows.append(["images", *(str(values_of.get("images", "")) for _, values_of in columns)])
    notes = {values[name]["other_prior"]: name for name in reversed(splits) if "other_prior" in values[name]}
    return "\n".join([table(rows), *(f"{name}: {note}" for note, name in reversed(notes.items()))])


def replicates_table(values: dict) -> Table:
    """Return every measure of replicates on the test split: mean, standard deviation, and those of their ensemble.

    Args:
      values: the content of metrics.json.
    """
    mean, deviation, together = values["test"], values["deviation"]["test"], values["ensemble"]["test"]
    rows = [["measure", "unit", "mean", "standard deviation", "ensemble"]]
    for key, measure in shown_measures(mean).items():
        if key in deviation:
            of = (measure.shown(each.get(key)) for each in (mean, deviation, together))
            rows.append([measure.title, measure.unit, *of])
    seeds = ", ".join(map(str, values["seeds"]))
    note = f"Seeds {seeds}; the ensemble is their mean probability, of which all other sections are."
    return Table("Replicates", rows, note)


def measures_table(result: dict) -> Table:
    """Return every measure of one model: test with intervals, at the fitted temperature, corrected, validation."""
    columns = [("test", result["test"])]
    if "test_at_temperature" in result:
        columns.append((f"test, T = {result['temperature']:.3f}", result["test_at_temperature"]))
    if "corrected" in result and "accuracy" in result["corrected"]:
        calibrated = ", calibrated" if "validation" in result else ""
        columns.append((f"test{calibrated}, corrected for {result['corrected']['for']}", result["corrected"]))
    if "validation" in result:
        columns.append(("validation", result["validation"]))
    test, groups = result["test"], result["test"].get("groups")
    extra = {}  # beside the first column: words, and the cell of each measure
    if "intervals" in test:
        extra["95 % interval"] = test["intervals"]
    if "by_chance" in test:
        extra["by chance"] = {key: [value] for key, value in test["by_chance"].items()}
    rows = [["measure", "unit", columns[0][0], *extra, *(name for name, _ in columns[1:])]]
    for key, measure in shown_measures(test).items():
        if test.get(key) is not None:
            label = f"{measure.title} ({groups})" if key in priors.GROUPS else measure.title
            beside = [" to ".join(map(measure.shown, cells.get(key, ()))) for cells in extra.values()]
            others = [measure.shown(values.get(key)) for _, values in columns[1:]]
            rows.append([label, measure.unit, measure.shown(test[key]), *beside, *others])
    images = [str(values["images"]) for _, values in columns]
    rows.append(["images", "", images[0], *("" for _ in extra), *images[1:]])
    notes = [f"Test: {test['other_prior']}."] if "other_prior" in test else []
    if "accuracy" in result.get("corrected", ()):
        notes.append(f"Corrected: the logits are {result['corrected']['logits']}.")
    return Table("Measures", rows, " ".join(notes))


def best_table(best: dict) -> Table:
    """Return the best evaluation during training, from metrics.json, with a note that it was chosen afterwards."""
    words = f"best of {best['evaluations']} evaluations on {best['split']}"
    rows = [["", "epoch", "accuracy, %", "ECE, %"]]
    rows.append([words, f"{best['epoch']:g}", _number(best["accuracy"], 100), _number(best["ece"], 100, 2)])
    return Table(
        "For comparison: the best epoch", rows, "Chosen with hindsight; the measures above are the last step's."
    )


def side_by_side(title: str, models: list[tuple[str, dict]], keys: tuple[str, ...] = SIDE_BY_SIDE) -> Table:
    """Return the measures of several models, one row each."""
    shown = {k: v for k, v in shown_measures(*(values for _, values in models)).items() if k in keys or ":" in k}
    columns = [key for key in shown if any(values.get(key) is not None for _, values in models)]
    rows = [["run", *(head(shown[key]) for key in columns), "groups by", "images"]]
    for name, values in models:
        cells = [shown[key].shown(values.get(key)) for key in columns]
        rows.append([name, *cells, values.get("groups", "-"), str(values["images"])])
    notes = ["Every measure is in the CSV and JSON files."] if keys is SIDE_BY_SIDE else []
    said: dict[str, list[str]] = {}
    for name, values in models:
        sentences = [values["other_prior"]] if "other_prior" in values else []
        for sentence in (*sentences, *([f"the logits are {values['logits']}"] if "logits" in values else [])):
            said.setdefault(sentence, []).append(name)
    notes += [f"{', '.join(names)}: {sentence}." for sentence, names in said.items()]
    return Table(title, rows, " ".join(notes))


def intervals_side_by_side(models: list[tuple[str, dict]]) -> list[Table]:
    """Return the 95 % intervals of the measures of several models, one row each; [] if there are none."""
    shown = shown_measures(*(values.get("intervals", {}) for _, values in models))
    columns = [key for key in shown if any(key in values.get("intervals", {}) for _, values in models)]
    if not columns:
        return []
    rows = [["run", *(head(shown[key]) for key in columns)]]
    for name, values in models:
        intervals = values.get("intervals", {})
        rows.append([name, *(" to ".join(map(shown[key].shown, intervals.get(key, ()))) or "-" for key in columns)])
    return [Table("95 % intervals of the test measures", rows, folded=True)]


def estimates_side_by_side(results: list[dict]) -> list[Table]:
    """Return the estimated shares of groups of classes of several models."""
    columns = ("true", "EM", "BBSE")
    shares_by_group = [
        [f"{result['name']}: {group}", *(_number(shares.get(column), 100) for column in columns)]
        for result in results
        for group, shares in _group_shares(result).items()
    ]
    if not shares_by_group:
        return []
    rows = [["share of the test images, %", *columns], *shares_by_group]
    return [
        Table("The prior of the test images, estimated without their labels", rows, folded=len(shares_by_group) > 12)
    ]


def cut_tables(result: dict) -> list[Table]:
    """Return accuracy and ECE of one model on subsets of the test set with other imbalances."""
    if "cut_tests" not in result:
        return []
    variants = list(result["cut_tests"][0]["variants"])
    note = (
        "Below 1 the class with the fewest training images has the most test images. Known prior: logits corrected for "
        "it; EM (the default), BBSE: for one that was estimated without a label of these test images."
    )
    if "corrected_logits" in result:
        note += f" The logits that are corrected are {result['corrected_logits']}; those as they are, the model's own."
    shown = []
    for measure, words, decimals in (("accuracy", "Accuracy", 1), ("ece", "ECE", 2)):
        rows = [["imbalance", "images", *variants]]
        for row in result["cut_tests"]:
            cells = [_number(row["variants"][v][measure], 100, decimals) for v in variants]
            rows.append([f"{row['imbalance']:g}", str(row["images"]), *cells])
        shown.append(Table(f"{words} on test sets cut to another imbalance, %", rows, "" if shown else note))
    return shown


def cut_tables_side_by_side(measured: list[tuple[ModelOutputs, dict]]) -> list[Table]:
    """Return accuracies of several models on test subsets of other imbalances, one table for each correction."""
    tables, cut = [], [(r["name"], r["cut_tests"]) for _, r in measured if "cut_tests" in r]
    corrected = [
        f"{r['name']}: the logits are {r['corrected_logits']}." for _, r in measured if "corrected_logits" in r
    ]
    variants = list(dict.fromkeys(v for _, rows in cut for v in rows[0]["variants"]))
    for variant in variants:
        rows = [["run", *(f"{i:g}" for i in label_shift.IMBALANCES)]]
        for name, of_model in cut:
            rows.append([name, *(_number(row["variants"].get(variant, {}).get("accuracy"), 100) for row in of_model)])
        note = "" if variant == "as it is" else " ".join(corrected)
        tables.append(Table(f"Accuracy on test sets cut to an imbalance, {variant}, %", rows, note))
    return tables


def estimates_table(result: dict) -> list[Table]:
    """Return the estimated and true shares of groups of classes; [] without an estimate or groups."""
    shares_by_group = _group_shares(result)
    if not shares_by_group:
        return []
    rows = [["share of the test images, %", *next(iter(shares_by_group.values()))]]
    rows += [[group, *(_number(share, 100) for share in shares.values())] for group, shares in shares_by_group.items()]
    samples = max(estimate["samples"] for estimate in result["estimates"].values())
    note = "EM is the default: test_prior=estimate corrects for its estimate. BBSE stands beside it for comparison."
    note += f" By class in the table of classes, with 95 % intervals (EM: {samples} samples)." if samples else ""
    return [Table("The prior of these test images, estimated without their labels", rows, note)]


def _group_shares(result: dict) -> dict[str, dict[str, float]]:
    """Return shares of the test images by group of classes: true, EM, BBSE if known; {} without an estimate."""
    chosen = metrics.choose_groups(result.get("counts"), result["options"]["by"])
    if not result["estimates"] or chosen is None:
        return {}
    shares = {"true": result["test_share"]} if "test_share" in result else {}
    shares |= {method.upper(): estimate["prior"] for method, estimate in result["estimates"].items()}
    by, groups = chosen
    return {
        f"{name} ({by})": {column: float(np.array(values)[members].sum()) for column, values in shares.items()}
        for name, members in groups.items()
        if members.any()
    }


def classes_table(result: dict) -> Table:
    """Return a row for each class: training images, accuracy, calibration error, true and estimated shares."""
    test, counts, share = result.get("test", {}), result.get("counts"), result.get("test_share")
    columns: list[tuple[str, list[str]]] = []
    if counts:
        columns.append(("training images", [str(c) for c in counts]))
    if test:
        columns.append(("accuracy, %", [_number(v, 100) for v in test["class_accuracy"]]))
        columns.append(("class ECE, %", [_number(v, 100, 3) for v in test["class_ece"]]))
    if share:
        columns.append(("test share, %", [_number(v, 100, 2) for v in share]))
    for method, estimate in result["estimates"].items():
        cells = [_number(v, 100, 2) for v in estimate["prior"]]
        if "low" in estimate:
            ends = zip(cells, estimate["low"], estimate["high"], strict=True)
            cells = [f"{c} ({_number(low, 100)} to {_number(high, 100)})" for c, low, high in ends]
        columns.append((f"share by {method.upper()}, %", cells))
    order = range(result["classes"]) if counts is None else np.argsort(-np.array(counts), kind="stable")
    rows = [["class", *(name for name, _ in columns)]]
    rows += [[result["class_names"][c], *(cells[c] for _, cells in columns)] for c in list(order)[:_SHOWN_CLASSES]]
    note = "" if result["classes"] <= _SHOWN_CLASSES else f"The first {_SHOWN_CLASSES} classes; the CSV has all."
    return Table("Classes, most training images first" if counts else "Classes", rows, note, folded=True)


def run_tables(outputs: ModelOutputs) -> tuple[Table, ...]:
    """Return the facts about a run, and every field of its config."""
    about = outputs.about
    rows = [["what", "value"], *([k, v] for k, v in run_facts(about).items())]
    config = [["field", "value"], *([k, _plain(v)] for k, v in sorted(flat(about["config"]).items()))]
    return Table("Run", rows), Table("Every field of the config", config, folded=True)


def runs_tables(ran: list[ModelOutputs]) -> tuple[Table, ...]:
    """Return the facts that all runs share in one table, and those that differ with a row for each run."""
    facts = [run_facts(outputs.about) for outputs in ran]
    known = list(dict.fromkeys(key for fact in facts for key in fact if key != "command"))
    alike = [key for key in known if len({fact.get(key) for fact in facts}) == 1]
    shown = [Table("In all runs", [["what", "value"], *([key, facts[0][key]] for key in alike)])]
    if unlike := [key for key in known if key not in alike]:
        rows = [
            [outputs.name, *(fact.get(key, "-") for key in unlike)] for outputs, fact in zip(ran, facts, strict=True)
        ]
        shown.append(Table("In each run", [["run", *unlike], *rows]))
    configs = [flat(outputs.about["config"]) for outputs in ran]
    keys = sorted({k for c in configs for k in c if any(c.get(k) != other.get(k) for other in configs)})
    if keys:
        differing = [["field", *(g.name for g in ran)], *([k, *(_plain(c.get(k, "-")) for c in configs)] for k in keys)]
        shown.append(Table("Fields in which the configs differ", differing, folded=True))
    return tuple(shown)


def run_facts(about: dict) -> dict[str, str]:
    """Return the facts about a run in words: method, data, length, seed, versions, time."""
    config, run = about["config"], about["run"] or {}
    data, start = run.get("data", {}), (run.get("starts") or [{}])[-1]
    train, environment = data.get("train", {}), rundir.environment(start)
    facts = {"method": config.get("method", {}).get("name"), "network": config.get("network")}
    source = config.get("data", {})
    if imbalance := source.get("imbalance"):
        facts["data"] = f"{source.get('source')}, " + (f"imbalance {imbalance:g}" if imbalance > 1 else "not cut")
    if counts := train.get("counts"):
        facts["training images"] = f"{sum(counts)} of {len(counts)} classes, {max(counts)} to {min(counts)} a class"
        facts["training data, digest"] = train.get("digest")
    for split in ("validation", "test"):
        if split in data:
            facts[f"{split} images"] = f"{data[split]['images']}, digest {data[split]['digest']}"
    if run.get("unreadable"):
        facts["images that could not be read"] = (
            f"{run['unreadable']}, left out of training and evaluation; see unreadable.txt in the run directory"
        )
    lines = about.get("lines") or []
    last = max((line["epoch"] for line in lines), default=None)
    facts["measured at"] = None if last is None else f"the last step, epoch {last:g}"
    if config.get("seed") is not None:
        others = f" to {config['seed'] + config['replicates'] - 1}" if config.get("replicates", 1) > 1 else ""
        facts["first weights"] = f"drawn at random, seed {config['seed']}{others}"
    if "init" in data:
        facts["first weights"] = f"{config.get('pretrained')}, digest {data['init']['digest']}"
    optim = config.get("optim", {})
    if "epochs" in config and "learning_rate" in optim:
        facts["optimisation"] = (
            f"{config['epochs']} epochs, batch {config.get('batch_size')}, learning rate {optim['learning_rate']}"
        )
    facts["test prior trained for"] = config.get("test_prior")
    facts["state"] = run.get("state")
    facts["started"] = start.get("time")
    facts["seconds of the last start"] = None if run.get("seconds") is None else f"{run['seconds']:g}"
    facts["version"] = " ".join(str(v) for v in (start.get("version"), start.get("commit")) if v)
    facts["environment"] = ", ".join(
        f"{k} {v}" for k, v in environment.items() if k in ("device", "devices", "jax", "python", "cpu_threads")
    )
    facts["command"] = " ".join(start.get("command", [])) or None
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _number(value: float | None, factor: float = 1, decimals: int = 1) -> str:
    return "-" if value is None else f"{factor * value:.{decimals}f}"


def head(measure: registry.Measure) -> str:
    """Return the head of a measure's column."""
    return f"{measure.short_title}, {measure.unit}"


def _plain(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
