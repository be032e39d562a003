import json
import logging
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from unimix_jax import storage
from unimix_jax.errors import UserError
from unimix_jax.metrics.predictions import Predictions, read_predictions, write_predictions
from unimix_jax.training import rundir


def test_predictions_come_back_as_written(tmp_path):
    written = Predictions(2 * np.eye(3, dtype=np.float32), np.arange(3), np.array([5, 2, 1]), None, ("a", "b", "ü"))
    write_predictions(tmp_path / "p.npz", written)
    read = read_predictions(tmp_path / "p.npz")
    np.testing.assert_array_equal(read.logits, written.logits)
    np.testing.assert_array_equal(read.counts, written.counts)
    assert read.logits_prior is None
    assert read.class_names == written.class_names


def test_probabilities_may_stand_in_the_place_of_logits(tmp_path):
    probabilities = np.array([[1.0, 0.0], [0.25, 0.75]])
    np.savez(tmp_path / "p.npz", probabilities=probabilities, labels=np.array([0, 1]))
    read = read_predictions(tmp_path / "p.npz")
    np.testing.assert_allclose(np.exp(read.logits), probabilities, atol=1e-300)
    assert np.isfinite(read.logits).all()


ROWS = np.array([[0.5, 0.5], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.array([{}], dtype=object)}, "array 'logits' holds pickled objects, which are not loaded"),
        ({"labels": np.array([0])}, "holds no array 'logits' and no 'probabilities'"),
        ({"logits": ROWS, "probabilities": ROWS}, "both 'logits' and 'probabilities'"),
        ({"probabilities": ROWS - 1}, "probabilities of .* hold -0.8"),
        ({"probabilities": 2 * ROWS}, "hold 1.6; they must lie in 0..1"),
        ({"probabilities": 0.9 * ROWS}, "example 0 sum to 0.9"),
        ({"probabilities": np.full((2, 2), np.nan)}, "hold nan"),
        ({"logits": ROWS[0]}, r"are float64\[2\]; they must be numbers \[N, K\]"),
        ({"logits": np.zeros((0, 2))}, "N > 0"),
        ({"logits": -ROWS, "labels": np.array([0])}, r"labels of .* are int64\[1\]; they must be integers \[2\]"),
        ({"logits": -ROWS, "labels": np.array([0.0, 1])}, "must be integers"),
        ({"logits": -ROWS, "labels": np.array([0, 2])}, "hold 2; with 2 classes"),
        ({"logits": -ROWS, "counts": np.array([5, 4, 3])}, "counts of"),
        ({"logits": ROWS}, "look like probabilities"),
        ({"logits": -ROWS, "counts": np.array([5, 2**63], np.uint64)}, "more images than there are"),
        ({"logits": -ROWS, "class_names": np.zeros(2, "U20000")}, "class_names of .* up to 20000 characters"),
    ],
)
def test_files_that_hold_no_predictions_get_a_sentence(tmp_path, arrays, message):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.npz")


def test_files_that_are_not_whole_get_a_sentence(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(UserError, match="cannot read .*: No such file"):
        read_predictions(path)
    np.savez(path, logits=np.random.default_rng(0).normal(size=(200, 10)))
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[5000] ^= 255
    damages = {"cut short": content[:-100], "empty": b"", "no zip": b"no zip", "a flipped bit": bytes(damaged)}
    for data in damages.values():
        path.write_bytes(data)
        with pytest.raises(UserError, match="cut short|is damaged"):
            read_predictions(path)
    with open(path, "wb") as file:
        np.save(file, ROWS)
    with pytest.raises(UserError, match="one array without a name"):
        read_predictions(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(path, {"a": float("nan")})
    assert storage.read_json(path) == {"a": 1}


def test_damaged_json_gets_a_sentence(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        storage.read_json(tmp_path / "run.json")
    assert storage.read_json(tmp_path / "absent.json") is None


def test_metrics_are_cut_back_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert rundir.read_metrics(path) == []
    for step in (1, 2, 3):
        loss = float("inf") if step == 2 else 0.1
        rundir.append_metrics(path, {"step": step, "epoch": step / 4, "loss": loss})
    with open(path, "a") as file:
        file.write('\0\0\n{"step": 4, "lo')
    rundir.truncate_metrics(path, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "epoch": 0.25, "loss": 0.1},
        {"step": 2, "epoch": 0.5, "loss": None},
    ]


FOREIGN_LINES = (
    b"5\n", b"[1]\n", b"{}\n", b"null\n", b"\n", b"\xff\n", b"[" * 30_000 + b"\n", b'{"step": 1}\n',
    b'{"step": true, "epoch": 1}\n', b'{"step": 2, "epoch": "1"}\n', b'{"step": 2, "epoch": NaN}\n',
    b'{"step": 2, "epoch": 1e999}\n', b'{"step": 2, "epoch": 1, "loss": {}}\n',
    b'{"step": 2, "epoch": 1, "split": "test"}\n', b'{"step": 2, "epoch": 1, "split": 3, "accuracy": 1}\n',
    b'{"step": 2, "epoch": 1, "loss": 1' + b"0" * 5000 + b"}\n",
)  # fmt: skip


@pytest.mark.parametrize("line", FOREIGN_LINES, ids=lambda line: line[:30].decode(errors="replace").strip())
def test_a_line_that_is_no_record_costs_no_other_record(tmp_path, monkeypatch, caplog, line):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    path, sound = tmp_path / "metrics.jsonl", b'{"step": 3, "epoch": 0.5, "loss": 1.0, "stage": "plain"}\n'
    path.write_bytes(sound + line + sound)
    assert [record["step"] for record in rundir.read_metrics(path)] == [3, 3]
    assert "1 of its 3 lines is no record and is passed over (line 2)" in caplog.text


@pytest.mark.parametrize("content", ["5", "[1]", "null", '"a"', "[" * 100_000, '{"a": ' * 50 + "1" + "}" * 50])
def test_json_of_another_kind_or_too_deep_gets_a_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        storage.read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "record",
    [{}, {"state": "complete"}, {"data": [], "starts": [], "state": 1}, {"data": {"train": 1}, "starts": [{}]},
     {"data": {}, "starts": [{"environment": {}}], "state": "running"}],
)  # fmt: skip
def test_a_record_with_which_no_run_can_go_on_gets_a_sentence(tmp_path, record):
    storage.write_json(tmp_path / "run.json", record)
    with pytest.raises(UserError, match="is no record of a run"):
        rundir.read_manifest(tmp_path / "run.json")


@pytest.mark.parametrize(
    "results",
    [{}, {"test": 5}, {"test": {"accuracy": "much"}}, {"test": {}, "best": {"accuracy": 0.5}}, {"validation": {}}],
)
def test_measures_that_no_run_writes_get_a_sentence(tmp_path, results):
    storage.write_json(tmp_path / "metrics.json", results)
    with pytest.raises(UserError, match="holds no measures"):
        rundir.read_results(tmp_path / "metrics.json")


def test_digests_tell_results_that_were_changed_or_are_gone(tmp_path):
    for name in ("metrics.json", "predictions.npz", "images_test.txt", "predictions_validation.npz"):
        (tmp_path / name).write_text(name)
    run = {"outputs": rundir.output_digests(tmp_path)}
    assert set(run["outputs"]) == {path.name for path in tmp_path.iterdir()}
    assert rundir.changed_outputs(tmp_path, run) == ([], [])
    (tmp_path / "predictions.npz").write_text("other")
    (tmp_path / "images_test.txt").unlink()
    assert rundir.changed_outputs(tmp_path, run) == (["predictions.npz"], ["images_test.txt"])
    for other in (None, {}, 5, {"outputs": 5}):  # of before digests were kept, or of nobody's making
        assert rundir.changed_outputs(tmp_path, other) == ([], [])


def test_a_directory_with_other_files_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex"):
        rundir.create(tmp_path)


def test_what_a_run_left_that_was_killed_at_its_start_is_taken(tmp_path):
    for name in ("lock", "log.txt", "config.json.tmp", "checked.json", "unreadable.txt"):
        (tmp_path / name).write_text("")
    assert rundir.create(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_directory_that_cannot_be_written_gets_a_sentence(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run directory"):
        rundir.create(tmp_path / name)


def test_a_path_that_is_not_utf8_is_refused_before_training(tmp_path, monkeypatch):
    # Orbax would fail at it when all training is done.
    with pytest.raises(UserError, match="is not UTF-8 in this locale, .* give another --workdir"):
        rundir.create(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert list(tmp_path.iterdir()) == []
    rundir.create(tmp_path / "caf\u00e9")
    monkeypatch.setattr(os, "fsencode", lambda path: os.fspath(path).encode("latin-1"))  # as in such a locale
    with pytest.raises(UserError, match="is not UTF-8"):
        rundir.create(tmp_path / "caf\u00e9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsencode", lambda path: os.fspath(path).encode("ascii"))
    rundir.create("run")


def test_in_an_ascii_locale_a_path_with_an_accent_is_refused(tmp_path):
    code = "import sys; from unimix_jax import main; sys.exit(main.main(['main', *sys.argv[1:]]))"
    argv = [b"--config=digits_lt.py", b"--workdir=" + os.fsencode(tmp_path) + "/caf\u00e9".encode()]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, check=False, env={**os.environ, **ascii_only}
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: the path of the run directory")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("name", [rundir.LOCK, rundir.LOG])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    reader = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)  # a writer need not wait
    try:
        with pytest.raises(UserError, match="it is a pipe; it must be a regular file"):
            rundir.create(tmp_path)
    finally:
        os.close(reader)


def test_a_fresh_directory_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir.time, "strftime", lambda _: "now")
    made = [rundir.new_rundir("digits_lt", tmp_path / "runs") for _ in range(3)]
    assert [path.name for path in made] == ["digits_lt-now", "digits_lt-now-2", "digits_lt-now-3"]
    assert all(path.is_dir() for path in made)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make a run directory"):
        rundir.new_rundir("digits_lt", tmp_path / "file")


def test_only_a_directory_without_a_run_is_discarded(tmp_path):
    for name, files in (("begun", ("config.json", "lock")), ("empty", ("lock", "log.txt")), ("other", ("lock", "x"))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
        rundir.discard(tmp_path / name)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["begun/config.json", "begun/lock", "other/x"]


def test_a_second_process_is_refused_and_death_frees_the_lock(tmp_path):
    holder = (
        "import pathlib, sys, unimix_jax.training.rundir as w\n"
        "with w.locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid} on"), rundir.locked(tmp_path):
            pass
        os.kill(process.pid, 9)
        process.wait()
        with rundir.locked(tmp_path):
            pass


def test_the_lock_under_windows(tmp_path, monkeypatch):
    """Windows locks bytes, and keeps others from reading them: the holder's name is read all the same."""
    held, asked = set(), []

    def locking(number, mode, count):
        asked.append((mode, os.lseek(number, 0, os.SEEK_CUR), count))
        if held:
            raise PermissionError(13, "Permission denied")
        held.add(number)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with (
        rundir.locked(tmp_path),
        pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"),
        rundir.locked(tmp_path),
    ):
        pass
    assert [(mode, count) for mode, _, count in asked] == [(2, 1)] * 2
    assert all(place > 2**20 for _, place, _ in asked)


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*a.json'"):
        storage.write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())
