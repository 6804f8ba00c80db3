"""The one boundary between what goes wrong and what a user sees: every command runs inside of it.

What a user can put right, a wrong value, a damaged file, a full disk, too little memory, is a line and exit code 2; a
bug is a traceback and exit code 1; an interrupt is 130 and a closed pipe 141, as shells have it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import click

import spanbert_kernels
from spanbert_kernels import extras
from spanbert_kernels.cli import formatting, terminal

INTERRUPTED = 130
PIPE_CLOSED = 141
PACKAGE = str(Path(spanbert_kernels.__file__).parent)

# What libraries raise where a file or the machine is at fault, by name: naming the class would load the library.
_BY_NAME = {
    "spanbert_kernels.ops.backends.BackendUnavailable": "{error}",
    "spanbert_kernels.data.faults.NotText": "{error}: plain text in UTF-8 is wanted; of Windows' Western text "
    "`iconv -f CP1252 -t UTF-8 OLD > NEW` makes it",
    "builtins.ValueError": "{error}",
    "builtins.OSError": "{error}",
    "builtins.EOFError": "a file ends too early ({error}): copy it again",
    "_csv.Error": "a table cannot be read: {error}",
    "zipfile.BadZipFile": "a file is damaged ({error}): copy it again",
    "zlib.error": "a file is damaged ({error}): copy it again",
    "_pickle.UnpicklingError": "a file is damaged ({error}): copy it again",
    "safetensors_rust.SafetensorError": "a .safetensors file is damaged ({error}): copy it again",
    "safetensors._safetensors_rust.SafetensorError": "a .safetensors file is damaged ({error}): copy it again",
    "httpx.HTTPError": "{error}",
    "httpx2.HTTPError": "{error}",
    "builtins.MemoryError": "there is not enough memory: give a smaller batch, shorter documents or fewer of them",
    "torch.OutOfMemoryError": "there is not enough memory ({error}): give a smaller batch or shorter documents",
}
_MEMORY = ("not enough memory", "can't allocate memory", "CUDA out of memory", "std::bad_alloc")
_WHAT_TO_DO = {
    errno.ENOSPC: ": free some space, or write elsewhere",
    errno.EDQUOT: ": free some space, or write elsewhere",
    errno.EISDIR: ", a file is wanted",
}


class UserError(click.ClickException):
    """What a user can put right: one line, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(formatting.for_terminal(formatting.one_line(message)))


class Commands(click.Group):
    """The group of all commands: whatever is added to it runs inside the boundary."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Reads the command line up to the command's name."""
        with in_words():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Reads the rest and runs the command."""
        with in_words(), warnings_in_words():
            return super().invoke(ctx)

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Runs the command line; standing alone, it ends the process as `ending` says."""
        run: Callable[[], Any] = functools.partial(super().main, *args, standalone_mode=standalone_mode, **more)
        return ending(run) if standalone_mode else run()


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Makes of what a user can put right a `UserError`, of an interrupt and a closed pipe an exit; a bug passes."""
    try:
        yield
    except click.exceptions.Exit:
        raise
    except click.ClickException as error:
        vars(error)["message"] = formatting.for_terminal(error.message)
        raise
    except (KeyboardInterrupt, click.Abort):
        with contextlib.suppress(OSError):
            click.echo("\nAborted!", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise click.exceptions.Exit(PIPE_CLOSED) from None
    except Exception as error:
        message = what_a_user_can_do(error)
        if message is None:
            raise
        raise UserError(message) from error


def what_a_user_can_do(error: Exception) -> str | None:
    """The line about an error that a user can put right, None for a bug.

    Example:
        >>> what_a_user_can_do(FileNotFoundError(2, "No such file or directory", "a.txt"))
        'a.txt: no such file or directory'
        >>> what_a_user_can_do(KeyError("x")) is None
        True
    """
    if isinstance(error, OSError) and error.strerror is not None:
        name = error.filename
        where = f"{formatting.path(Path(os.fsdecode(name)))}: " if isinstance(name, (str, bytes, os.PathLike)) else ""
        return f"{where}{error.strerror.lower()}{_WHAT_TO_DO.get(error.errno or 0, '')}"
    if isinstance(error, ImportError):
        return _not_installed(error)
    if isinstance(error, RecursionError):
        nested = any("json" in Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__))
        return "a file is nested too deeply to be read" if nested else None
    line = str(error) if _is_own(type(error)) else first_line(error)
    for kind in type(error).__mro__:
        if (template := _BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
            return template.format(error=line)
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY):
        return _BY_NAME["torch.OutOfMemoryError"].format(error=line)
    return line if type(error) is Exception else None  # what Rust libraries raise, such as tokenizers


def _is_own(kind: type[BaseException]) -> bool:
    return kind.__module__.split(".")[0] == spanbert_kernels.__name__


def _not_installed(error: ImportError) -> str | None:
    package = (error.name or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", "spanbert_kernels"):
        return None
    return extras.advice(package, "tasks")


def first_line(error: Exception) -> str:
    """Of an error's text, or else its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """While it lasts, a warning that this package raises is its sentence; others keep file and line."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
            if issubclass(category, UserWarning) and (filename.startswith(PACKAGE) or _is_own(category)):
                terminal.warn(str(message))
            else:
                usual(message, category, filename, *rest, **more)

        warnings.showwarning = show
        yield


def ending(run: Callable[[], Any]) -> NoReturn:
    """Runs a whole command line and ends the process with its exit code, once its output is written."""
    code: Any = 0
    try:
        with in_words():
            run()
    except SystemExit as end:
        code = end.code
    except click.exceptions.Exit as end:
        code = end.exit_code
    except UserError as error:
        error.show()
        code = error.exit_code
    except Exception:
        _flushed(1)
        raise
    raise SystemExit(_flushed(code))


def _flushed(code: Any) -> Any:
    """The exit code after what is still buffered has been written, as far as it can be."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError as error:
            _to_nowhere(stream)
            if stream is sys.stderr or code:
                continue
            code = PIPE_CLOSED
            if not isinstance(error, BrokenPipeError):
                error.filename = terminal.STANDARD_OUTPUT
                UserError(str(what_a_user_can_do(error))).show()
                code = UserError.exit_code
    return code


def _to_nowhere(stream: IO[str]) -> None:
    """The interpreter flushes once more at its end, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
