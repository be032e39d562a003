"""The results of a run: predictions and metrics of its last state, of one run or of replicates."""

import logging
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import metrics, storage
from unimix_jax.methods.build import Stage
from unimix_jax.metrics.predictions import Predictions, read_predictions, write_predictions
from unimix_jax.training import predict, rundir
from unimix_jax.training.setup import Experiment

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

SPLITS = ("test", "validation")


def write(
    experiment: Experiment, scores: dict[str, predict.Scores], posthoc: list[dict], ended: Stage | None = None
) -> dict:
    """Write the predictions and metrics of the last state of a run or of a stage, and what was chosen post hoc.

    Replicates have their predictions and metrics in seeds/SEED; the predictions of the run are those of their mean
    probability, the ensemble.

    Args:
      experiment: the run.
      scores: of each evaluated split.
      posthoc: the options that the change of trained logits chose, of each replicate.
      ended: the stage, whose results are in stages/NAME; None for those of the run.

    Returns:
      What metrics.json holds.
    """
    config, splits, method = experiment.config, experiment.splits, experiment.method
    directory, prior = experiment.directory, method.logits_prior
    if ended is not None:
        directory = rundir.create_stage_folder(directory, ended.name)
        prior = None if method.posthoc else ended.logits_prior  # which a change of logits is made for at the end
    predictions = {}
    for name, source in splits.evaluated.items():
        predictions[name] = scores[name].predictions(
            counts=splits.counts, logits_prior=prior, class_names=source.class_names
        )
        if source.names is not None:
            path = directory / rundir.list_file(name)
            rundir.write_list(path, source.names, source.labels, scores[name].rows)
    together = {name: ensemble(each) for name, each in predictions.items() if len(each) > 1}
    _write_predictions(directory, experiment.seeds, predictions, together)
    result = _write_metrics_of_seeds(directory, config, experiment.seeds, predictions, together, posthoc)
    if ended is None:
        result |= _best(directory, config, next(iter(predictions)))
    storage.write_json(directory / rundir.METRICS, result)
    return result


def of_predictions(directory: pathlib.Path, config: "ConfigDict") -> dict:
    """Write metrics.json of a finished run, which chose nothing post hoc, again from its predictions.

    Args:
      directory: of the run.
      config: of the run.

    Returns:
      What metrics.json holds.
    """
    seeds = range(config.seed, config.seed + config.replicates)
    folders = [directory] if len(seeds) == 1 else [directory / rundir.seed_folder(seed) for seed in seeds]
    predictions = {
        name: [read_predictions(folder / rundir.predictions_file(name)) for folder in folders]
        for name in reversed(SPLITS)
        if (directory / rundir.predictions_file(name)).exists()
    }
    together = {name: ensemble(each) for name, each in predictions.items() if len(each) > 1}
    result = _write_metrics_of_seeds(directory, config, tuple(seeds), predictions, together, [{} for _ in seeds])
    result |= _best(directory, config, next(iter(predictions)))
    storage.write_json(directory / rundir.METRICS, result)
    return result


def ensemble(predictions: list[Predictions]) -> Predictions:
    """Return the predictions of the mean probability of several models.

    Args:
      predictions: of the same examples.

    Returns:
      Predictions whose logits are the logarithms of the mean probabilities, float32.
    """
    import scipy.special

    logits = np.stack([of.logits for of in predictions]).astype(np.float64)
    logs = scipy.special.log_softmax(logits, axis=-1)
    mean = scipy.special.logsumexp(logs, axis=0) - np.log(len(predictions))
    return predictions[0]._replace(logits=mean.astype(np.float32))


def mean_and_deviation(summaries: list[dict]) -> tuple[dict, dict]:
    """Return the mean of measures over replicates, and their standard deviation.

    Args:
      summaries: of `metrics.summary`, at least two.

    Returns:
      The summary of means: numbers and lists are averaged, None where a value is None; other entries are those of the
      first. And the deviation of each number, with the divisor n - 1.
    """
    mean, deviation = {}, {}
    for key, first in summaries[0].items():
        values = [summary.get(key) for summary in summaries]
        if isinstance(first, list):
            mean[key] = [None if None in column else float(np.mean(column)) for column in zip(*values, strict=True)]
        elif isinstance(first, float):
            mean[key] = None if None in values else float(np.mean(values))
            if mean[key] is not None:
                deviation[key] = float(np.std(values, ddof=1))
        else:
            mean[key] = first
    return mean, deviation


def _write_predictions(
    directory: pathlib.Path,
    seeds: tuple[int, ...],
    predictions: dict[str, list[Predictions]],
    together: dict[str, Predictions],
) -> None:
    """Write the predictions of each split; of replicates those of each, and of the ensemble."""
    for name, each in predictions.items():
        file = rundir.predictions_file(name)
        write_predictions(directory / file, together.get(name, each[0]))
        if name in together:
            for seed, one in zip(seeds, each, strict=True):
                write_predictions(rundir.create_seed_folder(directory, seed) / file, one)


def _write_metrics_of_seeds(
    directory: pathlib.Path,
    config: "ConfigDict",
    seeds: tuple[int, ...],
    predictions: dict[str, list[Predictions]],
    together: dict[str, Predictions],
    posthoc: list[dict],
) -> dict:
    """Return the metrics of each split, the one that is watched first; of replicates write those of each seed, too."""
    names = (*metrics.MEASURES, *config.measures)
    summaries = {name: [metrics.summary(one, names=names) for one in each] for name, each in predictions.items()}
    chosen = [{"posthoc": {"name": config.method.posthoc.name, **one}} if one else {} for one in posthoc]
    of_seeds = [chosen[r] | {name: each[r] for name, each in summaries.items()} for r in range(len(seeds))]
    result = of_seeds[0]
    if len(seeds) > 1:
        for seed, one in zip(seeds, of_seeds, strict=True):
            storage.write_json(rundir.create_seed_folder(directory, seed) / rundir.METRICS, one)
        both = {name: mean_and_deviation(each) for name, each in summaries.items()}
        result = {name: mean for name, (mean, _) in both.items()}
        result["deviation"] = {name: deviation for name, (_, deviation) in both.items()}
        result["ensemble"] = {name: metrics.summary(one, names=names) for name, one in together.items()}
        result["seeds"] = list(seeds)
    return result


def _best(directory: pathlib.Path, config: "ConfigDict", watched: str) -> dict:
    """Return as `best` the evaluation of a split with the highest accuracy; {} if there was none on the way."""
    if not config.eval_every:
        return {}
    path = directory / rundir.METRICS_LINES
    records = [record for record in rundir.read_metrics(path) if record.get("split") == watched]
    if not records:
        _log.warning("%s has no evaluations, so that the best one is not known", path)
        return {}
    return {"best": max(records, key=lambda record: record["accuracy"]) | {"evaluations": len(records)}}
