"""How programs are compared: each in its own process, slot by slot."""

import ast
import importlib
import importlib.util
import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
WORKER = f"""
import sys, time
sys.path.insert(0, {str(FOLDER)!r})
import slots
slots.pin(1)
slots.serve(lambda steps: time.sleep(float(sys.argv[1]) * steps) or steps, name=sys.argv[1])
"""


@pytest.fixture(scope="module")
def slots():
    spec = importlib.util.spec_from_file_location("slots", FOLDER / "slots.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_workers_take_turns_and_are_compared_pair_by_pair(slots):
    commands = {name: [sys.executable, "-c", WORKER, name] for name in ("0.04", "0.01")}
    found = slots.compare(commands, rounds=3, seconds=0.02)
    assert {name: about["name"] for name, about in found.items()} == {"0.04": "0.04", "0.01": "0.01"}
    assert found["0.01"]["steps_a_slot"] == found["0.04"]["value"] == 2
    assert all(len(about["wall"]) == len(about["cpu"]) == 3 for about in found.values())
    ratio = slots.ratios(found["0.04"], found["0.01"])
    assert ratio["max"] >= ratio["median"] >= ratio["min"]
    assert ratio["median"] > 1


def test_a_worker_that_stops_is_told_of(slots):
    with pytest.raises(RuntimeError, match="the worker broken stopped before it was ready"):
        slots.compare({"broken": [sys.executable, "-c", "raise SystemExit(3)"]}, rounds=1, seconds=0.1)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_what_a_program_imports_of_the_package_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "unimix_jax":
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), name


def test_the_table_of_digits_is_made_of_runs(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("digits_table", FOLDER / "digits_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = []
    monkeypatch.setattr(
        module, "run", lambda config, directory: made.append((config.epochs, directory)) or {"test": RESULT}
    )
    assert module.measures("erm", 1, tmp_path, 2) == [50, 25, 10, 20]
    assert made == [(2, tmp_path / "erm" / "1-2-epochs")]


RESULT = {"accuracy": 0.5, "few": 0.25, "ece": 0.1, "mce": 0.2}
