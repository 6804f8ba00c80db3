"""Processes that tests start: with the signals of a fresh shell, and ended with the test, whatever becomes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Whoever starts the tests in the background has them ignore SIGINT, and what is ignored or blocked is inherited.
_WITH_DEFAULT_SIGNALS = """
import os, signal, sys
for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
    signal.signal(each, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execvp(sys.argv[1], sys.argv[1:])
"""
_SHIM = (sys.executable, "-I", "-S", "-c", _WITH_DEFAULT_SIGNALS)


@contextlib.contextmanager
def started(command: Sequence[str | os.PathLike[str]], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process, as `subprocess.Popen` gives it; at the end of the block it and all that it started are killed."""
    words = [*_SHIM, *map(os.fspath, command)]
    process = subprocess.Popen(words, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def run(
    command: Sequence[str | os.PathLike[str]], *, check: bool = False, capture_output: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """As `subprocess.run`, over `started`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, **options) as process:
        out, err = process.communicate()
        done = subprocess.CompletedProcess(list(command), process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def fork(run: Callable[[], object]) -> int:
    """Runs it in a fork of this process, which has run nothing yet; gives its number, for `ended` to wait for."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        except SystemExit as end:
            print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def ended(child: int) -> int:
    """How a fork ended: 0, or minus a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(run: Callable[[], object]) -> int:
    """Runs it in a fork, and gives how that ended."""
    return ended(fork(run))


def kill() -> None:
    """Ends this process as nobody can refuse."""
    os.kill(os.getpid(), signal.SIGKILL)
