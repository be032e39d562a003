"""The structure: who imports whom, what is imported late, who touches files and devices. Read from the syntax trees."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unimix_jax"
MODULES = sorted(p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py"))

# The layers from the top down. A module imports modules of its own package, and packages of the layers below.
LAYERS = (
    {"main", "evaluate"},
    {"library", "mixing", "losses", "calibration", "label_shift", "plots"},  # for programs of a user
    {"training", "report"},
    {"data", "methods", "models", "metrics", "theory", "cpu_kernels"},
    {"settings"},
    {"config"},
    {"priors", "npz"},
    {"registry", "storage", "cli", "names"},
    {"traits"},
    {"errors"},
)
# Imports inside of one layer, or upwards, and why.
EXCEPTIONS = {
    ("report", "training.rundir"): "the report reads the files of a run",
    ("config", "methods.recipes"): "a config holds a recipe, which is pure data",
}
LATE = {
    "PIL", "absl", "grain", "llvmlite", "matplotlib", "ml_collections", "orbax", "safetensors", "scipy", "simplejpeg",
    "sklearn", "mlflow", "tensorboardX", "tensorflow_datasets", "tqdm", "wandb", "yaml",
}  # fmt: skip
WITHOUT_JAX = {
    "calibration", "cli", "config", "data", "errors", "label_shift", "library", "metrics", "names", "npz", "plots",
    "priors", "registry", "storage", "theory", "traits",
}  # fmt: skip
# What --help imports: no numpy either.
INSTANT = {"__init__", "cli", "config", "errors", "main", "evaluate", "library", "names", "registry", "traits"}
TOUCH_FILES = {
    "cli", "config/load", "data/download", "data/readers", "data/sources/cifar", "data/sources/digits",
    "data/sources/folder_layout", "data/sources/folder_scan", "data/sources/inaturalist", "data/sources/list_file",
    "data/sources/tfds", "npz", "report/files", "storage", "training/checkpoints", "training/manifest",
    "training/preemption", "training/processes", "training/rundir", "training/unreadable",
}  # fmt: skip
FILE_CALLS = {
    "glob", "iterdir", "load_file", "mkdir", "open", "read_bytes", "read_text", "rglob", "unlink", "walk",
    "write_bytes", "write_text",
}  # fmt: skip
OS_CALLS = {"listdir", "makedirs", "open", "remove", "rename", "replace", "rmtree", "scandir"}  # of os and shutil
DEVICE_CALLS = {"process_index", "devices", "local_devices", "device_count", "local_device_count"}
RANDOM = {"Generator", "Philox", "RandomState"}  # of numpy: generators with a state of their own


def package_of(module):
    return module.split("/")[0]


def tree_of(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imports(module, top_level_only=False):
    """Yield the full names of what a module imports."""
    tree = tree_of(module)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(package):
    return next(i for i, layer in enumerate(LAYERS) if package in layer)


def calls(module):
    """Yield (owner, name) of each call: ("jax", "devices") of jax.devices(), ("", "open") of open()."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield "", node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            yield owner.id if isinstance(owner, ast.Name) else "?", node.func.attr


def test_every_package_has_a_layer():
    assert {package_of(m) for m in MODULES} - {"__init__"} == set().union(*LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    here = package_of(module)
    for name in imports(module):
        if not name.startswith("unimix_jax.") or here == "__init__":
            continue
        target = name.removeprefix("unimix_jax.")
        there = target.split(".")[0]
        if there == here or there == "__version__":
            continue
        allowed = any((here, target[: len(t)]) == (h, t) for h, t in EXCEPTIONS)
        assert allowed or layer_of(there) > layer_of(here), f"{module} imports {name}"


def test_no_module_needs_the_cpu_kernels():
    assert not [(m, n) for m in MODULES if package_of(m) != "cpu_kernels" for n in imports(m) if "cpu_kernels" in n]


def test_recipes_import_nothing():
    assert list(imports("methods/recipes")) == []


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_they_are_used(module):
    at_top = {name.split(".")[0] for name in imports(module, top_level_only=True)}
    assert not at_top & LATE
    if package_of(module) in INSTANT:
        assert not at_top & {"jax", "flax", "optax", "numpy"}


@pytest.mark.slow
def test_packages_without_jax_import_none():
    names = [
        "unimix_jax." + m.replace("/", ".").removesuffix(".__init__") for m in MODULES if package_of(m) in WITHOUT_JAX
    ]
    code = f"import sys, {', '.join(names)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_needs_neither_numpy_nor_jax():
    code = (
        "import sys; from unimix_jax import evaluate, main\n"
        "assert main.main(['main', '--help']) == evaluate.main(['evaluate', '--help']) == 0\n"
        "sys.exit(any(name in sys.modules for name in ('numpy', 'jax', 'absl', 'ml_collections')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("module", MODULES)
def test_only_some_modules_touch_files_and_devices(module):
    made = set(calls(module)) - {("Image", "open")}
    names = {name for owner, name in made if name in (OS_CALLS if owner in ("os", "shutil") else FILE_CALLS)}
    assert bool(names) == (module in TOUCH_FILES), f"{module} calls {names}"
    if module != "training/devices":
        assert not {(o, n) for o, n in made if o == "jax" and n in DEVICE_CALLS}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_uses_the_global_generator(module):
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "random":
            owner = node.value.value
            if isinstance(owner, ast.Name) and owner.id in ("np", "numpy"):
                assert node.attr in RANDOM, f"{module} uses np.random.{node.attr}"


def test_the_wheel_holds_every_package_of_the_tree():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in PACKAGE.rglob("__init__.py")}
    assert set(tools["packages"]) == folders | set(tools["package-dir"])
    for folder in tools["package-dir"].values():
        assert (ROOT / folder).is_dir()


EXAMPLES = (
    "methods/losses", "methods/mixing", "methods/shares", "methods/posthoc", "priors", "metrics/measures",
    "metrics/classwise", "metrics/summaries", "metrics/bootstrap", "metrics/calibration", "metrics/label_shift",
    "mixing",
)  # fmt: skip


@pytest.mark.parametrize("module", EXAMPLES)
def test_public_functions_have_an_example_that_runs(module):
    functions = [n for n in tree_of(module).body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert functions
    without = [function.name for function in functions if ">>> " not in (ast.get_docstring(function) or "")]
    assert not without, f"{module}: {without}"
