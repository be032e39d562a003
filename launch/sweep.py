"""Methods x imbalances x seeds: local runs one after the other, or submissions through the other launchers."""

import contextlib
import hashlib
import itertools
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from unimix_jax import cli, config, errors, storage
from unimix_jax.errors import UserError

_USAGE = """\
Train every combination of methods, imbalances, seeds and values of fields.

  python -m launch.sweep --config=configs/digits_lt.py --method=erm,unimix_bayias --imbalance=10,100 --seed=0,1,2 \\
    --workdir=ROOT [--on=local] [--config.FIELD=VALUE,...] [-- OPTION ...]

  --config=FILE[:NAME=VALUE,...]  as for python -m unimix_jax.main
  --method=NAME,...               methods; the config must be a Python file
  --imbalance=NUMBER,...          values of config.data.imbalance
  --seed=NUMBER,...               values of config.seed
  --config.FIELD=VALUE,...        a value for all runs, or several; a value that has commas itself stands in brackets or
                                  quotes: --config.data.jitter="(.1,.1,0),(.4,.4,.4)", --config.data.dir="'a,b'"
  --workdir=ROOT                  run directories are ROOT/METHOD-IMBALANCE-SEED[-FIELD_VALUE ...]
  --on=local                      one run after the other on this machine; a finished one is skipped, one that was
                                  stopped goes on, one that fails does not stop the others
       slurm                      an array of launch/slurm.sh; options of sbatch stand behind --
  --restarts=20                   how often a local run that leaves with code 75 is started again
  --print                         print the commands, start nothing
  --help                          this text

Exit codes: 0 all runs are finished, or submitted; 2 a mistake, nothing was started; 74 a run or a submission failed;
75 stopped by a signal, or a run was stopped too often: the same command goes on.
"""
_PLACES = ("local", "slurm")
_VALUED = ("config", "method", "imbalance", "seed", "workdir", "on", "restarts")
_TRAINING = "unimix_jax.main"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


class Run(NamedTuple):
    """One run of a sweep."""

    name: str  # of its directory
    arguments: tuple[str, ...]  # of unimix_jax.main
    finished: bool  # before the sweep


class Sweep(NamedTuple):
    """A parsed command line."""

    runs: tuple[Run, ...]
    root: str
    place: str  # of _PLACES
    restarts: int
    print_only: bool
    options: tuple[str, ...]  # of the launcher


class Outcome(NamedTuple):
    """What became of a run."""

    state: str  # finished, finished before, submitted, failed, stopped, not started
    about: str = ""  # why, or how long it took


def main(argv: list[str] | None = None) -> int:
    """Run a command line.

    Args:
      argv: program name and arguments; None for those of the process.

    Returns:
      The exit code (see `errors`).
    """
    return cli.run_command(lambda: _execute(sys.argv if argv is None else argv))


def _execute(argv: list[str]) -> str:
    """Carry out a command line.

    Returns:
      The text to print.

    Raises:
      UserError: a mistake; nothing was started.
      Failure: a run or a submission failed.
      Interrupted: not all runs are finished, and the same command goes on.
    """
    sweep = parse(argv)
    if isinstance(sweep, str):
        return sweep
    if sweep.print_only:
        return "\n".join(_commands(sweep))
    outcomes = {"local": _run_all, "slurm": _submit_array}[sweep.place](sweep)
    cli.echo(f"\n{table(outcomes)}")
    states = [outcome.state for outcome in outcomes.values()]
    number = f"of {len(states)} {'submissions' if sweep.place != 'local' else 'runs'}"
    if "not started" in states:
        raise errors.Interrupted(f"{states.count('not started')} {number} not started; the same command goes on")
    if "failed" in states:
        raise errors.Failure(f"{states.count('failed')} {number} failed")
    if "stopped" in states:
        raise errors.Interrupted(f"{states.count('stopped')} {number} stopped; the same command goes on")
    return f"{len(states)} runs under {sweep.root}"


def table(outcomes: dict[str, Outcome]) -> str:
    """Return the states of runs as aligned lines.

    Args:
      outcomes: by the name of a run.

    Returns:
      A line a run.
    """
    names, states = (max(map(len, column)) for column in (outcomes, [o.state for o in outcomes.values()]))
    return "\n".join(f"{name:<{names}}  {o.state:<{states}}  {o.about}".rstrip() for name, o in outcomes.items())


def parse(argv: list[str]) -> Sweep | str:
    """Parse a command line, and check the command line of every run.

    Args:
      argv: the program's name and its arguments.

    Returns:
      The sweep; a text if the command line asks for one.

    Raises:
      UserError: one sentence for anything that is wrong with it, or with a run.
    """
    own, options = list(argv[1:]), ()
    if "--" in own:
        options = tuple(own[own.index("--") + 1 :])
        own = own[: own.index("--")]
    if cli.asks_for_help(["", *own]):
        return _USAGE.rstrip()
    values, fields, print_only = {}, {}, False
    for argument in own:
        name, equals, text = argument.removeprefix("--").partition("=")
        if argument == "--print":
            print_only = True
        elif not argument.startswith("--") or not equals:
            raise UserError(f"unexpected argument {argument!r}; options are written --NAME=VALUE, see --help")
        elif name in values or name in fields:
            raise UserError(f"--{name} is given twice; write its values behind each other, as in --{name}=A,B")
        elif name in _VALUED:
            values[name] = text
        elif name.startswith("config."):
            fields[name.removeprefix("config.")] = text
        else:
            known = errors.did_you_mean(name, (*_VALUED, "print"))
            raise UserError(f"unknown option --{name}{known}; see --help, and options of a launcher stand behind --")
    for name in ("config", "workdir"):
        if not values.get(name):
            raise UserError(f"--{name} is missing; see --help")
    place = errors.one_of("place of --on", values.get("on", "local"), _PLACES)
    if place == "local" and options:
        raise UserError(f"{options[0]!r} stands behind --, where the options of a launcher are; local runs have none")
    restarts = values.get("restarts", "20")
    if not restarts.isdecimal():
        raise UserError(f"--restarts is {restarts!r}; it must be a whole number")
    return Sweep(_runs(values, fields), values["workdir"], place, int(restarts), print_only, options)


def split(text: str) -> list[str]:
    """Split a list of values at its commas, but not inside of brackets or quotes.

    Args:
      text: such as "0,1,2", or "(.1,.1,0),(.4,.4,.4)" for two values; quotes around a value are taken off.

    Returns:
      The values.

    Raises:
      UserError: a value is empty, or a bracket or quote is not closed.

    Example:
      >>> split("a,(b,c),'d,e'")
      ['a', '(b,c)', 'd,e']
    """
    values, closing, quote = [""], [], ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
            if not quote and not closing:
                continue
        elif character in "'\"" and (closing or not values[-1]):  # an apostrophe inside of a word is none
            quote = character
            if not closing:
                continue
        elif closing and character == closing[-1]:
            closing.pop()
        elif character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif character == "," and not closing:
            values.append("")
            continue
        values[-1] += character
    if quote or closing:
        raise UserError(f"{text!r} has no {quote or closing[-1]} at its end")
    if len(values) > 1 and "" in values:
        raise UserError(f"{text!r} has an empty value between its commas")
    return values


def _runs(values: dict[str, str], fields: dict[str, str]) -> tuple[Run, ...]:
    """Return the runs of a sweep: each combination of values, the first option's changing slowest."""
    own = {"method": "method", "imbalance": "data.imbalance", "seed": "seed"}
    for option, field in own.items():
        if option in values and field in fields:
            raise UserError(f"--{option} and --config.{field} are the same; keep one of them")
    lists = {option: split(values[option]) for option in own if option in values}
    lists |= {f"config.{field}": split(text) for field, text in fields.items()}
    for option, each in lists.items():
        if len(set(each)) < len(each):
            raise UserError(f"--{option} has a value twice; a run is needed once")
    runs = [
        _run(values["config"], values["workdir"], dict(zip(lists, combination, strict=True)), lists)
        for combination in itertools.product(*lists.values())
    ]
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two runs would have the directory {twice}; values of other fields must differ by more")
    return tuple(runs)


def _run(config_text: str, root: str, chosen: dict[str, str], lists: dict[str, list[str]]) -> Run:
    """Return the run of one combination, whose command line is checked as training checks it."""
    chosen = dict(chosen)
    if method := chosen.pop("method", None):
        file, _, text = config_text.partition(":")
        if re.search(r"(^|,)method=", text):
            raise UserError(f"--config={config_text} names a method, and so does --method; keep one of them")
        config_text = f"{file}:{text}{',' if text else ''}method={method}"
    short = {"imbalance": "config.data.imbalance", "seed": "config.seed"}
    arguments = [f"--config={config_text}", *(f"--{short.get(name, name)}={text}" for name, text in chosen.items())]
    command = config.parse(["main", *arguments])
    fields = command.config
    name = f"{fields.method.name}-{fields.data.get('imbalance', 1.0):g}-{fields.seed}"
    for option, text in chosen.items():
        if option not in short and option not in short.values() and len(lists[option]) > 1:
            name += f"-{_short_field(option, lists)}_{text}"
    name = _file_name(name)
    workdir = f"{root.rstrip('/')}/{name}"
    arguments.append(f"--workdir={workdir}")
    if any("\n" in argument for argument in arguments):
        raise UserError("a value has a line break, which a list of runs cannot hold")
    return Run(name, tuple(arguments), _is_finished(workdir, fields))


def _short_field(option: str, lists: dict[str, list[str]]) -> str:
    """Return the last part of a field's name, or all of it where two lists have the same last part."""
    last = option.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in lists) == 1 else option.removeprefix("config.")


def _file_name(name: str) -> str:
    """Return a name of letters, digits and `_.+-`; with a digest at its end where characters were changed."""
    changed = re.sub(r"[^\w.+-]+", "_", name, flags=re.ASCII).strip("_")[:150]
    return changed if changed == name else f"{changed}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _is_finished(workdir: str, fields) -> bool:
    """Return whether a directory holds the finished run of a config."""
    from unimix_jax.config import compare
    from unimix_jax.training import rundir

    directory = pathlib.Path(workdir)
    if not (directory / rundir.RUN).exists():
        return False
    state = (rundir.read_manifest(directory / rundir.RUN) or {}).get("state")
    earlier = storage.read_json(directory / rundir.CONFIG)
    # Of another config is no run of this sweep: training refuses it in its sentence.
    return state == "complete" and earlier is not None and not compare.differing_keys(earlier, fields.to_dict())[0]


def _training(run: Run) -> list[str]:
    return [sys.executable, "-m", _TRAINING, *run.arguments]


def _run_all(sweep: Sweep) -> dict[str, Outcome]:
    """Train one run after the other; return what became of each."""
    outcomes = {}
    with _passing_signals_on() as signals:
        for number, run in enumerate(sweep.runs, start=1):
            if run.finished:
                outcomes[run.name] = Outcome("finished before")
                continue
            if signals.received:
                outcomes[run.name] = Outcome("not started")
                continue
            cli.echo(f"\n[{number} of {len(sweep.runs)}] {run.name}")
            outcomes[run.name] = _train(run, sweep.restarts, signals)
    return outcomes


def _train(run: Run, restarts: int, signals: "_Signals") -> Outcome:
    """Start a run, and again each time it leaves with the code of one that is saved."""
    begun = time.monotonic()
    for start in range(restarts + 1):
        code = signals.run(_training(run))
        if code != errors.INTERRUPTED or signals.received:
            break
        if start < restarts:
            cli.echo(f"{run.name} was stopped after a save; it is started again")
    took = f"{time.monotonic() - begun:.0f} s" + (f", {start + 1} starts" if start else "")
    if code == errors.COMPLETE:
        return Outcome("finished", took)
    if code == errors.INTERRUPTED:
        return Outcome("stopped", took)
    if code < 0:
        return Outcome("failed", f"ended by {signal.Signals(-code).name} after {took}")
    return Outcome("failed", f"code {code} after {took}")


class _Signals:
    """Hands each signal that asks for a stop to the run at hand: the first one lets it save, the second ends it."""

    def __init__(self):
        self.received = 0
        self._child = None

    def run(self, command: list[str]) -> int:
        """Run a command to its end; return its exit code, or minus the number of the signal that ended it."""
        # In a group of its own: a terminal sends its signals to a whole group, and a run takes two as "leave at once".
        with subprocess.Popen(command, process_group=0 if os.name == "posix" else None) as self._child:
            if self.received:  # while the process was being made
                self._child.send_signal(self.received)
            code = self._child.wait()
        self._child = None
        return code

    def handle(self, number: int, _) -> None:
        self.received = number
        if self._child is not None:
            self._child.send_signal(number)


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[_Signals]:
    """Hand signals to the run at hand; one that was ignored at the start stays so, as under `nohup`."""
    signals = _Signals()
    before = {number: signal.getsignal(number) for number in cli.STOP_SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _array(sweep: Sweep) -> tuple[pathlib.Path, str, list[str]]:
    """Return the list file of an array of Slurm, its content, and the command that submits it."""
    text = "".join(f"{shlex.join(run.arguments)}\n" for run in sweep.runs if not run.finished)
    # Tasks read their lines when they start: another sweep into the same folder must not change them.
    path = pathlib.Path(sweep.root, f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}.txt")
    script = os.path.relpath(pathlib.Path(__file__).with_name("slurm.sh"))
    array = f"--array=0-{text.count(chr(10)) - 1}"
    return path, text, ["sbatch", array, *sweep.options, script, f"--runs={path}"]


def _submit_array(sweep: Sweep) -> dict[str, Outcome]:
    """Submit the runs that are not finished as one array of Slurm."""
    outcomes = {run.name: Outcome("finished before") for run in sweep.runs}
    waiting = [run.name for run in sweep.runs if not run.finished]
    if waiting:
        path, text, command = _array(sweep)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_whole(path, text)
        try:
            code = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            raise UserError("there is no sbatch on this machine; --on=slurm is for a login node of Slurm") from None
        for name in waiting:
            outcomes[name] = Outcome("failed", f"sbatch: code {code}") if code else Outcome("submitted")
    return outcomes


def _commands(sweep: Sweep) -> Iterator[str]:
    """Yield the lines of a shell script that does what the sweep would do."""
    yield from (f"# finished: {run.name}" for run in sweep.runs if run.finished)
    waiting = [run for run in sweep.runs if not run.finished]
    if sweep.place == "slurm" and waiting:
        path, text, command = _array(sweep)
        yield f"mkdir -p {shlex.quote(str(path.parent))}"
        yield f"cat >{shlex.quote(str(path))} <<'END'\n{text}END"
        yield shlex.join(command)
        return
    yield from (shlex.join(["python", "-m", _TRAINING, *run.arguments]) for run in waiting)


if __name__ == "__main__":
    sys.exit(main())
