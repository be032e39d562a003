"""The files that a run, or a program of others, leaves, and a reader of HTML pages."""

import html.parser

import numpy as np

from unimix_jax import storage
from unimix_jax.metrics.predictions import Predictions, write_predictions
from unimix_jax.training import rundir

COUNTS = np.array([120, 60, 30, 12, 6, 3])
NAMES = ("<b>cat</b>", "dog & co", "a|b", "$x_1$", "e\u00e4", "\"f'")


def predicted(size, seed=0):
    """Logits and labels of a model that is right often, and over-confident."""
    random = np.random.default_rng(seed)
    labels = np.arange(size) % 6
    logits = random.normal(0, 2, (size, 6)).astype(np.float32)
    logits[np.arange(size), labels] += 3
    return logits, labels


def finished_run(directory, seed=0, validation=True, **config):
    """Make a finished run's directory, without its checkpoints, and return it."""
    directory.mkdir()
    about = {"seed": seed, "epochs": 2, "batch_size": 8, "network": "resnet8", "method": {"name": "erm"}, **config}
    about |= {"data": {"source": "digits", "imbalance": 40.0}, "optim": {"learning_rate": 0.1}}
    storage.write_json(directory / "config.json", about)
    data = {"train": {"images": 231, "digest": "abc", "counts": COUNTS.tolist()}}
    start = {
        "version": "0.1.0",
        "commit": None,
        "command": ["main.py", "--x=<i>"],
        "time": "2026",
        "environment": {},
    }
    storage.write_json(
        directory / "run.json", {"seed": seed, "data": data, "starts": [start], "state": "complete", "seconds": 3.0}
    )
    for line in (
        {"step": 1, "epoch": 1.0, "loss": 1.0, "accuracy": 0.3, "stage": "plain"},
        {"step": 2, "epoch": 2.0, "split": "validation", "accuracy": 0.5, "ece": 0.1, "nll": 1.0},
    ):
        rundir.append_metrics(directory / "metrics.jsonl", line)
    for split, size in (("test", 240), ("validation", 120)):
        if split == "test" or validation:
            logits, labels = predicted(size, seed + len(split))
            predictions = Predictions(logits, labels, COUNTS, COUNTS / COUNTS.sum(), NAMES)
            write_predictions(directory / rundir.predictions_file(split), predictions)
    best = {"split": "validation", "epoch": 2.0, "accuracy": 0.5, "ece": 0.1, "evaluations": 1}
    storage.write_json(directory / "metrics.json", {"best": best})
    return directory


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and gathers the texts of elements and what is linked."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.texts, self.ids = [], [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)
