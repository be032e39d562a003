"""Mistakes in calls of the command of the measures get one sentence."""

import numpy as np
import pytest

from unimix_jax import storage
from unimix_jax.errors import UserError
from unimix_jax.report import files

from .outputs import COUNTS, finished_run, predicted


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

    stage = {"mixer": {"name": "unimix", **mixer} if isinstance(mixer, dict) else mixer}
    stage |= {"partners": {"name": "by_class", **partners} if isinstance(partners, dict) else partners}
    directory = run("a")
    config = storage.read_json(directory / "config.json")
    storage.write_json(directory / "config.json", config | {"method": {"name": "unimix", "stages": {"mixed": stage}}})
    with pytest.raises(UserError, match="holds records that no run writes"):
        files.read_run(directory)
