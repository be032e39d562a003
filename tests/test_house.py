"""The plan of the house: who may import whom, what is imported late, who may touch files and devices."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unimix_jax"
ROOMS = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")

GROUND = {"errors", "storage", "priors", "batch", "workdir", "interrupts", "doors", "timings"}
DOORS = {"main", "evaluate"}
WINGS = {"data", "models", "methods", "measures", "cpu_kernels"}
LATE = {
    "matplotlib",
    "PIL",
    "grain",
    "tensorflow_datasets",
    "sklearn",
    "orbax",
    "scipy",
    "tqdm",
    "absl",
    "ml_collections",
    "safetensors",
    "simplejpeg",
    "llvmlite",
}
NO_JAX = sorted(room for room in ROOMS if room.split("/")[0] in ("data", "measures") or room[:-3] in GROUND)
TOUCH_FILES = {
    "storage.py",
    "workdir.py",
    "data/cifar.py",
    "data/download.py",
    "data/folders.py",
    "data/photographs.py",
    "data/prepared.py",
    "data/sources.py",
    "data/splits.py",
    "measures/files.py",
    "models/pretrained.py",
    "training/record.py",
}
FILE_CALLS = r"(?<![\w.])open\(|\.(read|write)_(bytes|text)\(|\bos\.(walk|listdir|replace)\(|\bload_file\("


def parsed(room):
    return ast.parse((PACKAGE / room).read_text())


def imports(room, top_level_only=False):
    """Full names of the modules that a room imports."""
    tree = parsed(room)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def place(module):
    """The floor or wing of one of the project's modules, None for others."""
    if not module.startswith("unimix_jax."):
        return None
    name = module.split(".")[1]
    return "ground" if name in GROUND else name


def test_imports_run_downwards():
    for room in ROOMS:
        here = "ground" if room[:-3] in GROUND else room.split("/")[0].removesuffix(".py")
        for module in imports(room):
            there = place(module)
            if there is None or there == here or (here not in ("ground",) and there == "ground"):
                continue
            if here == "training":
                assert there in WINGS, f"{room} imports {module}"
            elif here == "settings":
                assert module.startswith("unimix_jax.methods.rows."), f"{room} imports {module}"
            else:
                assert here in DOORS, f"{room} imports {module}"


def test_rows_are_pure_data():
    assert list(imports("methods/rows.py")) == []


@pytest.mark.parametrize("room", ROOMS)
def test_heavy_packages_are_imported_where_they_are_used(room):
    at_top = {module.split(".")[0] for module in imports(room, top_level_only=True)}
    assert not at_top & LATE
    if room in ("settings.py", *(f"{door}.py" for door in DOORS)):
        assert not at_top & {"jax", "flax", "optax", "numpy"}


def test_the_ground_the_data_and_the_measures_import_no_jax():
    modules = ["unimix_jax." + room[:-3].replace("/", ".") for room in NO_JAX]
    code = f"import sys, {', '.join(modules)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_uses_the_global_generator_or_touches_what_is_not_its_own(room):
    text = (PACKAGE / room).read_text()
    code = re.sub(r'"""(?s:.*?)"""|#.*', "", text)
    allowed = r"np\.random\.(?:Generator|Philox|RandomState)\b"
    assert not re.search(r"np\.random\.", re.sub(allowed, "", code))
    if room not in TOUCH_FILES:
        assert not re.search(FILE_CALLS, code)
    if room != "training/parallel.py":
        assert not re.search(r"process_index|jax\.(local_)?devices|jax\.device_count", code)


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_public_says_what_it_is(room):
    for node in parsed(room).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{room}: {node.name}"
    assert ast.get_docstring(parsed(room)), room


def test_the_wheel_holds_every_package_of_the_tree():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in PACKAGE.rglob("__init__.py")}
    assert set(tools["packages"]) == folders | set(tools["package-dir"])
    for folder in tools["package-dir"].values():
        assert (ROOT / folder).is_dir()
