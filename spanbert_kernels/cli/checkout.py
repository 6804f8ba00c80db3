"""Commands of a source checkout: what they need lies beside the package, in the folder `benchmarks`, and not in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import spanbert_kernels
from spanbert_kernels.cli.errors import UserError

BENCHMARKS = Path(spanbert_kernels.__file__).parent.parent / "benchmarks"
COMMANDS = {"bench": "records.command", "report": "records.report"}  # by their modules there


def commands(folder: Path = BENCHMARKS) -> Iterator[click.Command]:
    """Those in the checkout's folder; where there is none, commands of the same names that say what to do."""
    found = (folder / "records").is_dir()
    if found and str(folder) not in sys.path:
        sys.path.append(str(folder))
    for name, module in COMMANDS.items():
        yield getattr(importlib.import_module(module), name) if found else _absent(name)


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
