"""launch.sweep with stand-ins for training, sbatch and the launchers of clouds."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from launch import sweep
from unimix_jax.config import parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Training: its run directory counts the starts, and `codes` there has the code of each start, at last 0.
TRAINING = """
for word in "$@"; do case "$word" in --workdir=*) folder="${word#*=}";; esac; done
mkdir -p "$folder"
echo "$@" >>"$folder/starts"
code=$(sed -n "$(wc -l <"$folder/starts")p" "$folder/codes" 2>/dev/null)
exit "${code:-0}"
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root for run directories, where the script above trains."""
    monkeypatch.setattr(sweep, "_training", lambda run: ["sh", "-c", TRAINING, "sh", *run.arguments])
    return tmp_path / "root"


def arguments(root, *more):
    return ["sweep", "--config=configs/digits_lt.py", f"--workdir={root}", *more]


def starts(root):
    return {path.parent.name: path.read_text().splitlines() for path in sorted(root.glob("*/starts"))}


def test_the_runs_are_the_product_of_the_lists(root):
    runs = sweep.parse(
        arguments(root, "--method=erm,unimix_bayias", "--imbalance=10,100", "--seed=0,1", "--config.epochs=3")
    ).runs
    assert [run.name for run in runs] == [
        "erm-10-0", "erm-10-1", "erm-100-0", "erm-100-1",
        "unimix_bayias-10-0", "unimix_bayias-10-1", "unimix_bayias-100-0", "unimix_bayias-100-1",
    ]  # fmt: skip
    assert runs[-1].arguments == (
        "--config=configs/digits_lt.py:method=unimix_bayias", "--config.data.imbalance=100", "--config.seed=1",
        "--config.epochs=3", f"--workdir={root}/unimix_bayias-100-1",
    )  # fmt: skip
    command = parse(["main", *runs[-1].arguments])
    assert (command.config.method.name, command.config.data.imbalance, command.config.seed) == ("unimix_bayias", 100, 1)


def test_names_have_the_values_of_the_config_where_no_list_does(root):
    (run,) = sweep.parse(arguments(root)).runs
    assert run.name == "unimix_bayias-20-0"
    names = [
        r.name
        for r in sweep.parse(arguments(root, "--config.optim.learning_rate=.1,.05", "--config.batch_size=16")).runs
    ]
    assert names == ["unimix_bayias-20-0-learning_rate_.1", "unimix_bayias-20-0-learning_rate_.05"]


def test_a_value_with_commas_stands_in_brackets(root):
    runs = sweep.parse(arguments(root, "--config.measures='a:b,c:d'", "--config.data.pad=1,2")).runs
    assert [run.arguments[1] for run in runs] == ["--config.measures=a:b,c:d"] * 2
    config = ["sweep", "--config=configs/image_folder.py", f"--workdir={root}", "--config.data.dir=x"]
    runs = sweep.parse([*config, "--config.data.jitter=(.1,.1,0),(.4,.4,.4)"]).runs
    assert [parse(["main", *run.arguments]).config.data.jitter for run in runs] == [(0.1, 0.1, 0), (0.4, 0.4, 0.4)]
    # Names hold no brackets; a digest keeps apart what would be the same.
    names = [run.name for run in runs]
    assert len({*names}) == 2
    assert all(name.replace("_", "").replace("-", "").replace(".", "").isalnum() for name in names)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0", ["0"]),
        ("0,1,2", ["0", "1", "2"]),
        ("(1,2),[3,(4,5)]", ["(1,2)", "[3,(4,5)]"]),
        ("'a,b',c", ["a,b", "c"]),
        ('"(1,",c', ["(1,", "c"]),
        ("it's here,b's", ["it's here", "b's"]),
        ("('a)',1),2", ["('a)',1)", "2"]),
        ("", [""]),
    ],
)
def test_lists_are_split_at_their_own_commas(text, values):
    assert sweep.split(text) == values


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--method=erm,mixupp"], "unknown method 'mixupp' (did you mean 'mixup'?)"),
        (["--seed=0,0"], "--seed has a value twice; a run is needed once"),
        (["--seed=0,,1"], "'0,,1' has an empty value between its commas"),
        (["--config.data.jitter=(1,2"], "'(1,2' has no ) at its end"),
        (["--config.data.dir='a"], """"'a" has no ' at its end"""),
        (["--seed=0", "--config.seed=1"], "--seed and --config.seed are the same; keep one of them"),
        (["--seed=0", "--seed=1"], "--seed is given twice; write its values behind each other, as in --seed=A,B"),
        (["--imbalance=10,10.0"], "two runs would have the directory unimix_bayias-10-0"),
        (["--config.epoch=3"], "unknown config field 'epoch' (did you mean 'epochs'?)"),
        (["--on=cloud"], "unknown place of --on 'cloud'"),
        (["--restarts=-1"], "--restarts is '-1'; it must be a whole number"),
        (["--sed=1"], "unknown option --sed (did you mean 'seed'?)"),
        (["seed"], "unexpected argument 'seed'; options are written --NAME=VALUE, see --help"),
        (["--", "--partition=x"], "'--partition=x' stands behind --, where the options of a launcher are"),
    ],
)
def test_mistakes_are_told_before_anything_starts(root, capsys, more, sentence):
    assert sweep.main(arguments(root, *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not root.exists()


def test_a_method_is_chosen_in_one_place(root, capsys):
    command = ["sweep", "--config=configs/cifar_lt.py:dataset=cifar100,method=erm", f"--workdir={root}"]
    assert sweep.main([*command, "--method=mixup"]) == 2
    assert "names a method, and so does --method" in capsys.readouterr().err
    (run,) = sweep.parse([command[0], command[1].replace(",method=erm", ""), command[2], "--method=mixup"]).runs
    assert run.arguments[0] == "--config=configs/cifar_lt.py:dataset=cifar100,method=mixup"


def test_all_runs_are_trained_one_after_the_other(root, capsys):
    assert sweep.main(arguments(root, "--seed=0,1")) == 0
    assert {name: len(lines) for name, lines in starts(root).items()} == {
        "unimix_bayias-20-0": 1,
        "unimix_bayias-20-1": 1,
    }
    printed = capsys.readouterr().out
    assert "[2 of 2] unimix_bayias-20-1\n" in printed
    assert "unimix_bayias-20-1  finished  0 s\n" in printed


def test_a_run_that_fails_does_not_stop_the_others_and_the_code_says_it(root, capsys):
    for name, codes in {"unimix_bayias-20-0": "3", "unimix_bayias-20-1": "75\n75\n0"}.items():
        (root / name).mkdir(parents=True)
        (root / name / "codes").write_text(codes)
    assert sweep.main(arguments(root, "--seed=0,1,2")) == 74
    assert {name: len(lines) for name, lines in starts(root).items()} == {
        "unimix_bayias-20-0": 1,
        "unimix_bayias-20-1": 3,
        "unimix_bayias-20-2": 1,
    }
    captured = capsys.readouterr()
    table = captured.out.strip().splitlines()[-3:]
    assert table[0] == "unimix_bayias-20-0  failed    code 3 after 0 s"
    assert table[1] == "unimix_bayias-20-1  finished  0 s, 3 starts"
    assert captured.err == "error: 1 of 3 runs failed\n"


def test_a_run_that_is_stopped_again_and_again_is_given_up_for_now(root, capsys):
    (root / "unimix_bayias-20-0").mkdir(parents=True)
    (root / "unimix_bayias-20-0" / "codes").write_text("75\n" * 9)
    assert sweep.main(arguments(root, "--restarts=2")) == 75
    assert len(starts(root)["unimix_bayias-20-0"]) == 3
    captured = capsys.readouterr()
    assert "stopped  0 s, 3 starts" in captured.out
    assert captured.err == "stopped: 1 of 1 runs stopped; the same command goes on\n"


def test_a_run_that_a_signal_ends_says_which(root, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "_training", lambda run: ["sh", "-c", "kill -9 $$"])
    assert sweep.main(arguments(root)) == 74
    assert "failed  ended by SIGKILL after 0 s" in capsys.readouterr().out


def finish(directory, run):
    """Write the records of a finished run, as training does."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(parse(["main", *run.arguments]).config.to_dict()))
    start = {"environment": {}, "version": "0", "commit": None}
    (directory / "run.json").write_text(json.dumps({"data": {}, "starts": [start], "state": "complete"}))


def test_a_finished_run_is_skipped_unless_it_is_one_of_another_config(root, capsys):
    first, second = sweep.parse(arguments(root, "--seed=0,1")).runs
    finish(root / first.name, first)
    finish(root / second.name, first)  # a seed that is not that of the directory's name
    assert sweep.main(arguments(root, "--seed=0,1")) == 0
    assert [*starts(root)] == [second.name]
    assert f"{first.name}  finished before\n" in capsys.readouterr().out
    record = json.loads((root / first.name / "run.json").read_text())
    (root / first.name / "run.json").write_text(json.dumps(record | {"state": "stopped"}))
    assert not sweep.parse(arguments(root, "--seed=0")).runs[0].finished


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_lets_the_run_save_and_the_sweep_end(tmp_path):
    """The sweep as a process of its own, whose run saves when it gets the signal."""
    training = (
        f"echo started >{tmp_path}/started; trap 'kill $!; echo saved >{tmp_path}/saved; exit 75' TERM; sleep 9 & wait"
    )
    program = (
        "import sys\nfrom launch import sweep\n"
        f"sweep._training = lambda run: ['sh', '-c', {training!r}]\nsys.exit(sweep.main(sys.argv))"
    )
    command = [sys.executable, "-c", program, *arguments(tmp_path / "root", "--seed=0,1,2")[1:]]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.05)  # until the shell has set its trap
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (tmp_path / "saved").exists()
    assert process.returncode == 75
    assert [line.split()[1:3] for line in out.strip().splitlines()[-3:]] == [
        ["stopped", "0"], ["not", "started"], ["not", "started"],
    ]  # fmt: skip
    assert err == "stopped: 2 of 3 runs not started; the same command goes on\n"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that puts a program on PATH, which writes its arguments and leaves with a code."""

    def put(name, code=0):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" --- >>{tmp_path}/calls\nexit {code}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return path

    put.calls = lambda: [
        call.splitlines() for call in (tmp_path / "calls").read_text().split("---\n")[:-1]
    ] if (tmp_path / "calls").exists() else []  # fmt: skip
    return put


def test_slurm_gets_one_array_with_a_line_a_run(root, stand_in, capsys, monkeypatch):
    stand_in("sbatch")
    monkeypatch.chdir(ROOT)
    more = ("--seed=0,1,2", "--config.data.jitter=(0, 0,0)", "--on=slurm")
    command = ["sweep", "--config=configs/image_folder.py", "--config.data.dir=it's here", f"--workdir={root}", *more]
    runs = sweep.parse(command).runs
    finish(root / runs[1].name, runs[1])
    assert sweep.main([*command, "--", "--partition=gpu", "--time=4:00:00"]) == 0
    ((array, *options, script, runs_file),) = stand_in.calls()
    assert (array, options) == ("--array=0-1", ["--partition=gpu", "--time=4:00:00"])
    assert script == os.path.join("launch", "slurm.sh")
    lines = pathlib.Path(runs_file.removeprefix("--runs=")).read_text().splitlines()
    assert [tuple(shlex.split(line)) for line in lines] == [runs[0].arguments, runs[2].arguments]
    printed = capsys.readouterr().out
    assert f"{runs[0].name}  submitted\n" in printed
    assert f"{runs[1].name}  finished before\n" in printed
    # The script of the array reads the lines as they were meant.
    dry = subprocess.run(
        ["bash", script, runs_file, "--dry_run"],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shlex.split(dry.stdout.partition("unimix_jax.main")[2]) == [*runs[2].arguments]


def test_a_refusal_of_sbatch_is_a_failure(root, stand_in, capsys):
    stand_in("sbatch", code=1)
    assert sweep.main(arguments(root, "--on=slurm")) == 74
    captured = capsys.readouterr()
    assert "failed  sbatch: code 1" in captured.out
    assert captured.err == "error: 1 of 1 submissions failed\n"


def test_without_sbatch_one_sentence_says_so(root, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sweep.main(arguments(root, "--on=slurm")) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err


def test_print_shows_each_command_and_starts_nothing(root, stand_in, capsys):
    stand_in("sbatch")
    assert sweep.main(arguments(root, "--seed=0,1", "--print", "--config.loggers=tensorboard")) == 0
    lines = capsys.readouterr().out.splitlines()
    runs = sweep.parse(arguments(root, "--seed=0,1", "--config.loggers=tensorboard")).runs
    assert [shlex.split(line)[3:] for line in lines] == [[*run.arguments] for run in runs]
    assert lines[0].startswith("python -m unimix_jax.main --config=")
    assert sweep.main(arguments(root, "--print", "--on=slurm", "--", "--time=60")) == 0
    printed = capsys.readouterr().out
    assert "sbatch --array=0-0 --time=60 " in printed
    assert not root.exists()
    assert stand_in.calls() == []
    # It is a script: run, it submits the array.
    subprocess.run(["bash", "-e", "-c", printed], check=True)
    ((*_, runs_file),) = stand_in.calls()
    assert pathlib.Path(runs_file.removeprefix("--runs=")).read_text().startswith("--config=configs/digits_lt.py")


def test_help_needs_no_other_argument(capsys):
    assert sweep.main(["sweep", "--help"]) == 0
    assert "python -m launch.sweep --config=" in capsys.readouterr().out


def shown(module):
    """Return the commands of docs/launching.md that a module or a script of `launch` runs, with what they print."""
    text = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
    blocks = [block.partition("\n```")[0] for block in text.split("```console\n$ ")[1:]]
    commands = dict(block.split("\n", 1) for block in blocks)
    return {command: printed for command, printed in commands.items() if module in shlex.split(command)}


def test_the_document_shows_what_sweeps_print(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = shown("launch.sweep")
    assert len(commands) == 2
    for command, printed in commands.items():
        assert sweep.main(shlex.split(command)[2:]) == 0
        assert capsys.readouterr().out == f"{printed}\n"


@pytest.mark.skipif(os.name != "posix", reason="a script of bash")
def test_the_document_shows_what_the_script_of_slurm_prints(monkeypatch):
    ((command, printed),) = shown("launch/slurm.sh").items()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {"PYTHON": ""}
    result = subprocess.run(shlex.split(command), cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == f"{printed}\n"
