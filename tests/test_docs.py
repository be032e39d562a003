"""What the documents tell a reader to do is done."""

import pathlib
import re
import shlex
import sys

import pytest

from unimix_jax import main, settings, workdir
from unimix_jax.errors import UserError
from unimix_jax.training import loop

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


def test_the_loss_of_the_document_trains_by_its_command(own_losses, capsys):
    _, _, module, *argv = shlex.split(blocks("docs/own_loss.md", "sh")[0])
    assert module == "unimix_jax.main"
    argv += ["--config.epochs=1", "--config.parallel.devices=1", "--workdir=run"]
    assert main.main(["main", *argv]) == 0
    stages = workdir.read_json(own_losses / "run" / "config.json")["method"]["stages"]
    assert stages["mixed"]["loss"] == {"name": "my_losses:rare_first"}
    assert "run directory: run" in capsys.readouterr().out


def test_the_document_s_line_of_a_config_sets_the_option(own_losses):
    text = (settings.find_config("digits_lt.py")).read_text()
    line = blocks("docs/own_loss.md", "python")[1].strip()
    (own_losses / "own.py").write_text(text.replace("    return config", f"    {line}\n    return config"))
    stages = loop.prepare(settings.parse(["main", "--config=own.py:method=unimix"]).config, None).method.stages
    assert [s.loss.keywords["strength"] for s in stages] == [1.0, 1.0]


def test_a_loss_that_averages_is_refused(own_losses):
    (own_losses / "my_losses.py").write_text("def mean(logits, labels):\n    return logits.mean()\n")
    argv = ["main", "--config=digits_lt.py:method=erm", "--config.method.stages.plain.loss.name=my_losses:mean"]
    with pytest.raises(UserError, match=r"returns shape \(\)"):
        loop.run(settings.parse([*argv, "--config.parallel.devices=1"]).config, own_losses / "run")


def test_the_readme_names_what_there_is():
    text = (ROOT / "README.md").read_text()
    first, second = blocks("README.md", "bash")
    assert first.splitlines()[-1] == (
        ".venv/bin/python -m unimix_jax.main --config=configs/digits_lt.py --workdir=runs/digits"
    )
    assert second.splitlines()[-1] == ".venv/bin/python -m pytest"
    for path in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / path).exists(), path
