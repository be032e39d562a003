"""Runs that differ in their seed only, and the seeds of replicates: joined by mean and standard deviation."""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unimix_jax.config import fields
from unimix_jax.config.compare import flat
from unimix_jax.report.evaluation import ModelOutputs
from unimix_jax.report.tables import MEASURES, SIDE_BY_SIDE, Table, head

_OF_SEEDS = ("seed", "replicates")
_OF_DATA = ("data.source", "data.imbalance")  # what a picture of errors by imbalance has on its axes and panels


class Joined(NamedTuple):
    """Runs of one config but for the seed: their names, and the measures of the test images by seed."""

    config: dict  # flat, without the seeds and the fields that change no number
    names: list[str]
    measures: dict[int, dict]


def joined(measured: list[tuple[ModelOutputs, dict]]) -> list[Joined]:
    """Join runs that differ in their seed only; each seed of replicates counts as a run, and no seed counts twice.

    Fields that change no number of a run, or only by way of the data, may differ: paths, machine, checkpoints, loggers.

    Args:
      measured: outputs and results of `evaluation.evaluate`, with test measures; what is not of a run is left out.

    Returns:
      Every run alone or with those that are like it, in the order of the first.
    """
    alike: dict[str, Joined] = {}
    for outputs, result in measured:
        if not outputs.about:
            continue
        config = flat(outputs.about["config"])
        seeds = {config.get("seed"): result["test"]}
        if config.get("replicates", 1) != 1:  # result["test"] is that of their ensemble
            seeds = {int(seed): values for seed, values in result.get("seeds", {}).items()}
        config = {key: value for key, value in config.items() if key not in _OF_SEEDS and _changes_numbers(key)}
        group = alike.setdefault(json.dumps(config, sort_keys=True), Joined(config, [], {}))
        if seeds:
            group.names.append(outputs.about.get("name", outputs.name))
        group.measures.update({seed: values for seed, values in seeds.items() if seed not in group.measures})
    return [group for group in alike.values() if group.measures]


def _changes_numbers(name: str) -> bool:
    return name not in fields.FIELDS or fields.FIELDS[name].resume == fields.FIXED


def seeds_tables(measured: list[tuple[ModelOutputs, dict]]) -> list[Table]:
    """Return mean and standard deviation of the runs that differ only in their seed, and of replicates."""
    repeated = [group for group in joined(measured) if len(group.measures) > 1]
    if not repeated:
        return []
    columns = [key for key in MEASURES if key in SIDE_BY_SIDE]
    columns = [k for k in columns if all(v.get(k) is not None for group in repeated for v in group.measures.values())]
    rows = [["runs", "seeds", *(head(MEASURES[key]) for key in columns)]]
    for group in repeated:
        cells = [
            _mean_and_deviation([values[key] for values in group.measures.values()], MEASURES[key].shown)
            for key in columns
        ]
        rows.append([", ".join(group.names), str(len(group.measures)), *cells])
    return [Table("Runs that differ in the seed only: mean and standard deviation", rows)]


def errors_by_imbalance(measured: list[tuple[ModelOutputs, dict]]) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Return the test errors of runs by data set, method and imbalance.

    Methods of one name whose configs differ in more than seed and imbalance are told apart by what differs.

    Args:
      measured: see `joined`.

    Returns:
      data set -> method -> imbalance -> errors of the seeds, in fractions; data sets of which there are at least two
      imbalances and two methods, methods in the order of the runs, imbalances ascending.
    """
    by_source: dict[str, list[Joined]] = {}
    for group in joined(measured):
        if isinstance(group.config.get("data.imbalance"), int | float):
            by_source.setdefault(str(group.config.get("data.source")), []).append(group)
    panels = {}
    for source, groups in by_source.items():
        errors: dict[str, dict[float, list[float]]] = {}
        for group, name in zip(groups, _methods(groups), strict=True):
            of_seeds = [1 - values["accuracy"] for values in group.measures.values()]
            errors.setdefault(name, {})[float(group.config["data.imbalance"])] = of_seeds
        if len(errors) > 1 and len({imbalance for each in errors.values() for imbalance in each}) > 1:
            panels[source] = {name: dict(sorted(each.items())) for name, each in errors.items()}
    return panels


def errors_tables(panels: dict[str, dict[str, dict[float, list[float]]]]) -> list[Table]:
    """Return a table of the test errors of each data set of `errors_by_imbalance`: a row a method."""
    tables = []
    for source, errors in panels.items():
        imbalances = sorted({imbalance for each in errors.values() for imbalance in each})
        rows = [["method", *(f"imbalance {imbalance:g}" for imbalance in imbalances)]]
        for name, each in errors.items():
            cells = [_mean_and_deviation(each.get(i, []), lambda error: f"{100 * error:.1f}") for i in imbalances]
            seeds = [f" ({len(each[i])} seeds)" if len(each.get(i, [])) > 1 else "" for i in imbalances]
            rows.append([name, *(cell + more for cell, more in zip(cells, seeds, strict=True))])
        tables.append(Table(f"Test error by imbalance, {source}, %", rows))
    return tables


def _methods(groups: list[Joined]) -> list[str]:
    """Return the name of each group's method, with the fields in which methods of one name differ."""
    names = [str(group.config.get("method.name")) for group in groups]
    labels = []
    for group, name in zip(groups, names, strict=True):
        configs = [other.config for other, its in zip(groups, names, strict=True) if its == name]
        keys = sorted({key for config in configs for key in config} - set(_OF_DATA))
        differing = [key for key in keys if any(config.get(key) != group.config.get(key) for config in configs)]
        labels.append(", ".join([name, *(f"{key}={group.config.get(key, '-')}" for key in differing)]))
    return labels


def _mean_and_deviation(values: list[float], shown: Callable[[float], str]) -> str:
    """Return a cell of the mean of values and, of several, their standard deviation; "-" of none."""
    if not values:
        return "-"
    numbers = (np.mean(values), np.std(values, ddof=1)) if len(values) > 1 else (values[0],)
    return " ± ".join(map(shown, numbers))
