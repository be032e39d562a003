"""The result of a run as one small JSON file: results/SCALE/DATA_lt_IMBALANCE/METHOD/SEED.json."""

import json
import pathlib
import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.reproduce import runs
from benchmarks.reproduce.runs import ORDERS, Run
from unimix_jax import priors, registry, storage
from unimix_jax.config import compare
from unimix_jax.config.old_names import with_new_names
from unimix_jax.data import sampling, sources
from unimix_jax.metrics.predictions import read_predictions
from unimix_jax.report import evaluation
from unimix_jax.training import rundir

if TYPE_CHECKING:
    from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
COMPLETE, NOT_FINITE = "complete", "not finite"
_DIGITS = 7  # of the numbers that are stored
_OF_MACHINES = ("data", "parallel", "checkpoint", "loggers", "steps_per_dispatch", "replicates", "seed", "log_every")
_SEEN_IN_RESULTS = ("eval_every",)  # changes no number of the training, but the best of the evaluations


def path_of(run: Run, results: pathlib.Path = RESULTS) -> pathlib.Path:
    """Return the file of a run's result."""
    return results / run.folder / f"{run.seed}.json"


def read(run: Run, results: pathlib.Path = RESULTS) -> dict | None:
    """Return the result of a run; None if it is not there.

    Raises:
      UserError: the file holds no object of JSON.
    """
    return storage.read_json(path_of(run, results))


def recorded(config: dict) -> dict:
    """Return the fields of a config that a result keeps: those that are not of a machine.

    Args:
      config: nested dicts of JSON values, with every field.
    """
    kept = {name: value for name, value in config.items() if name not in _OF_MACHINES}
    data = {name: value for name, value in config["data"].items() if name not in ("dir", "download")}
    parallel = {
        name: config["parallel"][name] for name in ("batch_norm", "deterministic") if name in config["parallel"]
    }
    return rounded(kept | {"data": data, "parallel": parallel})


def differences(old: dict, new: dict) -> list[str]:
    """Return a phrase for each field that changes numbers, or their evaluations, and differs between two configs.

    Args:
      old: of a result, see `recorded`; a field that did not exist then has its default.
      new: of today's command, see `recorded`.
    """
    changing, free = compare.differing_keys(old, new)
    before, now = (compare.flat(with_new_names(each)[0]) for each in (old, new))
    return [
        " ".join(
            [
                f"{key} was {before[key]!r}," if key in before else f"{key} was not there,",
                f"is {now[key]!r}" if key in now else "is not there",
            ]
        )
        for key in (*changing, *(key for key in free if key in _SEEN_IN_RESULTS))
    ]


def has_later_stage(config: dict) -> bool:
    """Return whether a method has a stage after the run, so that the stage before it is measured, too."""
    begins = [(stage.get("begin") or 0, stage.get("reinitialise")) for stage in config["method"]["stages"].values()]
    return any(begin == 1 or (begin and anew) for begin, anew in begins)


def fault(result: dict, config: dict) -> str:
    """Return why a result is not that of today's command; "" if it is.

    Args:
      result: see `read`.
      config: of today's command, see `recorded`.
    """
    if differing := differences(result.get("config") or {}, config):
        return f"of another config: {'; '.join(differing)}"
    if result["state"] == COMPLETE and has_later_stage(config) and not result.get("stages"):
        return "without the measures of its first stage"
    return ""


def write(run: Run, directory: pathlib.Path, results: pathlib.Path = RESULTS) -> dict:
    """Write the result of a run that is complete; return it.

    Args:
      run: the run; its seed is one of the run directory's.
      directory: the run directory.
      results: folder of all results.
    """
    of_run = storage.read_json(directory / rundir.RUN)
    config = storage.read_json(directory / rundir.CONFIG)
    replicates = config.get("replicates", 1)
    of_seed = directory if replicates == 1 else directory / rundir.seed_folder(run.seed)
    own = storage.read_json(of_seed / rundir.METRICS)
    paths = {split: of_seed / rundir.predictions_file(split) for split in ("test", "validation")}
    test, validation = (read_predictions(path) if path.exists() else None for path in paths.values())
    outputs = evaluation.ModelOutputs(str(of_seed), test, validation, None)
    report = evaluation.evaluate(outputs, evaluation.Options(samples=0))
    result = about(run, of_run, config, COMPLETE) | {
        "seconds": of_run.get("seconds"),
        "peak_memory_mib": of_run.get("peak_memory_mib"),
        "peak_device_memory_mib": of_run.get("peak_device_memory_mib"),
        "test": own["test"],
        "best_on_test": best(rundir.read_metrics(directory / rundir.METRICS_LINES), run.seed, replicates),
        "cut_tests": report.get("cut_tests", []),
        "corrected_logits": report.get("corrected_logits"),  # which logits the corrections of cut_tests begin with
    }
    result |= {name: report[name] for name in ("temperature", "test_at_temperature") if name in report}
    result |= {name: own[name] for name in ("validation", "posthoc") if name in own}
    of_stages = sorted(path for path in directory.glob(rundir.stage_folder("*")) if path.is_dir())
    if run.variant in ORDERS:
        result["rare_images"] = rare_images(runs.command(run, config["data"].get("dir")).config)
    if of_stages:
        own_folder = of_seed.relative_to(directory)
        stages = {path.name: storage.read_json(path / own_folder / rundir.METRICS) for path in of_stages}
        result["stages"] = {name: values["test"] for name, values in stages.items()}
    save(run, result, results)
    return result


def rare_images(config: "ConfigDict") -> list[int]:
    """Return how many images of the rarest third of classes each step of a run has, by its sampler alone."""
    labels = sources.load(config.data).train.labels
    class_index = sampling.sorted_by_class(labels)
    rare = priors.groups(class_index.counts, "thirds")["few"][labels]
    sampler, size = registry.resolve("sampler", config.method.stages.plain.sampler.name), config.batch_size
    total = config.epochs * sampling.steps_per_epoch(len(labels), size)
    return [
        int(rare[sampler(class_index, seed=config.seed, step=step, batch_size=size)].sum()) for step in range(total)
    ]


def save(run: Run, result: dict, results: pathlib.Path = RESULTS) -> None:
    """Write a result as one line, with numbers rounded to seven digits."""
    path = path_of(run, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(path, json.dumps(rounded(result), sort_keys=True) + "\n")


def about(run: Run, of_run: dict, config: dict, state: str) -> dict:
    """Return what a result says of its run: name, state, config, machine, versions, time."""
    start = (of_run.get("starts") or [{}])[-1]
    environment = rundir.environment(start)
    hardware = {name: environment[name] for name in ("device", "devices", "cpu_threads", "ops") if name in environment}
    return {
        "run": run._asdict(),
        "state": state,
        "config": recorded(config),
        "replicates": config.get("replicates", 1),
        "hardware": hardware | {"processor": processor()},
        "versions": {
            name: environment[name]
            for name in ("jax", "jaxlib", "flax", "optax", "numpy", "python")
            if name in environment
        },
        "version": start.get("version"),
        "commit": start.get("commit"),
        "time": start.get("time"),
        "starts": len(of_run.get("starts") or ()),
        "data": of_run.get("data"),
    }


def best(records: list[dict], seed: int, replicates: int) -> dict | None:
    """Return the evaluation of highest test accuracy, as many codes report it; None if only the last was of the test.

    Args:
      records: of metrics.jsonl.
      seed: of the run; its values have the name of the seed where several runs were trained together.
      replicates: how many were.
    """
    suffix = f"_seed_{seed}" if replicates > 1 else ""
    evaluations = [record for record in records if record.get("split") == "test" and f"accuracy{suffix}" in record]
    if len(evaluations) < 2:  # of the last state only
        return None
    highest = max(evaluations, key=lambda record: record[f"accuracy{suffix}"])
    values = {name: highest[f"{name}{suffix}"] for name in ("accuracy", "ece", "nll")}
    return {"epoch": highest["epoch"], **values, "evaluations": len(evaluations)}


def processor() -> str:
    """Return the name of the processor, as the system gives it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def rounded(value: Any) -> Any:
    """Return a tree of JSON values with floating-point numbers of seven digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def values_of(results: list[dict], measure: str, where: str = "test") -> np.ndarray:
    """Return a measure of each result that is complete, float64[n]; nan where it says nothing."""
    complete = [result for result in results if result["state"] == COMPLETE]
    values = [(result.get(where) or {}).get(measure) for result in complete]
    return np.array([np.nan if value is None else value for value in values], np.float64)
