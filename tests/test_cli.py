"""What a command says, whatever its standard streams are, and what of others it keeps to itself."""

import errno
import importlib
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from unimix_jax import cli, errors

ROOT = pathlib.Path(__file__).resolve().parents[1]

COMMAND = """
import contextlib, os, sys
from unimix_jax import cli
def work():
    with open(sys.argv[1], "w") as file:
        with contextlib.suppress(OSError):
            os.write(2, b"a library's message")
        cli.echo("first \\u00e9")
        cli.terminal().write("on the way\\n")
        cli.terminal().flush()
        file.write("done")
    return "last \\u00e9"
sys.exit(cli.run_command(work))
"""


def shell(code, *argv, redirected="", **environment):
    """Run Python code under a shell's redirections."""
    command = shlex.join([sys.executable, "-c", code, *map(str, argv)])
    return subprocess.run(
        ["sh", "-c", f"{command} {redirected}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirected", "code", "out"),
    [
        ("", 0, "first é\nlast é\n"),
        ("2>&-", 0, "first é\nlast é\n"),
        ("2>/dev/full", 0, "first é\nlast é\n"),
        ("<&-", 0, "first é\nlast é\n"),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        pytest.param(">/dev/full", 74, "", marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such")),
    ],
)
def test_the_exit_code_holds_for_any_state_of_the_streams(tmp_path, redirected, code, out):
    done = shell(COMMAND, tmp_path / "file", redirected=redirected, PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stdout) == (code, out)
    assert (tmp_path / "file").read_text() == "done"  # no message of a library in it, and the work was done
    assert "Traceback" not in done.stderr
    assert ("error: the work is done, but standard output cannot be written (No space" in done.stderr) == (code == 74)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\xe9"), ("latin-1", "é"), ("utf-8", "é")])
def test_what_standard_output_cannot_encode_is_escaped(tmp_path, encoding, shown):
    code = COMMAND.replace("last \\u00e9", "last \\u00e9 \\udcc3\\udca9 \\udcff")  # bytes of a path, good and bad
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0
    assert done.stdout.decode(encoding) == f"first {shown}\nlast {shown} {shown} \\xff\n"


def test_a_reader_that_has_gone_changes_nothing(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "file")]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "a library's messageon the way\n")


OTHERS = """
import contextlib, logging, os, sys, threading, warnings
from unimix_jax import cli, errors
def work():
    with cli.redirect_library_output(sys.argv[1]):
        with contextlib.suppress(OSError):
            os.write(2, b"native code\\n")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        logging.getLogger("library").error("a logger")
        warnings.warn("a warning")
        cli.terminal().write("ours\\n")
        if len(sys.argv) > 2:
            os._exit(9)
    raise errors.Failure("the sentence")
sys.exit(cli.run_command(work))
"""


def test_what_libraries_print_goes_to_the_log(tmp_path):
    done = shell(OTHERS, tmp_path / "log.txt")
    assert (done.returncode, done.stderr) == (74, "ours\nerror: the sentence\n")
    log = (tmp_path / "log.txt").read_text()
    for text in ("native code", "ZeroDivisionError", "a logger", "a warning"):
        assert text in log


FUTURES = """
import asyncio, sys
from unimix_jax import cli, errors
def library(deeper):
    future = asyncio.new_event_loop().create_future()
    future.set_exception(ValueError("theirs"))
    held = [future]
    held.append(held)  # only the collector of cycles frees it
    if deeper:
        library(deeper - 1)
    raise OSError(28, "no space")
def work():
    with cli.redirect_library_output(sys.argv[1]):
        try:
            library(1)
        except OSError as error:
            kept = error
            raise errors.Failure("the sentence") from None
sys.exit(cli.run_command(work))
"""


def test_a_future_that_an_exception_held_says_nothing_after_the_sentence(tmp_path):
    done = shell(FUTURES, tmp_path / "log.txt")
    assert (done.returncode, done.stderr) == (74, "error: the sentence\n")
    assert (tmp_path / "log.txt").read_text().count("Future exception was never retrieved") == 2


def test_what_was_said_is_there_when_the_process_is_killed(tmp_path):
    done = shell(OTHERS, tmp_path / "log.txt", "killed")
    assert (done.returncode, done.stderr) == (9, "ours\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_and_nowhere_where_the_log_is_full():
    done = shell(OTHERS, "/dev/full")
    assert (done.returncode, done.stderr) == (74, "ours\nerror: the sentence\n")


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        ("a cat, é, 猫", False, "a cat, é, 猫"),
        ("\x1b[2J\x07", False, "\\x1b[2J\\x07"),
        ("\x9b31m", False, "\\x9b31m"),
        ("one\ntwo\r", True, "one\ntwo\\r"),
        ("one\ntwo", False, "one\\ntwo"),
        ("a\u202eb\u2028", False, "a\\u202eb\\u2028"),
        ("\udcc3\udca9 \udcff \ud800", False, "\\udcc3\\udca9 \\udcff \\ud800"),
        ("\udcc3\udca9 \udcff", False, "é \\xff"),
    ],
)
def test_texts_of_others_are_harmless_to_a_terminal(text, lines, expected):
    assert errors.printable(text, lines) == expected


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 74), (errno.EIO, 74), (errno.EFBIG, 74), (errno.EROFS, 74), (errno.EACCES, 2), (errno.ENOENT, 2)],
)
def test_a_disk_that_fails_is_no_mistake(capsys, number, code):
    def work():
        raise OSError(number, "the reason", "the file")

    assert cli.run_command(work) == code
    assert capsys.readouterr().err == "error: the file: the reason\n"


def test_a_message_is_one_line(capsys):
    def work():
        raise errors.UserError("the folder \x1b]0;x\x07\nerror: forged")

    assert cli.run_command(work) == 2
    assert capsys.readouterr().err == "error: the folder \\x1b]0;x\\x07\\nerror: forged\n"


def test_an_installed_command_finds_modules_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here_alone.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    before = list(sys.path)
    importlib.invalidate_caches()
    assert cli.run_command(lambda: str(importlib.import_module("here_alone").answer)) == 0
    assert sys.path == before
    sys.modules.pop("here_alone")


def test_a_function_of_the_user_s_that_leaves_is_no_success(capsys):
    def leaves():
        sys.exit(0)

    assert cli.run_command(leaves) == 2
    assert "a function of yours ends the program: SystemExit: 0, in line" in capsys.readouterr().err
