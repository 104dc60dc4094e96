"""What is said when a command fails: one line; a defect of ours keeps its traceback."""

import errno
import sys

import pytest
import torch

from versatileffn.cli import main as cli
from versatileffn.cli.failures import DEBUG, explain
from versatileffn.errors import ConfigError


def raised(error):
    """The error as a command raises it, with a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


def digits():
    try:
        int("9" * 5000)
    except ValueError as error:
        return error


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line with a command that fails; its exit code and last words."""

    def start(error, *arguments):
        def fail():
            raise error

        app = cli.typer.Typer(pretty_exceptions_enable=False)
        app.callback()(cli.every_command)
        app.command("fail")(fail)
        monkeypatch.setattr(cli, "app", app)
        monkeypatch.setattr(sys, "argv", ["versatileffn", *arguments, "fail"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    monkeypatch.setenv(DEBUG, "")
    return start


@pytest.mark.parametrize(
    ("error", "beginning"),
    [
        (ConfigError("tau=0 must be positive"), "error: tau=0 must be positive"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/x"), "error: /data/x: No su"),
        (OSError(errno.ELOOP, "Too many levels", b"/data/x"), "error: /data/x: Too many"),
        (OSError(errno.EMFILE, "no"), "internal error: OSError: no (at main.py:"),
        (
            OSError(errno.ENOMEM, "no", "x"),
            "error: out of memory ([Errno 12] no: 'x'):",
        ),
        (OSError(errno.EIO, "bad", "x"), "error: x: Input/output error: see to the disk and run"),
        (OSError(errno.ENOSPC, "no"), "error: the disk is full: free some space and run the"),
        (Exception("Input/output error (os error 5)"), "error: Input/output error: see to the d"),
        (ConnectionRefusedError("refused"), "internal error: ConnectionRefusedError: refused (at"),
        (
            PermissionError(errno.EACCES, "denied", "/proc/1/mem"),
            "internal error: PermissionError: /proc/1/mem: denied (at",
        ),
        (
            FileNotFoundError(errno.ENOENT, "gone", torch.__file__),
            f"internal error: FileNotFoundError: {torch.__file__}: gone (at",
        ),
        (MemoryError(), "error: out of memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory (CUDA out of"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "error: out of memory (DefaultCPUAllocator",
        ),
        (RecursionError("maximum recursion depth"), "error: something that was read is nested"),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "no"), "error: 'a\\udcff' isn't UTF-8"),
        (digits(), "error: a number with thousands of digits was read"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_one_line(run, error, beginning):
    code, shown = run(error)
    assert code == 1
    assert shown.startswith(beginning)
    assert len(shown.splitlines()) == 1


def test_a_real_allocation_that_fails():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**55, dtype=torch.float64)
    assert "out of memory" in (explain(failed.value) or "")


@pytest.mark.parametrize("error", [ValueError("a defect"), RuntimeError("a defect"), KeyError("k")])
def test_a_defect_keeps_its_traceback(error):
    assert explain(raised(error)) is None


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_debug_shows_the_whole_story(run, monkeypatch, way):
    def cause():
        try:
            raise KeyError("the cause")
        except KeyError:
            raise ConfigError("the line") from None

    try:
        cause()
    except ConfigError as error:
        line = error
    if way == "environment":
        monkeypatch.setenv(DEBUG, "1")
    code, shown = run(line, *(["--debug"] if way == "flag" else []))
    assert code == 1
    assert "Traceback" in shown
    assert "the cause" in shown
    assert shown.endswith("error: the line\n")
