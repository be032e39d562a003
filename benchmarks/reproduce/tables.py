"""The tables, as Markdown: rows of results, mean and standard deviation of the seeds that are there."""

import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.reproduce import items, published, store
from benchmarks.reproduce.runs import SCALES, TEST_IMBALANCES, Run
from unimix_jax import priors
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.report.tables import MEASURES, markdown_table
from unimix_jax.theory import exact

_LOWER_IS_BETTER = ("ace", "tace", "sce", "brier", "ece", "mce", "nll")
_D1_SHOWN = (*_LOWER_IS_BETTER, "accuracy", "many", "medium", "few")
NAMES = {"cifar10": "CIFAR-10-LT", "cifar100": "CIFAR-100-LT", "digits": "digits"}
_VARIANT_WORDS = {
    "unwrapped": "un-wrapped factor",
    "constant_share": "constant share",
    "natural_partners": "natural partners",
    "bfloat16": "bfloat16",
    "permuted": "one permutation an epoch",
    "independent": "drawn independently",
    **{f"test_prior_{imbalance:g}": f"for imbalance {imbalance:g}" for imbalance in TEST_IMBALANCES},
}


def spread(values: np.ndarray, decimals: int = 1, factor: float = 1.0) -> str:
    """Return "mean ± standard deviation" of the values that are numbers; of one its value, of none "-"."""
    values = factor * np.asarray(values)[~np.isnan(values)]
    if not len(values):
        return "-"
    mean = f"{values.mean():.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{decimals}f}"


def cell(results: list[dict], measure: str, where: str = "test") -> str:
    """Return a measure of some results as a report shows it."""
    shown = MEASURES[measure]
    return spread(store.values_of(results, measure, where), shown.decimals, shown.factor)


def seeds(results: list[dict]) -> str:
    """Return how many results there are, and how many of them are not finite."""
    lost = sum(result["state"] != store.COMPLETE for result in results)
    return f"{len(results)}, {lost} not finite" if lost else str(len(results))


def label(run: Run) -> str:
    """Return the name of a run's row."""
    return f"`{run.method}`" + (f", {_VARIANT_WORDS[run.variant]}" if run.variant else "")


def grouped(scale: str, item: str, results: pathlib.Path) -> dict[Run, list[dict]]:
    """Return the results of an item's runs that are there, in the order of its runs; of every seed that was done."""
    folders = dict.fromkeys(run.of_seeds for run in items.ITEMS[item].runs(scale, 1))
    groups = {}
    for run in folders:
        numbers = sorted(int(path.stem) for path in (results / run.folder).glob("*.json") if path.stem.isdigit())
        if numbers:
            groups[run] = [store.read(run._replace(seed=number), results) for number in numbers]
    return groups


def _by_set(groups: dict[Run, list[dict]]) -> dict[tuple[str, int], dict[Run, list[dict]]]:
    sets: dict[tuple[str, int], dict[Run, list[dict]]] = {}
    for run, results in groups.items():
        sets.setdefault((run.data, run.imbalance), {})[run] = results
    return sets


def _head(measures: Iterable[str]) -> list[str]:
    return [f"{MEASURES[name].short_title}, {MEASURES[name].unit}".rstrip(", ") for name in measures]


def d1(scale: str, results: pathlib.Path) -> list[str]:
    """Return the tables of calibration, and at the paper's scale those beside the paper's figures."""
    parts = []
    for (data, imbalance), groups in _by_set(grouped(scale, "d1", results)).items():
        rows = rows_of_methods(groups, _D1_SHOWN)
        parts += [f"{NAMES[data]}, imbalance {imbalance}:", markdown_table(rows)]
        if scale == "paper" and data in published.D1:
            rows = [
                [
                    "method",
                    *(
                        f"{MEASURES[name].short_title}: {what}"
                        for name in published.D1_MEASURES
                        for what in ("paper", "ours", "difference")
                    ),
                ]
            ]
            for run, of_seeds in groups.items():
                cells = []
                for name, theirs in zip(published.D1_MEASURES, published.D1[data][run.method], strict=True):
                    ours = MEASURES[name].factor * store.values_of(of_seeds, name)
                    decimals = 2 if theirs >= 2 else 3
                    cells += [f"{theirs:g}", spread(ours, decimals), _difference(ours, theirs, decimals)]
                rows.append([label(run), *cells])
            parts += ["Beside the paper:", markdown_table(rows)]
    return parts


def _difference(ours: np.ndarray, theirs: float, decimals: int = 1) -> str:
    ours = ours[~np.isnan(ours)]
    return f"{ours.mean() - theirs:+.{decimals}f}" if len(ours) else "-"


def _on_cut_test(results: list[dict], imbalance: float, variant: str) -> np.ndarray:
    """Return the accuracy on the test set of an imbalance, in per cent, of each result that is complete."""
    rows = [row for result in results for row in result.get("cut_tests", ()) if np.isclose(row["imbalance"], imbalance)]
    return np.array([100 * row["variants"][variant]["accuracy"] for row in rows if variant in row["variants"]])


def d2(scale: str, results: pathlib.Path) -> list[str]:
    """Return the accuracies on test sets of other imbalances: as trained, trained for each, corrected afterwards."""
    parts = []
    for (data, imbalance), groups in _by_set(grouped(scale, "d2", results)).items():
        rows = [["test set's imbalance", "seeds", *(f"{each:g}" for each in TEST_IMBALANCES)], *_d2_rows(groups)]
        if scale == "paper" and data == "cifar100":
            for method, values in published.D2.get(imbalance, {}).items():
                rows.append([f"the paper's `{method}`", "1", *(f"{value:.2f}" for value in values)])
        parts += [f"{NAMES[data]}, training imbalance {imbalance}, accuracy in per cent:", markdown_table(rows)]
        logits = dict.fromkeys(result.get("corrected_logits") for of_seeds in groups.values() for result in of_seeds)
        parts.append(f"The logits that are corrected: {'; '.join(filter(None, logits)) or 'those of the model'}.")
    return parts


def _d2_rows(groups: dict[Run, list[dict]]) -> list[list[str]]:
    by_name = {(run.method, run.variant): of_seeds for run, of_seeds in groups.items()}
    trained_for = {each: ("bayias", "" if each == 1 else f"test_prior_{each:g}") for each in TEST_IMBALANCES}
    wanted = [  # name, the run of each test set, logits
        ("`erm`, as it is", ("erm", ""), "as it is"),
        ("`erm`, corrected: known prior", ("erm", ""), "known prior"),
        ("`erm`, corrected: EM", ("erm", ""), "EM"),
        ("`logit_adjustment`, as it is", ("logit_adjustment", ""), "as it is"),
        ("`bayias`, trained for each prior", None, "as it is"),
        ("`bayias`, trained for 1, corrected: known prior", ("bayias", ""), "known prior"),
        ("`bayias`, trained for 1, corrected: EM", ("bayias", ""), "EM"),
    ]
    rows = []
    for name, of_run, logits in wanted:
        columns = [by_name.get(of_run or trained_for[each], []) for each in TEST_IMBALANCES]
        values = [_on_cut_test(of_seeds, at, logits) for of_seeds, at in zip(columns, TEST_IMBALANCES, strict=True)]
        if any(map(len, values)):
            rows.append([name, _range([*map(len, values)]), *map(spread, values)])
    return rows


def d3(scale: str, results: pathlib.Path) -> list[str]:
    """Return accuracy and ECE after the first and after the second stage."""
    groups = grouped(scale, "d3", results)
    if not groups:
        return []
    data = next(iter(groups)).data
    imbalances = list(dict.fromkeys(run.imbalance for run in groups))
    beside = scale == "paper" and data == "cifar100"
    columns = [
        f"{imbalance}: {what}"
        for imbalance in imbalances
        for what in ("accuracy, %", "ECE, %", *(("paper",) if beside else ()))
    ]
    rows = [["method", "stage", "seeds", *columns]]
    for method in items.D3_METHODS:
        for stage in (1, 2):
            cells, of_columns = [], []
            for imbalance in imbalances:
                of_seeds = next(
                    (v for run, v in groups.items() if (run.method, run.imbalance) == (method, imbalance)), []
                )
                of_seeds = of_seeds if stage == 2 else [_first_stage(result) for result in of_seeds]
                cells += [cell(of_seeds, "accuracy"), cell(of_seeds, "ece")]
                of_columns.append(of_seeds)
                if beside:
                    theirs = published.D3[method][stage - 1].get(imbalance)
                    cells.append("-" if theirs is None else f"{theirs[0]:g} / {theirs[1]:g}")
            rows.append([f"`{method}`", str(stage), _seeds_of_cells(of_columns), *cells])
    return [f"{NAMES[data]}, by training imbalance:", markdown_table(rows)]


def _first_stage(result: dict) -> dict:
    """Return a result with the measures after the first stage in place of those after the last one."""
    return result | {"test": next(iter(result.get("stages", {}).values()), None)}


def _seeds_of_cells(of_columns: list[list[dict]]) -> str:
    """Return how many results a row's columns have, and how many of all of them are not finite, as `seeds` does."""
    lost = sum(result["state"] != store.COMPLETE for results in of_columns for result in results)
    numbers = _range([*map(len, of_columns)])
    return f"{numbers}, {lost} not finite" if lost else numbers


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def main(scale: str, results: pathlib.Path) -> list[str]:
    """Return the accuracy of every recipe: of one imbalance with more measures, else beside published accuracies."""
    groups = grouped(scale, "main", results)
    sets = _by_set(groups)
    if not sets:
        return []
    if not SCALES[scale].every_imbalance:
        return [part for key, of_set in sets.items() for part in _measures_of_recipes(key, of_set)]
    rows = [["method", "seeds", *(f"{NAMES[data]}-{imbalance}" for data, imbalance in sorted(sets))]]
    for method in dict.fromkeys(run.method for run in groups):
        cells, of_columns = [], []
        for data, imbalance in sorted(sets):
            of_seeds = next((v for run, v in sets[data, imbalance].items() if run.method == method), [])
            values = 100 * store.values_of(of_seeds, "accuracy")
            theirs = published.PAPER.get(method, {}).get((data, imbalance))
            text = spread(values)
            if theirs is not None:
                doubt = "" if theirs.verified else "?"
                text += (
                    f" ({theirs.percent:.1f}{doubt}{', ' + _difference(values, theirs.percent) if len(values) else ''})"
                )
            cells.append(text)
            of_columns.append(of_seeds)
        rows.append([f"`{method}`", _seeds_of_cells(of_columns), *cells])
    notes = "In brackets the paper's accuracy and ours less it; ? marks one that no stored page confirms."
    return [notes, markdown_table(rows), *_other_codes(sets)]


def _measures_of_recipes(key: tuple[str, int], groups: dict[Run, list[dict]]) -> list[str]:
    rows = rows_of_methods(groups, ("accuracy", "many", "medium", "few", "ece", "mce", "nll"))
    return [f"{NAMES[key[0]]}, imbalance {key[1]}:", markdown_table(rows)]


def rows_of_methods(groups: dict[Run, list[dict]], measures: tuple[str, ...]) -> list[list[str]]:
    """Return a row for each method: measures of the last epoch; those of a validation's temperature, the best epoch."""
    everything = [result for of_seeds in groups.values() for result in of_seeds]
    more = {}
    if any(result.get("test_at_temperature") for result in everything):
        more["at the validation's temperature: ECE, %"] = "ece", "test_at_temperature"
    if any(result.get("best_on_test") for result in everything):
        more["best epoch on test: accuracy, %"] = "accuracy", "best_on_test"
    rows = [["method", "seeds", *_head(measures), *more]]
    for run, of_seeds in groups.items():
        cells = [cell(of_seeds, name) for name in measures] + [cell(of_seeds, *which) for which in more.values()]
        rows.append([label(run), seeds(of_seeds), *cells])
    return rows


def _other_codes(sets: dict[tuple[str, int], dict[Run, list[dict]]]) -> list[str]:
    """Return the accuracies that other code bases report, beside ours, where both are there."""
    rows = [["method", "data", "ours, %", *published.OTHERS]]
    for (data, imbalance), groups in sorted(sets.items()):
        for run, of_seeds in groups.items():
            theirs = [of_methods.get(run.method, {}).get((data, imbalance)) for of_methods in published.OTHERS.values()]
            if any(theirs) and len(store.values_of(of_seeds, "accuracy")):
                cells = ["-" if value is None else f"{value.percent:.1f}" for value in theirs]
                rows.append([label(run), f"{NAMES[data]}-{imbalance}", cell(of_seeds, "accuracy"), *cells])
    return ["Beside other code bases:", markdown_table(rows)] if len(rows) > 1 else []


def factor(scale: str, results: pathlib.Path) -> list[str]:
    """Return UniMix's factor in several forms: the distribution of the dominant label, and what comes of it."""
    parts = []
    measures = ("accuracy", "many", "medium", "few", "ece", "nll")
    for (data, imbalance), groups in _by_set(grouped(scale, "factor", results)).items():
        counts = np.array(next(iter(groups.values()))[0]["data"]["train"]["counts"])
        rows = [["method", "seeds", "dominant label: head, middle, tail, %", "rarer dominates, %", *_head(measures)]]
        for run, of_seeds in groups.items():
            shares, rarer = dominant_label(run, counts)
            rarer_words = "-" if rarer is None else f"{100 * rarer:.0f}"
            words = ", ".join(f"{100 * share:.0f}" for share in shares)
            rows.append([label(run), seeds(of_seeds), words, rarer_words, *(cell(of_seeds, m) for m in measures)])
        parts += [f"{NAMES[data]}, imbalance {imbalance}:", markdown_table(rows)]
    return parts


def dominant_label(run: Run, counts: np.ndarray) -> tuple[list[float], float | None]:
    """Return the exact shares of the thirds of classes among the labels that dominate a mixed image, while it mixes.

    Args:
      run: of the table of factors.
      counts: int[K], training images per class.

    Returns:
      Shares of the most frequent, middle and rarest third, and the probability that the rarer class dominates where
      two classes differ in their counts, None without mixing. Partners from the batch count as in a large one.
    """
    counts = np.sort(counts)[::-1].astype(np.float64)
    prior = priors.prior(counts)
    groups = priors.groups(counts, "thirds").values()
    mixed = RECIPES[run.method]["stages"].get("mixed")
    if mixed is None:
        return [float(prior[members].sum()) for members in groups], None
    sampler = mixed["pair_sampler"]
    exponent = sampler.get("class_exponent", 1 + sampler.get("image_exponent", 0.0))
    partner = priors.prior(counts, 1.0 if run.variant == "natural_partners" else exponent)
    a, b = counts[:, None], counts[None, :]
    if run.variant == "constant_share":
        preferred = np.where(a == b, 0.5, a < b)
    else:
        wrap = mixed["mixer"]["wrap"] and run.variant != "unwrapped"
        preferred = exact.preference(a, b, alpha=mixed["mixer"]["alpha"], wrap=wrap)
    law = exact.mixed_class_distribution(prior, partner, preferred)
    weight = np.where(a != b, prior[:, None] * partner[None, :], 0)
    rarer = np.where(a < b, preferred, 1 - preferred)
    return [float(law[members].sum()) for members in groups], float((weight * rarer).sum() / weight.sum())


WINDOWS = (10, 50)  # steps before a fall of the rate, and before the end


def order(scale: str, results: pathlib.Path) -> list[str]:
    """Return how the recall of rare classes varies over seeds, and whether it follows the last batches of a rate."""
    from scipy import stats

    parts = []
    for (data, imbalance), groups in _by_set(grouped(scale, "order", results)).items():
        ends = [f"{steps} steps before {where}" for where in ("the first fall", "the end") for steps in WINDOWS]
        rows = [["images of a batch", "seeds", "few, %", "least to most", *(f"r, {end} (p)" for end in ends)]]
        for run, of_seeds in groups.items():
            few = 100 * store.values_of(of_seeds, "few")
            if not len(few):
                rows.append([_VARIANT_WORDS[run.variant], seeds(of_seeds), *["-"] * (2 + len(ends))])
                continue
            cells = [spread(few), f"{few.min():.1f} to {few.max():.1f}"]
            images = np.array([result["rare_images"] for result in of_seeds if result["state"] == store.COMPLETE])
            fall = round(of_seeds[0]["config"]["optim"]["decay_at"][0] * images.shape[1])
            for last in (fall, images.shape[1]):
                for steps in WINDOWS:
                    rare = images[:, last - steps : last].sum(1)
                    if len(few) < 3 or not (few.std() and rare.std()):
                        cells.append("-")
                        continue
                    test = stats.pearsonr(rare, few)
                    cells.append(f"{test.statistic:+.2f} ({test.pvalue:.2f})")
            rows.append([_VARIANT_WORDS[run.variant], seeds(of_seeds), *cells])
        parts += [f"{NAMES[data]}, imbalance {imbalance}, `bayias`, ResNet-8, 10 epochs:", markdown_table(rows)]
        parts.append("r: correlation of the recall of the rarest third with the number of its images in these steps.")
    return parts


def bfloat16(scale: str, results: pathlib.Path) -> list[str]:
    """Return accuracy and calibration in float32 and in bfloat16."""
    parts = []
    for (data, imbalance), groups in _by_set(grouped(scale, "bfloat16", results)).items():
        if not any(run.variant for run in groups):
            continue
        measures = ("accuracy", "few", "ece", "nll")
        rows = [["method", "seeds", *_head(measures)]]
        rows += [
            [label(run), seeds(of_seeds), *(cell(of_seeds, m) for m in measures)] for run, of_seeds in groups.items()
        ]
        parts += [f"{NAMES[data]}, imbalance {imbalance}:", markdown_table(rows)]
    return parts


TABLES: dict[str, Callable[[str, pathlib.Path], list[str]]] = {
    "d1": d1, "d2": d2, "d3": d3, "main": main, "factor": factor, "order": order, "bfloat16": bfloat16,
}  # fmt: skip
