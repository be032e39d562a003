"""Runs that differ in their seed only, and replicates, are joined by numbers that a person would compute."""

import numpy as np
import pytest

from unimix_jax import metrics, storage
from unimix_jax.metrics.predictions import Predictions, write_predictions
from unimix_jax.report import evaluation, files, sections, seeds
from unimix_jax.training import results, rundir

COUNTS = np.array([40, 20, 10, 5])
OPTIONS = evaluation.Options(samples=0, bins=7)


def predicted(seed, strength=2.0):
    """Return predictions of 60 images of four classes, and the accuracy of them counted one by one."""
    random = np.random.default_rng(seed)
    labels = np.arange(60) % 4
    logits = random.normal(0, 1, (60, 4)).astype(np.float32)
    logits[np.arange(60), labels] += strength
    hits = [list(row).index(max(row)) == label for row, label in zip(logits, labels, strict=True)]
    return Predictions(logits, labels, COUNTS, COUNTS / COUNTS.sum()), sum(hits) / 60


def write_run(directory, seed, method="erm", imbalance=10.0, replicates=1, source="digits", **changes):
    """Write the files of a finished run, and return the accuracy of each of its seeds."""
    data = {"source": source, "imbalance": imbalance}
    config = {"seed": seed, "replicates": replicates, "method": {"name": method}, "data": data, **changes}
    directory.mkdir()
    storage.write_json(directory / "config.json", config)
    of_seeds = {s: predicted((s, int(imbalance), len(method))) for s in range(seed, seed + replicates)}
    each = [predictions for predictions, _ in of_seeds.values()]
    write_predictions(directory / "predictions.npz", each[0] if replicates == 1 else results.ensemble(each))
    if replicates > 1:
        for s, (predictions, _) in of_seeds.items():
            write_predictions(rundir.create_seed_folder(directory, s) / "predictions.npz", predictions)
    return [accuracy for _, accuracy in of_seeds.values()]


def measured(directories):
    outputs = [files.read_run(directory) for directory in directories]
    return [(each, evaluation.evaluate(each, OPTIONS)) for each in outputs]


def test_replicates_are_joined_with_single_runs_and_no_seed_counts_twice(tmp_path):
    accuracies = write_run(tmp_path / "both", 3, replicates=2)
    accuracies += write_run(tmp_path / "single", 7)
    write_run(tmp_path / "again", 4)  # the second replicate
    write_run(tmp_path / "other", 3, network="resnet8")
    runs = measured([tmp_path / name for name in ("both", "single", "again", "other")])
    assert runs[0][0].name == "both, ensemble of 2 seeds"
    assert list(runs[0][1]["seeds"]) == ["3", "4"]
    assert [of["accuracy"] for of in runs[0][1]["seeds"].values()] == pytest.approx(accuracies[:2])
    assert {of["bins"] for of in runs[0][1]["seeds"].values()} == {7}  # measured as all else is
    (table,) = seeds.seeds_tables(runs)
    (row,) = table.rows[1:]
    mean = sum(accuracies) / 3
    deviation = (sum((a - mean) ** 2 for a in accuracies) / 2) ** 0.5
    assert row[:3] == ["both, single, again", "3", f"{100 * mean:.1f} ± {100 * deviation:.1f}"]
    errors = [metrics.ece(metrics.softmax(predicted((s, 10, 3))[0].logits), np.arange(60) % 4, 7) for s in (3, 4, 7)]
    column = [head.startswith("ECE") for head in table.rows[0]].index(True)
    assert row[column] == f"{100 * np.mean(errors):.2f} ± {100 * np.std(errors, ddof=1):.2f}"
    of_csv = {tuple(line[1:4]): line[4] for line in sections.csv_rows([runs[0][1]])[1:]}
    assert of_csv["test, seed 4", "", "accuracy"] == pytest.approx(accuracies[1])


def test_runs_of_one_recipe_on_several_machines_are_joined(tmp_path):
    write_run(tmp_path / "here", 0, parallel={"devices": 1, "batch_norm": "global"}, loggers=["jsonl"])
    write_run(tmp_path / "there", 1, parallel={"devices": 8, "batch_norm": "global"}, checkpoint={"every": 1})
    write_run(tmp_path / "other", 2, parallel={"devices": 8, "batch_norm": "device"})  # which changes numbers
    runs = measured([tmp_path / name for name in ("here", "there", "other")])
    assert [group.names for group in seeds.joined(runs)] == [["here", "there"], ["other"]]


def test_replicates_whose_seeds_are_gone_are_left_out(tmp_path):
    write_run(tmp_path / "both", 0, replicates=2)
    for seed in (0, 1):
        (tmp_path / "both" / "seeds" / str(seed) / "predictions.npz").unlink()
    assert seeds.joined(measured([tmp_path / "both"])) == []


def test_errors_by_imbalance_are_those_of_each_run(tmp_path):
    expected, directories = {}, []
    for method in ("erm", "mixup"):
        for imbalance in (100.0, 10.0):
            for seed in (0, 1):
                directories.append(tmp_path / f"{method}{imbalance}{seed}")
                accuracies = write_run(directories[-1], seed, method, imbalance)
                expected.setdefault(method, {}).setdefault(imbalance, []).append(1 - accuracies[0])
    directories.append(tmp_path / "alone")  # one method, one imbalance: nothing to compare
    write_run(directories[-1], 0, source="cifar10")
    runs = measured(directories)
    errors = seeds.errors_by_imbalance(runs)
    assert list(errors) == ["digits"]
    for method, by_imbalance in expected.items():
        assert list(errors["digits"][method]) == [10, 100]
        for imbalance, values in by_imbalance.items():
            assert errors["digits"][method][imbalance] == pytest.approx(values)
    (table,) = seeds.errors_tables(errors)
    values = 100 * np.array(expected["mixup"][100.0])
    assert table.rows[0] == ["method", "imbalance 10", "imbalance 100"]
    assert table.rows[2][2] == f"{values.mean():.1f} ± {values.std(ddof=1):.1f} (2 seeds)"


def test_methods_of_one_name_are_told_apart_by_what_differs(tmp_path):
    directories = [tmp_path / f"{i}" for i in range(4)]
    for directory, (imbalance, epochs) in zip(directories, ((10.0, 1), (100.0, 1), (10.0, 2), (100.0, 2)), strict=True):
        write_run(directory, 0, imbalance=imbalance, epochs=epochs)
    assert list(seeds.errors_by_imbalance(measured(directories))["digits"]) == ["erm, epochs=1", "erm, epochs=2"]
    assert seeds.errors_by_imbalance(measured(directories[:2])) == {}
    assert seeds.errors_by_imbalance(measured(directories[::2])) == {}


def test_the_report_of_many_runs_shows_each_picture_and_says_which_runs(tmp_path, monkeypatch):
    directories = [tmp_path / f"run{i}" for i in range(10)]
    for i, directory in enumerate(directories):
        write_run(directory, i % 2, ("erm", "mixup")[i // 2 % 2], (10.0, 100.0)[i // 4 % 2], epochs=i // 8)
    runs = measured(directories)
    for name in ("error_bars", "errors_side_by_side", "reliability", "densities", "confusions", "accuracy_by_count"):
        monkeypatch.setattr(sections.plots, name, lambda panels, **_: list(panels))  # in the place of a figure
    pictures = [picture for section in sections.of_many(*map(list, zip(*runs, strict=True))) for picture in section[3]]
    names = [f"run{i}" for i in range(10)]
    assert {picture.name: picture.figure for picture in pictures} == {
        "test_errors": names,
        "errors_by_imbalance": ["digits"],
        "reliability": names[:9],
        "density": names[:9],
        "confusion": names[:8],
        "log_confusion": names[:8],
        "accuracy_by_count": names,
    }
    captions = {picture.name: picture.caption for picture in pictures}
    assert all("(the first 9 runs)" in captions[name] for name in ("reliability", "density"))
    assert all("(the first 8 runs)" in captions[name] for name in ("confusion", "log_confusion"))
    assert "sums to one" in captions["confusion"]
