"""The command of the measures: what it makes of runs and files, and what it says when it cannot."""

import base64
import csv
import html.parser
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from unimix_jax import evaluate, metrics, storage
from unimix_jax.errors import UserError
from unimix_jax.metrics import per_example
from unimix_jax.metrics.predictions import Predictions, read_predictions, write_predictions
from unimix_jax.report import build, files
from unimix_jax.report.sections import Picture, Section
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


@pytest.fixture
def run(tmp_path):
    """Return make(name, seed, **changes): a finished run's directory, without its checkpoints."""
    return lambda name, *args, **changes: finished_run(tmp_path / name, *args, **changes)


@pytest.fixture
def without_pdf(monkeypatch):
    """Draw pictures for the page, and leave out what takes longest, their PDF files: test_plots.py draws one."""
    draw = files.plots.image
    monkeypatch.setattr(files.plots, "image", lambda figure, kind: draw(figure, kind) if kind == "png" else b"a pdf")


@pytest.fixture
def command(capsys):
    """Return run(*argv) -> (exit code, standard output, standard error)."""

    def run(*argv):
        code = evaluate.main(["evaluate", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


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


@pytest.mark.slow
@pytest.mark.usefixtures("without_pdf")
def test_a_run_gives_every_number_and_picture(command, run):
    directory = run("first")
    code, out, err = command(f"--workdir={directory}", "--samples=40")
    assert (code, err) == (0, "")
    assert out.endswith(f"report: {directory}/report.html\n")
    assert "warning: do not trust the test prior by BBSE: the shares are uncertain" in out
    result = json.loads((directory / "report.json").read_text())["models"][0]
    test = result["test"]
    predictions = read_predictions(directory / "predictions.npz")
    probabilities = per_example.softmax(predictions.logits)
    for name, measure in metrics.MEASURES.items():
        assert test[name] == pytest.approx(measure(probabilities, predictions.labels), rel=1e-12), name
    assert set(test["intervals"]) == {*metrics.MEASURES, "many", "medium", "few"} - {"mce", "sce", "ace", "tace"}
    assert result["temperature"] > 1
    assert result["test_at_temperature"]["nll"] < test["nll"]
    words = f"calibrated on the 120 validation images by a temperature, {result['corrected_logits'].split()[9]}"
    assert result["corrected_logits"].startswith(words)
    assert f"The logits that are corrected are {result['corrected_logits']}" in out
    # Its logits stand for the training images' prior, its test images are balanced: said beside the figures.
    assert (
        out.index("test, T = ") < out.index("Test: the logits stand for the training images' prior") < out.index("EM")
    )
    assert [row["imbalance"] for row in result["cut_tests"]] == [100, 10, 1, 0.1, 0.01]
    assert set(result["cut_tests"][0]["variants"]) == {"as it is", "known prior", "EM", "BBSE"}
    assert set(result["estimates"]) == {"em", "bbse"}
    assert result["missing"] == []

    pictures = {"reliability", "density", "confusion", "log_confusion", "accuracy_by_count", "training_curves"}
    pictures |= {"class_distributions"}
    assert {p.name for p in (directory / "figures").iterdir()} == {f"{p}.{k}" for p in pictures for k in ("png", "pdf")}
    text = (directory / "report.html").read_text()
    page = Page(text)
    assert page.texts["h2"] == [
        "What was run",
        "Measures",
        "Calibration",
        "Classes",
        "The test prior",
        "Training",
        "Class distributions of mixed images",
        "Read with care",
    ]
    assert page.texts["a"] == page.texts["h2"]
    assert [link[1:] for link in page.links if link.startswith("#")] == page.ids
    images = [link for link in page.links if not link.startswith("#")]
    assert len(images) == len(pictures)
    for image in images:
        head, data = image.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert not re.search(r"https?://|@import|<script", text)
    for name in NAMES:
        assert name in page.texts["th"]
    assert "<b>cat" not in text
    for fact in ("erm", "digits, imbalance 40", "the last step, epoch 2", "drawn at random, seed 0", "0.1.0", "3"):
        assert fact in page.texts["td"], fact

    rows = list(csv.DictReader((directory / "report.csv").open()))
    values = {(row["part"], row["class"], row["measure"]): row["value"] for row in rows}
    assert float(values["test", "", "ece"]) == test["ece"]
    assert float(values["test", "dog & co", "class_accuracy"]) == test["class_accuracy"][1]
    assert float(values["test cut to imbalance 0.1, EM", "", "accuracy"]) >= 0
    markdown = (directory / "report.md").read_text()
    assert f"| accuracy | % | {100 * test['accuracy']:.1f} |" in markdown
    assert "&lt;b&gt;cat&lt;/b&gt;" in markdown
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("| a\\|b")}
    assert columns == {8}  # seven cells: the stroke in a name makes none


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_nothing_but_logits_and_labels(command, tmp_path):
    logits, labels = predicted(200)
    np.savez(tmp_path / "mine.npz", logits=logits, labels=labels)
    code, out, err = command(f"--predictions={tmp_path}/mine.npz", f"--output={tmp_path}/out/mine.html", "--samples=20")
    assert (code, err) == (0, "")
    missing = [line for line in out.splitlines() if line.startswith("missing: ")]
    for word in ("--counts=FILE", "--validation=FILE.npz", "--workdir=RUN", "logits_prior"):
        assert sum(word in line for line in missing) == 1, word
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    pictures = ("reliability", "density", "confusion", "log_confusion")
    expected = {f"mine.{kind}" for kind in ("html", "md", "csv", "json")}
    assert made == expected | {f"mine_figures/{p}.{kind}" for p in pictures for kind in ("png", "pdf")}
    page = Page((tmp_path / "out" / "mine.html").read_text())
    assert page.texts["h2"][-1] == "What is missing, and what would give it"
    assert sum(line.removeprefix("missing: ") in page.texts["p"] for line in missing) == len(missing)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_is_supplied_beside_the_predictions(command, tmp_path):
    logits, labels = predicted(200)
    np.savez(tmp_path / "test.npz", probabilities=per_example.softmax(logits), labels=labels)
    np.savez(tmp_path / "held.npz", logits=predicted(150, 1)[0], labels=predicted(150, 1)[1])
    (tmp_path / "counts.txt").write_text("\n".join(map(str, COUNTS)))
    code, out, _ = command(
        f"--predictions={tmp_path}/test.npz",
        f"--validation={tmp_path}/held.npz",
        f"--counts={tmp_path}/counts.txt",
        f"--output={tmp_path}/out",
        "--samples=0",
        "--groups=thirds",
        "--bins=10",
        "--test_prior=imbalance:10",
    )
    assert code == 0
    result = json.loads((tmp_path / "out" / "report.json").read_text())["models"][0]
    assert result["test"]["bins"] == 10
    assert result["test"]["groups"] == "thirds"
    assert result["test"]["accuracy"] == metrics.accuracy(per_example.softmax(logits), labels)
    # A uniform test set, corrected for an imbalance of 10: worse.
    assert result["corrected"]["accuracy"] < result["test"]["accuracy"]
    assert "intervals" not in result["test"]
    assert "corrected for imbalance:10" in out


@pytest.mark.usefixtures("undrawn")
def test_unlabelled_predictions_have_an_estimated_prior(command, tmp_path):
    logits, labels = predicted(6000)
    kept = (labels < 3) | (np.arange(6000) % 5 == 0)
    np.savez(tmp_path / "test.npz", logits=logits[kept])
    np.savez(tmp_path / "held.npz", logits=predicted(2000, 1)[0], labels=predicted(2000, 1)[1])
    files = [f"--predictions={tmp_path}/test.npz", f"--validation={tmp_path}/held.npz", f"--output={tmp_path}/out"]
    code, out, _ = command(*files, "--samples=20", "--test_prior=estimate")
    assert code == 0
    assert "missing: all measures and most pictures" in out
    result = json.loads((tmp_path / "out" / "report.json").read_text())["models"][0]
    true = np.bincount(labels[kept], minlength=6) / kept.sum()
    for estimate in result["estimates"].values():
        np.testing.assert_allclose(estimate["prior"], true, atol=0.05)  # 333 validation images a class
    assert result["corrected"]["prior"] == result["estimates"]["em"]["prior"]


def test_probabilities_of_zero_are_measured_and_said(command, tmp_path):
    logits, labels = predicted(90)
    probabilities = np.round(per_example.softmax(logits), 1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        np.savez(tmp_path / "log.npz", logits=np.log(probabilities), labels=labels)
    np.savez(tmp_path / "p.npz", probabilities=probabilities, labels=labels)
    answers = [command(f"--predictions={tmp_path}/{name}.npz", "--samples=0") for name in ("log", "p")]
    assert answers[0] == answers[1]
    zeros, own = (probabilities == 0).sum(), (probabilities[np.arange(90), labels] == 0).sum()
    assert f"warning: {zeros} of 540 test probabilities are 0" in answers[0][1]
    assert f"; {own} of them are a label's" in answers[0][1]
    np.savez(tmp_path / "wrong.npz", logits=probabilities, labels=labels)
    code, out, err = command(f"--predictions={tmp_path}/wrong.npz", "--samples=0")
    assert (code, out) == (2, "")
    assert "look like probabilities" in err


@pytest.mark.usefixtures("undrawn")
def test_each_validation_file_belongs_to_the_predictions_of_its_place(command, tmp_path):
    for i, scale in enumerate((1, 5)):
        np.savez(tmp_path / f"test{i}.npz", logits=scale * predicted(90)[0], labels=predicted(90)[1])
        np.savez(tmp_path / f"held{i}.npz", logits=scale * predicted(300, 1)[0], labels=predicted(300, 1)[1])
    given = [
        f"--{kind}={tmp_path}/{name}{i}.npz"
        for i in (0, 1)
        for kind, name in (("predictions", "test"), ("validation", "held"))
    ]
    assert command(*given, f"--output={tmp_path}/out", "--samples=0", "--test_prior=uniform")[0] == 0
    first, second = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    assert second["temperature"] == pytest.approx(5 * first["temperature"], rel=1e-6)
    assert "The same with corrected logits" in Page((tmp_path / "out" / "report.html").read_text()).texts["h3"]


def test_two_models_never_have_one_name(command, run, tmp_path):
    directory = run("same")
    np.savez(tmp_path / "same.npz", logits=predicted(90)[0], labels=predicted(90)[1])
    code, out, _ = command(f"--workdir={directory}", f"--predictions={tmp_path}/same.npz", "--samples=0")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[4:6]] == [str(directory), f"{tmp_path}/same.npz"]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_run_s_report_is_written_once_and_uses_the_run_s_own_factor(run):
    stages = {
        "mixed": {"mixer": {"name": "unimix", "alpha": 0.9}, "partners": {"name": "by_class", "class_exponent": 0.5}}
    }
    directory = run("own", method={"name": "mine", "stages": stages})
    path = build.write_run_report(directory)
    assert "prior to the power 0.5, alpha 0.9, factor wrapped" in path.read_text()
    assert not list((directory / "figures").glob("*.pdf"))
    path.write_text(path.read_text() + "<!-- seen -->")
    assert build.write_run_report(directory).read_text().endswith("<!-- seen -->")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "unsampled")
def test_a_run_s_report_is_made_again_when_its_results_are_others(run):
    directory = run("own")
    path, before = directory / "predictions.npz", (directory / "predictions.npz").read_bytes()
    predictions = read_predictions(path)
    write_predictions(path, predictions._replace(logits=-predictions.logits))
    build.write_run_report(directory)
    path.write_bytes(before)
    build.write_run_report(directory)
    result = storage.read_json(directory / "report.json")["models"][0]["test"]
    assert result["accuracy"] == metrics.summary(predictions)["accuracy"]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_report_that_the_user_made_of_the_same_results_stays(command, run):
    directory = run("own")
    assert command(f"--workdir={directory}", "--samples=0", "--bins=7")[0] == 0
    before = (directory / "report.json").read_bytes()
    build.write_run_report(directory)
    assert (directory / "report.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "left",
    [("figures/reliability.png", "figures/density.png.tmp"), ("report.json",), ("report.md", "report.csv"), ()],
)
@pytest.mark.usefixtures("undrawn", "unsampled")
def test_leftovers_of_a_report_in_a_run_are_its_own(run, caplog, left):
    directory = run("own")
    for name in left:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")
    build.write_run_report(directory)
    assert storage.read_json(directory / "report.json")["models"]
    assert (directory / "figures" / "reliability.png").read_text() == "a png"
    assert not list(directory.glob("*-2*"))
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "unsampled")
def test_what_has_a_name_of_the_report_and_is_none_is_moved_aside(run, caplog):
    directory = run("own")
    (directory / "figures").mkdir()
    (directory / "figures" / "mine.png").write_text("mine")
    (directory / "report.html").write_text("<p>mine</p>")
    (directory / "report.json").mkdir()
    build.write_run_report(directory)
    assert (directory / "figures-2" / "mine.png").read_text() == "mine"
    assert (directory / "report.html-2").read_text() == "<p>mine</p>"
    assert (directory / "report.json-2").is_dir()
    assert storage.read_json(directory / "report.json")["models"]
    assert caplog.text.count("is no part of a report; it is moved to") == 3


def test_a_run_in_which_no_report_can_be_written_gets_a_sentence_without_options(run, monkeypatch):
    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    with pytest.raises(UserError, match=r"cannot write .*report.html \(Permission denied\); see that this directory"):
        build.write_run_report(run("own"))


@pytest.mark.usefixtures("undrawn")
def test_what_a_former_report_left_is_removed(command, tmp_path):
    logits, labels = predicted(60)
    np.savez(tmp_path / "p.npz", logits=logits, labels=labels)
    np.savez(tmp_path / "q.npz", logits=logits)
    given = [f"--output={tmp_path}/out", "--samples=0"]
    assert command(f"--predictions={tmp_path}/p.npz", *given)[0] == 0
    (tmp_path / "out" / "figures" / "mine.png").write_text("the user's own")
    code, _, err = command("--figure=A1", f"--output={tmp_path}/out")
    assert (code, "is a report on models" in err) == (2, True)
    assert command(f"--predictions={tmp_path}/q.npz", *given)[0] == 0
    left = {path.name for path in (tmp_path / "out").rglob("*.*")}
    assert left == {"report.html", "report.md", "report.csv", "report.json", "mine.png"}


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_cannot_be_written_leaves_the_numbers_of_the_one_before(command, tmp_path, monkeypatch):
    np.savez(tmp_path / "p.npz", logits=predicted(60)[0], labels=predicted(60)[1])
    argv = [f"--predictions={tmp_path}/p.npz", f"--output={tmp_path}/out", "--samples=0"]
    assert command(*argv)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    write = storage.write_whole

    def full(path, content):
        if path.suffix == ".md":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(storage, "write_whole", full)
    code, out, err = command(*argv)
    assert (code, out) == (74, "")
    assert "report.md: No space left" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


class Killed(BaseException):
    """What ends a process."""


def test_a_report_killed_at_any_moment_is_made_again(tmp_path, monkeypatch):
    """The process ends before, within and after each thing that it does to the disk."""
    from matplotlib.figure import Figure

    picture = Picture("reliability", "", Figure(figsize=(1, 1)))
    sections, results = [Section("S", pictures=(picture,))], [{"name": "m", "missing": [], "warnings": []}]
    monkeypatch.setattr(files, "csv_rows", lambda _: [["a"]])
    monkeypatch.setattr(files.plots, "image", lambda *_: b"pixels")
    left, done = -1, {}

    def dying(function):
        def does(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            result = function(*args, **kwargs)
            left -= 1
            if left == 0:
                raise Killed
            return result

        return does

    monkeypatch.setattr(os, "fsync", lambda _: None)  # real ones take their time
    for owner, name in ((os, "replace"), (os, "fsync"), (pathlib.Path, "mkdir"), (pathlib.Path, "unlink")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    for moment in range(1, 100):
        directory = tmp_path / f"{moment}"
        left = moment
        try:
            files.write(files.output(directory), "title", "about", sections, results, ("png",))
        except Killed:
            left = -1
            files.write(files.output(directory), "title", "about", sections, results, ("png",))
            done[moment] = {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*.*")}
        else:
            break
    assert 20 < moment < 99
    assert set(done[1]) == {"report.html", "report.md", "report.csv", "report.json", "figures/reliability.png"}
    assert all(found == done[1] for found in done.values())
    assert b"Not finished" not in done[1]["report.html"]
    left = -1
    (tmp_path / "mine" / "figures").mkdir(parents=True)
    with pytest.raises(UserError, match="figures is there already and is no report"):
        files.output(tmp_path / "mine")


def test_a_folder_may_have_the_name_of_a_file(tmp_path):
    (tmp_path / "run.json").mkdir()
    assert files.output(tmp_path / "run.json").html == tmp_path / "run.json" / "report.html"


@pytest.mark.parametrize(("classes", "counts"), [(2, [100, 10]), (3, [7, 7, 7])])
def test_no_group_is_shown_where_there_are_none(command, tmp_path, classes, counts):
    logits, labels = predicted(120)
    arrays = {"logits": logits[:, :classes], "labels": labels % classes, "counts": np.array(counts)}
    np.savez(tmp_path / "p.npz", **arrays, logits_prior=np.full(classes, 1 / classes))
    code, out, _ = command(f"--predictions={tmp_path}/p.npz", "--samples=0")
    assert code == 0
    assert "medium (" not in out
    assert "missing: many, medium and few: " in out
    assert out.endswith("report: none; --output=DIR writes one\n")


@pytest.mark.slow
@pytest.mark.usefixtures("without_pdf")
def test_runs_side_by_side(command, run, tmp_path):
    runs = [run("a", 0), run("b", 1), run("c", 0, validation=False, network="resnet20")]
    np.savez(tmp_path / "d.npz", logits=predicted(90)[0], labels=predicted(90)[1])
    given = [*(f"--workdir={r}" for r in runs), f"--predictions={tmp_path}/d.npz"]
    code, out, _ = command(*given, f"--output={tmp_path}/report.html", "--samples=20")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[4:8]] == ["a", "b", "c", "d"]
    page = Page((tmp_path / "report.html").read_text())
    assert page.texts["h2"] == [
        "What was run",
        "Measures",
        "Pictures",
        "Training",
        "Read with care",
        "What is missing, and what would give it",
    ]
    assert "Runs that differ in the seed only: mean and standard deviation" in page.texts["h3"]
    assert "a, b" in page.texts["th"]
    assert {"resnet8", "resnet20"} <= set(page.texts["td"])
    models = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [model["name"] for model in models] == ["a", "b", "c", "d"]
    cells = [f"{100 * np.mean([m['test']['ece'] for m in models[:2]]):.2f} ±" in text for text in page.texts["td"]]
    assert sum(cells) == 1
    assert (tmp_path / "report_figures" / "test_errors.pdf").exists()
    assert {"95 % intervals of the test measures", "Fields in which the configs differ"} <= set(page.texts["summary"])
    assert "a: few (shots)" in page.texts["th"]
    assert "c: few (shots)" in page.texts["th"]


@pytest.mark.usefixtures("undrawn")
def test_the_class_distributions(command, tmp_path):
    code, out, _ = command("--figure=A1", "--classes=6", "--imbalance=50", f"--output={tmp_path}/a1")
    assert code == 0
    assert out == f"report: {tmp_path}/a1/report.html\n"
    page = Page((tmp_path / "a1" / "report.html").read_text())
    exact = [float(text) for text in page.texts["td"]]
    table = np.array(exact).reshape(6, 8)  # exact and drawn of four distributions
    np.testing.assert_allclose(table.sum(axis=0), 100, atol=0.05)
    # 100,000 pairs: a standard error of .16 % at most.
    np.testing.assert_allclose(table[:, 1::2], table[:, ::2], atol=0.8)
    assert table[-1, 6] > 3 * table[-1, 0]  # UniMix prefers the rarest class
    # Pairs whose first image is of the rarer class, counted one by one.
    shares, text = table[:, 0] / 100, (tmp_path / "a1" / "report.md").read_text()
    inverse = (1 / shares) / (1 / shares).sum()
    pairs = [(a, b) for a in range(6) for b in range(6) if a > b]
    assert f"A.8 counts {100 * sum(shares[a] * shares[b] for a, b in pairs):.2g} %" in text
    assert f"A.12 counts {100 * sum(shares[a] * inverse[b] for a, b in pairs):.2g} %" in text
    assert table[0, 0] / table[-1, 0] == pytest.approx(50, rel=0.01)  # of numbers of two decimals
    assert page.texts["h1"] == ["Class distributions: 6 classes, imbalance 50"]
    assert (tmp_path / "a1" / "figures" / "class_distributions.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_class_distributions_of_the_paper_s_six_panels(command, tmp_path):
    code, out, _ = command("--figure=A1", "--alpha=.7", f"--output={tmp_path}/a1")
    assert (code, out) == (0, f"report: {tmp_path}/a1/report.html\n")
    page = Page((tmp_path / "a1" / "report.html").read_text())
    panels = [f"{classes} classes, imbalance {imbalance}" for classes in (10, 100) for imbalance in (10, 100, 200)]
    assert page.texts["summary"] == [f"Exact distributions: {panel}" for panel in panels]
    assert any("A.8 and A.12 are masses, not distributions" in text for text in page.texts["p"])
    assert any("alpha 0.7" in text for text in page.texts["p"])
    counted = dict(zip(panels, zip(page.texts["td"][:12:2], page.texts["td"][1:12:2], strict=True), strict=True))
    # Of 100 classes nearly the integrals: 1/2, and [ln r - (1 - 1/r)] / [(1 - 1/r)(r - 1)].
    assert counted[panels[4]] == ("49", "3.5")
    assert (tmp_path / "a1" / "figures" / "class_distributions.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_report_is_written_again_but_nothing_else_is_overwritten(command, tmp_path):
    np.savez(tmp_path / "p.npz", logits=predicted(60)[0], labels=predicted(60)[1])
    for _ in range(2):
        assert command(f"--predictions={tmp_path}/p.npz", f"--output={tmp_path}/out", "--samples=0")[0] == 0
    (tmp_path / "p.json").write_text("mine")
    (tmp_path / "q.html").write_text("<p>mine</p>")
    for target in ("p.html", "q.html", "p.npz"):
        code, out, err = command(f"--predictions={tmp_path}/p.npz", f"--output={tmp_path}/{target}")
        assert (code, out) == (2, "")
        assert "is no report; give another" in err or "is no folder; name a folder" in err
    assert (tmp_path / "p.json").read_text() == "mine"
    assert (tmp_path / "q.html").read_text() == "<p>mine</p>"
    assert not (tmp_path / "p.html").exists()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Files and folders that the table below names; no case of it changes them."""
    tmp_path = tmp_path_factory.mktemp("given")
    run = finished_run(tmp_path / "run")
    for name in ("report.html", "report.json"):  # of an earlier evaluation, into the run's own folder
        (run / name).write_text('<meta name="generator" content="unimix_jax report">')
    (finished_run(tmp_path / "unfinished") / "predictions.npz").unlink()
    logits, labels = predicted(30)
    np.savez(tmp_path / "good.npz", logits=logits, labels=labels, counts=COUNTS)
    np.savez(tmp_path / "unlabelled.npz", logits=logits)
    np.savez(tmp_path / "other.npz", logits=logits[:, :5], labels=labels % 5)
    np.savez(tmp_path / "flat.npz", logits=logits[0], labels=labels)
    np.savez(tmp_path / "long.npz", logits=logits, labels=np.arange(31))
    (tmp_path / "short.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-50])
    (tmp_path / "three.txt").write_text("1 2 3")
    (tmp_path / "words.txt").write_text("many few")
    (tmp_path / "folder").mkdir()
    (finished_run(tmp_path / "odd") / "config.json").write_text('{"method": [1]}')
    np.savez(tmp_path / "nan.npz", logits=np.where(logits > 4, np.nan, logits), labels=labels)
    np.savez(tmp_path / "pickled.npz", logits=logits, labels=np.array([{}] * 30, dtype=object))
    np.savez(tmp_path / "floats.npz", logits=logits, labels=labels.astype(float))
    np.savez(tmp_path / "beyond.npz", logits=logits, labels=labels + 1)
    np.savez(tmp_path / "empty.npz", logits=logits[:0], labels=labels[:0])
    np.savez(tmp_path / "words.npz", logits=logits, logits_prior=np.array(list("abcdef")))
    gap = {"counts": np.array([5, 4, 3, 2, 1, 0]), "logits_prior": np.full(6, 1 / 6)}
    np.savez(tmp_path / "gap.npz", logits=logits, labels=labels, **gap)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output=x"], "nothing to evaluate; give --workdir=RUN"),
        (["--workdr=x"], "workdr"),
        (["--workdir={given}/run", "extra"], "unexpected argument 'extra'"),
        (["--workdir={given}/nowhere"], "is no run directory"),
        (["--workdir={given}/folder"], "is no run directory"),
        (["--workdir={given}/unfinished"], "is not finished"),
        (["--workdir={given}/run", "--workdir={given}/run"], "is given twice"),
        (["--predictions={given}/nowhere.npz"], "No such file"),
        (["--predictions={given}/folder"], "is a folder; it must be a regular file"),
        (["--predictions=/dev/zero"], "is a device; it must be a regular file"),
        (["--predictions={given}/short.npz"], "is cut short"),
        (["--predictions={given}/flat.npz"], "must be numbers [N, K]"),
        (["--predictions={given}/long.npz"], "must be integers [30]"),
        (["--predictions={given}/three.txt"], "is no .npz file"),
        (["--predictions={given}/good.npz", "--counts={given}/three.txt"], "holds 3 numbers, but"),
        (["--predictions={given}/good.npz", "--counts={given}/words.txt"], "a whole number for each class"),
        (["--predictions={given}/good.npz", "--counts={given}/none.txt"], "cannot read"),
        (["--predictions={given}/good.npz", "--validation={given}/unlabelled.npz"], "holds no array 'labels'"),
        (["--predictions={given}/good.npz", "--validation={given}/other.npz"], "must have labels and 6 classes"),
        (["--workdir={given}/run", "--validation={given}/good.npz"], "0 --predictions and 1 --validation"),
        (["--predictions={given}/good.npz", "--test_prior=uniform"], "stand for no known prior"),
        (["--workdir={given}/run", "--test_prior=unifrom"], "must be uniform, train"),
        (["--workdir={given}/run", "--bins=0"], "bins"),
        (["--workdir={given}/run", "--samples=1"], "--samples=1 makes no interval"),
        (["--workdir={given}/run", "--groups=halves"], "groups"),
        (["--figure=B2", "--output=x"], "figure"),
        (["--workdir={given}/run", "--output={given}/x.pdf"], "is no folder; name a folder"),
        (["--predictions={given}/good.npz", "--test_prior=nope"], "must be uniform, train, imbalance:R"),
        (["--predictions={given}/other.npz", "--test_prior=train"], "give --counts"),
        (["--figure=A1"], "needs an --output"),
        (["--figure=A1", "--output={given}/o", "--classes=2000"], "classes"),
        (["--figure=A1", "--output={given}/o", "--imbalance=.01"], "imbalance"),
        (["--figure=A1", "--output={given}/o", "--alpha=nan"], "--alpha is nan"),
        (["--figure=A1", "--output={given}/o", "--workdir={given}/run"], "--workdir does not go with --figure=A1"),
        (["--workdir={given}/run", "--classes=3"], "--classes goes with --figure=A1"),
        (["--workdir={given}/run", "--counts={given}/three.txt"], "--counts goes with --predictions"),
        (["--workdir={given}/good.npz"], "is a file; give predictions by --predictions="),
        (["--workdir={given}/odd"], "holds records that no run writes"),
        (["--predictions={given}/nan.npz"], "hold nan"),
        (["--predictions={given}/pickled.npz"], "holds pickled objects"),
        (["--predictions={given}/floats.npz"], "must be integers [30]"),
        (["--predictions={given}/beyond.npz"], "hold 6; with 6 classes"),
        (["--predictions={given}/empty.npz"], "N > 0"),
        (["--predictions={given}/words.npz"], "it must be [6], a number for each of the 6 classes"),
        (["--predictions={given}/gap.npz", "--test_prior=train"], "has no training image"),
        (["--predictions={given}/good.npz", "--output=/proc/x/report"], "cannot write"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2_and_writes_nothing(command, given, argv, message):
    before = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    quick = [] if any(a.startswith(("--samples", "--figure")) for a in argv) else ["--samples=0"]
    code, out, err = command(*(a.replace("{given}", str(given)) for a in argv), *quick)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert {path: path.read_bytes() for path in given.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "loaded"),
    [
        (["--help"], "[]"),
        (["--workdir=nowhere"], "[]"),
        (["--predictions={good}", "--samples=0"], "[]"),
        (["--predictions={good}", "--samples=0", "--output={good}.html"], "['matplotlib']"),
    ],
)
def test_no_framework_is_needed_for_numbers(argv, loaded, tmp_path):
    np.savez(tmp_path / "good.npz", logits=predicted(30)[0], labels=predicted(30)[1])
    code = (
        "import sys; from unimix_jax import evaluate; from unimix_jax.report import plots;"
        "plots.image = lambda figure, kind: b'';"  # to draw takes seconds
        "evaluate.main(['evaluate', *sys.argv[1:]]);"
        "print(sorted({'jax', 'flax', 'torch', 'tensorflow', 'matplotlib'} & set(sys.modules)))"
    )
    argv = [a.replace("{good}", str(tmp_path / "good.npz")) for a in argv]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == loaded


@pytest.mark.parametrize(
    ("mixer", "partners"),
    [
        (5, {}),
        ({"alpha": "1"}, {}),
        ({"alpha": 0}, {}),
        ({}, {"class_exponent": [1]}),
        ({"wrap": "no"}, {}),
        ({}, None),
    ],
)
def test_a_config_whose_factor_cannot_be_drawn_is_refused_at_once(run, mixer, partners):
    from unimix_jax.report import files

    stage = {"mixer": {"name": "unimix", **mixer} if isinstance(mixer, dict) else mixer}
    stage |= {"partners": {"name": "by_class", **partners} if isinstance(partners, dict) else partners}
    directory = run("a")
    config = storage.read_json(directory / "config.json")
    storage.write_json(directory / "config.json", config | {"method": {"name": "unimix", "stages": {"mixed": stage}}})
    with pytest.raises(UserError, match="holds records that no run writes"):
        files.read_run(directory)
