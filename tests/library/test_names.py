"""The names of `import unimix_jax`: nothing heavy is loaded for them, and an unknown one says where it is."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import unimix_jax
from unimix_jax import library, losses, names


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_loads_nothing_heavy():
    code = (
        "import sys, unimix_jax; dir(unimix_jax); unimix_jax.train, unimix_jax.evaluate, unimix_jax.UserError\n"
        "print([name for name in ('jax', 'numpy', 'ml_collections', 'absl', 'scipy') if name in sys.modules])"
    )
    assert in_a_new_process(code).stdout == "[]\n"


def test_every_public_name_is_there_and_known_to_type_checkers():
    tree = ast.parse(pathlib.Path(unimix_jax.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body for alias in node.names}
    assert typed | {"__version__"} == set(unimix_jax.__all__)
    assert set(unimix_jax.__all__) <= set(dir(unimix_jax))
    for name in unimix_jax.__all__:
        assert getattr(unimix_jax, name) is not None
        if name in unimix_jax._MODULE_OF:
            assert getattr(unimix_jax, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bayais", "did you mean 'unimix_jax.bayias'?"),
        ("Unimix", "it is unimix_jax.unimix"),
        ("focal", "it is unimix_jax.losses.focal"),
        ("mixup", "it is unimix_jax.mixing.mixup"),
        ("fit_bias_corrected", "it is unimix_jax.calibration.fit_bias_corrected"),
        ("trian", "did you mean 'unimix_jax.train'?"),
        ("__path_hooks__", "has no attribute"),
    ],
)
def test_an_unknown_name_says_where_it_is(name, words):
    with pytest.raises(AttributeError, match=f"module 'unimix_jax' has no attribute {name!r}") as error:
        getattr(unimix_jax, name)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("calibration", "temperature", "did you mean 'unimix_jax.calibration.fit_temperature'?"),
        ("calibration", "TemperatureScaling", "it is unimix_jax.calibration.fit_temperature"),
        ("losses", "bayias_loss", "did you mean 'unimix_jax.losses.bayias'?"),
        ("losses", "BalancedSoftmax", "did you mean 'unimix_jax.losses.balanced_softmax'?"),
        ("losses", "unimix", "it is unimix_jax.mixing.unimix"),
        ("metrics", "expected_calibration_error", "it is unimix_jax.metrics.ece"),
        ("metrics", "reliability_diagram", "it is unimix_jax.plots.reliability"),
        ("priors", "inverse", "did you mean 'unimix_jax.priors.inverse_weights'?"),
        ("mixing", "mix_up", "did you mean 'unimix_jax.mixing.mixup'?"),
        ("plots", "reliabilty", "did you mean 'unimix_jax.plots.reliability'?"),
        ("label_shift", "shift", "did you mean 'unimix_jax.label_shift.shift_prior'?"),
    ],
)
def test_a_public_module_says_where_an_unknown_name_is(module, name, words):
    contents = getattr(unimix_jax, module)
    with pytest.raises(AttributeError, match=f"module 'unimix_jax.{module}' has no attribute {name!r}") as error:
        getattr(contents, name)
    assert words in str(error.value)


@pytest.mark.parametrize("module", [name for name in names.MODULES if name != "config"])
def test_a_public_module_shows_its_public_names_alone(module):
    contents = getattr(unimix_jax, module)
    shown = [name for name in dir(contents) if not name.startswith("_")]
    assert shown == sorted(contents.__all__)
    assert all(hasattr(contents, name) for name in shown)
    assert not {"np", "jax", "annotations", "UserError", "registry"} & set(shown)


def test_short_names_are_the_modules_themselves():
    from unimix_jax.losses import bayias
    from unimix_jax.methods import losses as long_name

    assert unimix_jax.losses is losses is long_name
    assert unimix_jax.bayias is bayias is long_name.bayias
    assert unimix_jax.theory.exact.preference
    assert unimix_jax.config.parse


@pytest.mark.parametrize("first", ["import unimix_jax.evaluate", "unimix_jax.evaluate", "from unimix_jax import main"])
def test_evaluate_is_a_function_and_the_module_of_the_command(first):
    code = (
        f"import unimix_jax\n{first}\nimport unimix_jax.evaluate\nfrom unimix_jax.evaluate import main\n"
        "from unimix_jax import evaluate\nassert evaluate is unimix_jax.evaluate and evaluate.main is main\n"
        "result = unimix_jax.evaluate(probabilities=[[.9, .1], [.8, .2], [.6, .4]], labels=[0, 0, 1], samples=0)\n"
        "assert main(['evaluate', '--help']) == 0\nprint(result.images)"
    )
    done = in_a_new_process(code)
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "3")


def test_the_command_evaluate_still_starts():
    done = subprocess.run(
        [sys.executable, "-m", "unimix_jax.evaluate", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Measure predictions")


def test_evaluate_has_the_signature_of_its_function():
    assert inspect.signature(unimix_jax.evaluate) == inspect.signature(library.evaluate)
