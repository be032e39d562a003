"""launch/slurm.sh with stand-ins for srun and scontrol: each branch of the script."""

import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch" / "slurm.sh"
# Each writes its arguments, a line an argument, and leaves with the code that the test wants.
STAND_IN = """#!/bin/bash
printf '%s\\n' "$@" >"$RECORD/NAME"
env >"$RECORD/NAME.env"
exit "${NAME_CODE:-0}"
"""

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="a script of bash")


@pytest.fixture
def slurm(tmp_path):
    """Return a function that runs the script as a job whose processes leave with a code."""
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol"):
        (tmp_path / "bin" / name).write_text(STAND_IN.replace("NAME", name))
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*arguments, code=0, job="7", **variables):
        for name in ("srun", "scontrol"):
            (tmp_path / name).unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "RECORD": str(tmp_path), "srun_CODE": str(code)}
        environment |= ({"SLURM_JOB_ID": job} if job else {}) | variables
        result = subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        recorded = {
            name: (tmp_path / name).read_text().splitlines() if (tmp_path / name).exists() else None
            for name in ("srun", "scontrol")
        }
        return result, recorded

    run.folder = tmp_path
    return run


def test_the_script_is_bash_and_its_directives_stand_before_its_first_command():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    lines = SCRIPT.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command  # sbatch reads none behind it
    assert "#SBATCH --signal=TERM@180" in lines  # without "B:", which would signal the shell alone
    assert "#SBATCH --requeue" in lines


def test_a_run_gets_its_arguments_and_the_code_of_its_processes(slurm):
    result, recorded = slurm("--config=a b.py", "--workdir=runs/x", "--config.epochs=3", SLURM_CPUS_PER_TASK="12")
    assert result.returncode == 0
    options = ["--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=120", "--cpus-per-task=12"]
    training = ["python", "-m", "unimix_jax.main", "--config=a b.py", "--config.epochs=3", "--workdir=runs/x"]
    assert recorded["srun"] == options + training
    assert recorded["scontrol"] is None


@pytest.mark.parametrize("code", [1, 2, 3, 74, 130, 134, 137])
def test_other_codes_end_the_job_with_that_code(slurm, code):
    result, recorded = slurm("--workdir=x", code=code)
    assert result.returncode == code
    assert recorded["scontrol"] is None


def test_a_run_that_was_stopped_after_a_save_is_queued_again(slurm):
    result, recorded = slurm("--workdir=x", code=75, SLURM_RESTART_COUNT="19")
    assert result.returncode == 0
    assert recorded["scontrol"] == ["requeue", "7"]
    assert "job 7 is queued again" in result.stdout


def test_a_task_of_an_array_queues_itself_again_and_not_the_array(slurm):
    # The number of one task is that of the array: `scontrol requeue 7` would stop and repeat all of its tasks.
    result, recorded = slurm("--workdir=x", code=75, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert result.returncode == 0
    assert recorded["scontrol"] == ["requeue", "7_3"]


@pytest.mark.parametrize("limit", [{}, {"UNIMIX_MAX_RESTARTS": "2"}])
def test_the_restarts_have_a_limit(slurm, limit):
    restarts = limit.get("UNIMIX_MAX_RESTARTS", "20")
    result, recorded = slurm("--workdir=x", code=75, SLURM_RESTART_COUNT=restarts, **limit)
    assert result.returncode == 75
    assert recorded["scontrol"] is None
    assert f"after {restarts} restarts, which is the limit; submit the same job again" in result.stderr


def test_a_refusal_of_slurm_is_said(slurm):
    result, recorded = slurm("--workdir=x", code=75, scontrol_CODE="1")
    assert result.returncode == 75
    assert recorded["scontrol"] == ["requeue", "7"]
    assert "Slurm does not queue job 7 again" in result.stderr


@pytest.mark.parametrize("code", [134, 137])
def test_lost_processes_are_queued_again_where_that_is_asked_for(slurm, code):
    result, recorded = slurm("--workdir=x", code=code, UNIMIX_REQUEUE_CODES="75 134 137")
    assert result.returncode == 0
    assert recorded["scontrol"] == ["requeue", "7"]


def test_a_code_is_compared_whole(slurm):
    result, recorded = slurm("--workdir=x", code=7)
    assert (result.returncode, recorded["scontrol"]) == (7, None)


def test_an_array_goes_over_seeds(slurm):
    result, recorded = slurm(
        "--config=c", "--workdir=runs/x", SLURM_ARRAY_TASK_ID="4", SLURM_ARRAY_JOB_ID="7", PYTHON="python3.12"
    )
    assert result.returncode == 0
    assert recorded["srun"][3:] == [
        "python3.12", "-m", "unimix_jax.main", "--config=c", "--config.seed=4", "--workdir=runs/x/seed-4",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [["--config.seed=9"], ["--config.seed", "9"]])
def test_an_array_over_seeds_refuses_a_seed_of_the_user(slurm, seed):
    result, recorded = slurm("--config=c", "--workdir=x", *seed, SLURM_ARRAY_TASK_ID="4", SLURM_ARRAY_JOB_ID="7")
    assert (result.returncode, recorded["srun"]) == (2, None)
    assert f"error: the array sets --config.seed to the number of each task; leave {seed[0]} out" in result.stderr
    result, recorded = slurm("--config=c", "--workdir=x", *seed)  # no array
    assert recorded["srun"][-len(seed) - 1 : -1] == seed


def test_an_array_goes_over_the_lines_of_a_file(slurm):
    first = "--config=a --workdir=mine"
    second = """--config=b '--config.data.jitter=(.1, .1, 0)' --config.x='it'"'"'s $HOME `id` *' """
    (slurm.folder / "runs.txt").write_text(f"{first}\n{second}\n")
    array = {"SLURM_ARRAY_JOB_ID": "7"}
    result, recorded = slurm("--runs=runs.txt", "--config.epochs=2", SLURM_ARRAY_TASK_ID="0", **array)
    assert result.returncode == 0
    assert recorded["srun"][6:] == ["--config=a", "--config.epochs=2", "--workdir=mine"]
    result, recorded = slurm("--runs=runs.txt", "--workdir=root", SLURM_ARRAY_TASK_ID="1", **array)
    assert recorded["srun"][6:] == [
        "--config=b", "--config.data.jitter=(.1, .1, 0)", "--config.x=it's $HOME `id` *", "--workdir=root/run-1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["--config=c"], {}, "--workdir is missing; a job that is queued again goes on in it"),
        (["--workdir", "x"], {}, "--workdir has no value; write --workdir=PATH"),
        (["--runs=r"], {}, "--runs=r needs an array; submit it with sbatch --array=0-N"),
        (["--runs=no"], {"SLURM_ARRAY_TASK_ID": "0"}, "--runs names no, which is no file"),
        (["--runs=r"], {"SLURM_ARRAY_TASK_ID": "2"}, "r has no line 3 for task 2; see --array"),
        (["--runs=r"], {"SLURM_ARRAY_TASK_ID": "0"}, "line 1 of r has a quote without its end"),
        (["--runs=r"], {"SLURM_ARRAY_TASK_ID": "1"}, "--workdir is missing; a job that is queued again goes on in it"),
    ],
)
def test_mistakes_are_told_before_anything_starts(slurm, arguments, variables, sentence):
    (slurm.folder / "r").write_text("--config='a\n--config=b\n")
    result, recorded = slurm(*arguments, **variables)
    assert (result.returncode, recorded["srun"]) == (2, None)
    assert result.stderr.splitlines()[-1] == f"error: {sentence}"


def test_the_dry_run_needs_no_job_and_starts_nothing(slurm):
    result, recorded = slurm("--dry_run", "--config=c", "--workdir=a b", job=None)
    assert (result.returncode, recorded["srun"]) == (0, None)
    assert result.stdout.strip().endswith(r"-m unimix_jax.main --config=c --workdir=a\ b")
    result, recorded = slurm("--config=c", "--workdir=x", job=None)
    assert (result.returncode, recorded["srun"]) == (2, None)
    assert "this is no job of Slurm; submit the script with sbatch" in result.stderr


@pytest.mark.parametrize(("processes", "kept"), [("1", True), ("16", False)])
def test_no_proxy_stands_between_several_processes(slurm, processes, kept):
    slurm("--workdir=x", SLURM_NTASKS=processes, https_proxy="http://proxy:1", HTTP_PROXY="http://proxy:1")
    names = {line.partition("=")[0] for line in (slurm.folder / "srun.env").read_text().splitlines()}
    assert ({"https_proxy", "HTTP_PROXY"} <= names) == kept
    assert kept or not {"https_proxy", "HTTP_PROXY"} & names
    assert "PYTHONUNBUFFERED" in names
