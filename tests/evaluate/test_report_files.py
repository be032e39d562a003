"""The files of a report: those that are written again, moved aside or left, also where a process was killed."""

import os
import pathlib

import numpy as np
import pytest

from unimix_jax import metrics, storage
from unimix_jax.errors import UserError
from unimix_jax.metrics.predictions import read_predictions, write_predictions
from unimix_jax.report import build, files
from unimix_jax.report.sections import Picture, Section

from .outputs import predicted


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
