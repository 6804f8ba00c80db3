"""A source checkout: commands that need its folder `benchmarks`, which is no part of the package, and its records."""

from __future__ import annotations

import datetime
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import spanbert_kernels
from spanbert_kernels.cli.errors import UserError

BENCHMARKS = Path(spanbert_kernels.__file__).parent.parent / "benchmarks"
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
UNKNOWN = "unknown"
COMMANDS = {"bench": "records.command", "report": "records.report"}  # by their modules there


def commands(folder: Path = BENCHMARKS) -> Iterator[click.Command]:
    """Those in the checkout's folder; where there is none, commands of the same names that say what to do."""
    found = (folder / "records").is_dir()
    if found and str(folder) not in sys.path:
        sys.path.append(str(folder))
    for name, module in COMMANDS.items():
        yield getattr(importlib.import_module(module), name) if found else _absent(name)


def commit(*code: str, root: Path = ROOT) -> str:
    """The last commit that changed these paths of a checkout; with "+" where files of it differ from that."""
    try:
        words = [["log", "-1", "--format=%H", "--", *code], ["status", "--porcelain", "--", *code]]
        found, changed = (
            subprocess.run(["git", "-C", str(root), *each], check=True, capture_output=True, text=True).stdout.strip()
            for each in words
        )
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return f"{found}{'+' if changed else ''}" if found else UNKNOWN


def record_of_today(what: str) -> Path:
    """Where a record of a CPU that begins today goes.

    Example:
        >>> record_of_today("tasks").name[10:21]
        '-tasks-cpu-'
    """
    from spanbert_kernels.cli import environment  # which an extra's psutil is for

    levels = environment.machine()["vector instructions"].lower().replace("-", "").replace(" ", "")
    return RESULTS / f"{datetime.date.today().isoformat()}-{what}-cpu-{levels}.json"


def _absent(name: str) -> click.Command:
    @click.command(name, context_settings={"ignore_unknown_options": True}, add_help_option=False)
    @click.argument("anything", nargs=-1, type=click.UNPROCESSED)
    def absent(anything: tuple[str, ...]) -> None:
        """Only in a source checkout."""
        raise UserError(
            f"{name} is a command of the source repository, whose folder benchmarks it needs: clone the repository and "
            "install it from there with pip install -e '.[bench]'"
        )

    return absent
