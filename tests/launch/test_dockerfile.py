"""The Dockerfile, read as text: no daemon is needed. hadolint is asked where it is installed."""

import fnmatch
import json
import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def instructions():
    """Return (instruction, arguments) of each line; lines that go on are joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]


def ignored(path):
    """Return whether .dockerignore leaves a path of the root out: the last pattern that matches it counts."""
    result = False
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#") and fnmatch.fnmatch(path, pattern.removeprefix("!")):
            result = not pattern.startswith("!")
    return result


def test_every_file_that_is_copied_is_there_and_reaches_the_builder():
    sources = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from=" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert {"pyproject.toml", "unimix_jax", "configs", "launch"} <= {*sources}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    for left_out in ("runs", "tests", ".git", ".venv", "results"):
        assert ignored(left_out), left_out


def test_the_wheel_has_all_that_it_is_built_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *(p.split(".")[0] for p in project["tool"]["setuptools"]["packages"])}
    needed |= {*project["tool"]["setuptools"]["package-dir"].values()}
    copied = " ".join(arguments for name, arguments in instructions() if name == "COPY").split()
    assert needed <= {*copied}


def test_the_extras_are_extras_of_the_project():
    default = dict(arguments.split("=") for name, arguments in instructions() if name == "ARG")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*default["EXTRAS"].split(",")} <= {*extras}
    assert default["JAX_EXTRA"] == "cuda12"


def test_the_image_runs_training_as_a_user_whose_number_the_jobs_know():
    lines = instructions()
    assert json.loads(lines[-1][1]) == ["python", "-m", "unimix_jax.main"]
    assert lines[-1][0] == "ENTRYPOINT"
    (user,) = (arguments for name, arguments in lines if name == "USER")
    assert re.search(rf"useradd --uid={user}\b", (ROOT / "Dockerfile").read_text())
    for job in ("jobset", "jobset_tpu"):
        assert f"runAsUser: {user}," in (ROOT / "launch" / f"{job}.yaml").read_text()
    assert ("ENV", "PYTHONUNBUFFERED=1") in lines
    assert all("--no-cache-dir" in arguments for name, arguments in lines if name == "RUN" and "pip " in arguments)


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    result = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
