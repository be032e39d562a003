"""The command of the measures: the numbers, tables and pictures that it makes of runs and files."""

import base64
import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from unimix_jax import metrics
from unimix_jax.metrics import per_example
from unimix_jax.metrics.predictions import read_predictions

from .outputs import COUNTS, NAMES, Page, predicted


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
