"""Commands with a time limit: their process group ends whole, and what they printed is kept, however they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TELLING = re.compile(r"\d+ (passed|failed|ran)|ERROR SUMMARY|RACECHECK SUMMARY")
TAIL = 60


@dataclass(frozen=True)
class Step:
    """A command; one that fails with `else_` behind it is made good by that."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    else_: Step | None = None


def run(step: Step, limit: float, keep: Callable[[dict[str, Any]], None]) -> bool:
    """Runs a step for at most `limit` seconds and hands on what came of it, also where this process is told to end.

    Returns:
        Whether it passed.
    """
    start, status = time.monotonic(), "cut off"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **step.environment}
    with tempfile.TemporaryFile() as printed:
        process = None
        try:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = _status(process.wait(max(limit, 0)))
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        except OSError as error:
            status = "failed"
            printed.write(str(error).encode())
        finally:
            if process is not None:
                # The leader may be gone and its workers not: they would keep the GPU during the next step.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            printed.seek(0)
            keep(line_of(step, status, time.monotonic() - start, printed.read().decode(errors="replace")))
    return status == "passed"


def _status(code: int) -> str:
    if code == 0:
        return "passed"
    return f"failed with status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def line_of(step: Step, status: str, seconds: float, output: str) -> dict[str, Any]:
    lines = output.splitlines()
    found = [line.strip("= ") for line in lines if TELLING.search(line)]
    return {
        "step": step.name,
        "status": status,
        "seconds": round(seconds, 1),
        "summary": " ".join(found[-2:]) or (lines[-1] if lines else ""),
        "command": " ".join(step.command),
        "tail": lines[-TAIL:],
    }
