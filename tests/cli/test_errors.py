"""The boundary around every command: what a user can put right is one line and exit code 2, a bug is a traceback."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import SafetensorError
from tokenizers import Tokenizer

from spanbert_kernels.cli import main
from spanbert_kernels.cli.errors import INTERRUPTED, PIPE_CLOSED
from spanbert_kernels.ops.backends import BackendUnavailable

COMMANDS = sorted(main.commands)


def raised_by(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def endless() -> None:
    endless()


# What it is, and what the line says.
USERS = [
    (BackendUnavailable("backend 'cuda' cannot run span_pool: no GPU"), "Error: backend 'cuda' cannot run span_pool"),
    (SafetensorError("invalid header"), "Error: a .safetensors file is damaged (invalid header): copy it again"),
    (raised_by(lambda: Tokenizer.from_str("{")), "Error: "),
    (csv.Error("field larger than field limit (131072)"), "Error: a table cannot be read: field larger than"),
    (raised_by(lambda: json.loads("{")), "Error: Expecting property name"),
    (raised_by(lambda: json.loads("[" * 10**5)), "Error: a file is nested too deeply to be read"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "Error: 'utf-8' codec can't decode byte 0xff"),
    (EOFError("Ran out of input"), "Error: a file ends too early (Ran out of input)"),
    (zipfile.BadZipFile("File is not a zip file"), "Error: a file is damaged (File is not a zip file)"),
    (pickle.UnpicklingError("invalid load key"), "Error: a file is damaged (invalid load key)"),
    (MemoryError(), "Error: there is not enough memory: give a smaller batch"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "Error: there is not enough memory (CUDA out of memory."),
    (raised_by(lambda: torch.empty(2**60)), "Error: there is not enough memory ("),
    (ModuleNotFoundError("No module named 'scorch'", name="scorch"), "Error: this needs scorch: pip install"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), "Error: a.txt: no such file or directory"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", b"a"), "Error: a: is a directory, a file is wanted"),
    (OSError(errno.ENOSPC, "No space left on device", "m"), "Error: m: no space left on device: free some space"),
    (OSError("We couldn't connect\nto the hub"), "Error: We couldn't connect"),
    (ValueError("a.conll, line 3: what\x1b[2J is that"), "Error: a.conll, line 3: what\\x1b[2J is that"),
    (ValueError("x" * 10**6), "Error: xxx"),
    (click.UsageError("no such option"), "Error: no such option"),
]
BUGS = [
    KeyError("input_ids"),
    TypeError("f() takes 0 positional arguments"),
    AttributeError("'NoneType' object has no attribute 'x'"),
    AssertionError(),
    ZeroDivisionError("division by zero"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    IndexError("index out of range"),
    raised_by(endless),
    ImportError("cannot import name 'x' from 'spanbert_kernels'", name="spanbert_kernels"),
    ModuleNotFoundError("No module named 'spanbert_kernels.x'", name="spanbert_kernels.x"),
]


def run_with(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> Result:
    """A command of the name that raises the error, whatever it is given."""

    def fail(**values: Any) -> None:
        raise error

    monkeypatch.setattr(main.commands[name], "callback", fail)
    monkeypatch.setattr(main.commands[name], "params", [])
    return CliRunner().invoke(main, [name])


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_user_can_put_right_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for error, line in USERS:
        result = run_with(monkeypatch, name, error)
        assert (result.exit_code, result.stdout) == (2, ""), error
        *usage, last = result.stderr.splitlines()
        assert last.startswith(line), error
        assert usage == [] or isinstance(error, click.UsageError), error
        assert last.isprintable()
        assert len(last) < 1100


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bug_passes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for error in BUGS:
        result = run_with(monkeypatch, name, error)
        assert result.exception is error
        assert result.exit_code == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_interrupts_and_closed_pipes_have_the_exit_codes_of_shells(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    interrupted = run_with(monkeypatch, name, KeyboardInterrupt())
    assert (interrupted.exit_code, interrupted.output) == (INTERRUPTED, "\nAborted!\n")
    closed = run_with(monkeypatch, name, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (closed.exit_code, closed.output) == (PIPE_CLOSED, "")


# Programs of a command more, which prints with click's echo, with rich, or without a flush.
PROGRAM = """
import sys
from spanbert_kernels.cli import main
from spanbert_kernels.cli.terminal import Console, say
@main.command()
def speak():
    {body}
main(["speak"])
"""
BODIES = {
    "say": "say('x' * 99 + '\\n' * 9999)",
    "rich": "Console().print('x\\n' * 9999)",
    "write": "sys.stdout.write('x')",
    "bug": "1 / 0",
}


def speak(body: str, stdout: Any) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = children.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=buffered)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["say", "rich", "write"])
def test_a_closed_pipe_is_quiet(name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        assert speak(BODIES[name], pipe) == (PIPE_CLOSED, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", ["say", "rich", "write"])
def test_a_full_disk_behind_standard_output_is_a_line(name: str) -> None:
    with Path("/dev/full").open("wb") as full:
        code, error = speak(BODIES[name], full)
    assert (code, error) == (
        2,
        "Error: standard output: no space left on device: free some space, or write elsewhere\n",
    )


def test_a_bug_has_a_traceback_and_exit_code_1() -> None:
    code, error = speak(BODIES["bug"], subprocess.DEVNULL)
    assert code == 1
    assert re.search(r"^Traceback .*^ZeroDivisionError: division by zero$", error, re.MULTILINE | re.DOTALL)
