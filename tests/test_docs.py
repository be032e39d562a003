"""What the documents tell a reader to do is done."""

import functools
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest

from unimix_jax import evaluate, main, metrics, storage
from unimix_jax.config import find_config, parse
from unimix_jax.errors import UserError
from unimix_jax.models import networks, resnet
from unimix_jax.training.run import run
from unimix_jax.training.setup import prepare

ROOT = pathlib.Path(__file__).resolve().parents[1]


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.S)


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    """A folder with the document's my_losses.py, as the current one."""
    (tmp_path / "my_losses.py").write_text(blocks("docs/own_loss.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    sys.modules.pop("my_losses", None)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "stem", "undrawn", "unsampled", "without_distributions")
def test_the_loss_of_the_document_trains_by_its_command(own_losses, capsys):
    _, _, module, *argv = shlex.split(blocks("docs/own_loss.md", "sh")[0])
    assert module == "unimix_jax.main"
    argv += ["--config.epochs=1", "--config.network=stem", "--config.parallel.devices=1", "--workdir=run"]
    assert main.main(["main", *argv]) == 0
    stages = storage.read_json(own_losses / "run" / "config.json")["method"]["stages"]
    assert stages["mixed"]["loss"] == {"name": "my_losses:rare_first"}
    assert capsys.readouterr().out.endswith("run directory: run\nreport: run/report.html\n")
    assert storage.read_json(own_losses / "run" / "report.json")["models"][0]["missing"] == []


def test_the_document_s_line_of_a_config_sets_the_option(own_losses):
    text = (find_config("digits_lt.py")).read_text()
    line = blocks("docs/own_loss.md", "python")[1].strip()
    (own_losses / "own.py").write_text(text.replace("    return config", f"    {line}\n    return config"))
    stages = prepare(parse(["main", "--config=own.py:method=unimix"]).config, pathlib.Path("unwritten")).method.stages
    assert [s.loss.keywords["strength"] for s in stages] == [1.0, 1.0]


@pytest.mark.slow
def test_a_loss_that_averages_is_refused(own_losses):
    (own_losses / "my_losses.py").write_text("def mean(logits, labels):\n    return logits.mean()\n")
    argv = ["main", "--config=digits_lt.py:method=erm", "--config.method.stages.plain.loss.name=my_losses:mean"]
    with pytest.raises(UserError, match="the loss mean of stage .plain. returns float32"):
        run(parse([*argv, "--config.parallel.devices=1"]).config, own_losses / "run")


@pytest.mark.slow
def test_the_measures_of_the_document_are_measured(capsys):
    code = blocks("docs/measures.md", "python")[0]
    exec(compile(code, "docs/measures.md", "exec"), {})
    assert "'tace'" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_document_s_commands_are_commands(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", logits=random.normal(size=(60, 3)), labels=random.integers(0, 3, 60))
    monkeypatch.chdir(tmp_path)
    _, _, module, *argv = shlex.split(blocks("docs/measures.md", "sh")[0])
    assert module == "unimix_jax.evaluate"
    assert evaluate.main(["evaluate", *argv]) == 0
    assert (tmp_path / "report.html").exists()
    for name in re.findall(r"^\| `(\w+)`", (ROOT / "docs/measures.md").read_text(), flags=re.M):
        assert hasattr(metrics, name), name


def test_the_readme_names_what_there_is():
    text = (ROOT / "README.md").read_text()
    first, second = blocks("README.md", "bash")
    assert first.splitlines()[-1] == (
        ".venv/bin/python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits"
    )
    assert second.splitlines()[-1] == ".venv/bin/python -m pytest"
    for path in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / path).exists(), path


@pytest.fixture
def stem_of_digits(monkeypatch):
    """Let the network of the digits be the stem of one."""
    monkeypatch.setitem(networks.NETWORKS, "resnet8", functools.partial(resnet.CifarResNet, blocks=0))


PROGRAMS = dict(enumerate(blocks("docs/library.md", "python")))


@pytest.mark.slow
@pytest.mark.usefixtures(
    "shared_programs", "quick_compilation", "unoptimised", "stem_of_digits", "undrawn", "without_distributions"
)
@pytest.mark.parametrize("number", PROGRAMS)
def test_a_program_of_the_library_runs(number, tmp_path, monkeypatch, capsys):
    if "import torch" in PROGRAMS[number]:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = {}
    exec(compile(PROGRAMS[number], f"docs/library.md, program {number}", "exec"), names)
    assert capsys.readouterr().out
    if "accuracy" in names:  # of a loop of one's own: it learns, from 4 images of the rarest class
        assert names["accuracy"] > 0.7
