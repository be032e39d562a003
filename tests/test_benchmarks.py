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


HLO = """
%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], f32[64]{0}) parameter(0)
  %x = f32[64]{0} get-tuple-element(%p), index=1
  %small = f32[64]{0} fusion(%x), kind=kLoop, calls=%a, metadata={op_name="f(g)"}
  %conv = (bf16[128,32,32,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %small), custom_call_target="__cudnn$convForward"
  %reduce = f32[64]{0} all-reduce-start(%x), to_apply=%add
  %reduced = f32[64]{0} all-reduce-done(%reduce)
  %inner = (s32[], f32[64]{0}) while(%p), condition=%c, body=%nested, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %tuple = (s32[], f32[64]{0}) tuple(%x, %small)
}

%nested (q: (s32[], f32[64])) -> (s32[], f32[64]) {
  %q = (s32[], f32[64]{0}) parameter(0)
  ROOT %copy = (s32[], f32[64]{0}) copy(%q)
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x.1 = (s32[], f32[64]{0}) parameter(0)
  %first = f32[100000]{0} fusion(%x.1), kind=kInput, calls=%b
  %loop = (s32[], f32[64]{0}) while(%x.1), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[64]{0} get-tuple-element(%loop), index=1
}
"""


def test_launches_of_a_step_are_those_of_the_loop_s_body():
    spec = importlib.util.spec_from_file_location("compiled", FOLDER / "compiled.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parsed, entry = module.computations(HLO)
    of_step = module.of_a_step(parsed, entry, 5)
    assert of_step.kinds == {"fusion kLoop": 1, "__cudnn$convForward": 1, "all-reduce": 1, "copy": 3}
    assert (of_step.small, of_step.collectives) == (5, {"all-reduce": 1})
    whole = module.of_a_step(parsed, entry, 1)
    assert (sum(whole.kinds.values()), whole.small, whole.collectives) == (31, 25, {"all-reduce": 5})
    assert module.library_bytes(parsed) == 2 * 128 * 32 * 32 * 16 + 2 * 4 * 64
    with pytest.raises(ValueError, match="0 loops of the program may run 7 times"):
        module.of_a_step(parsed, entry, 7)
    parsed, entry = module.computations(HLO.replace(', backend_config={"known_trip_count":{"n":"5"}}', ""))
    assert module.of_a_step(parsed, entry, 7) == of_step  # TPUs: the loop outside of others does not say how often
