"""Short runs on the digits, and the numbers that two equal ones share."""

import json

from unimix_jax import storage
from unimix_jax.config import parse
from unimix_jax.metrics.predictions import read_predictions
from unimix_jax.training import rundir

SHORT = ("--config.epochs=3", "--config.log_every=7", "--config.eval_every=1", "--config.checkpoint.every=1")


def config(*overrides, method="unimix_bayias"):
    """A short digits run of a network's stem, on one device instead of the tests' eight."""
    argv = ["main", f"--config=digits_lt.py:method={method}", "--config.network=stem", *SHORT]
    argv += ["--config.parallel.devices=1", *overrides]
    return parse(argv).config


def numbers_of(directory):
    """All that must be equal of two equal runs: parameters, predictions, measures, records but for rates."""
    records = rundir.read_metrics(directory / "metrics.jsonl")
    for line in records:
        line.pop("images_per_second", None)
    arrays = {}
    for split in ("test", "validation"):
        predictions = read_predictions(directory / rundir.predictions_file(split))
        arrays[split] = predictions.logits.tobytes()
    step = max(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())
    meta = json.loads((directory / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    assert meta.pop("run") == storage.read_json(directory / "run.json")["id"]
    return records, arrays, meta, json.loads((directory / "metrics.json").read_text())
