"""The README's examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from spanbert_kernels import ops

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(example: str) -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_table_of_operations_and_backends() -> None:
    """Each cell says yes, or who serves the call and, in a note, why."""
    columns = ("cuda", "triton", "cpu", "eager")
    rows = re.findall(r"^\| `(\w+)` \|.*?\|(.*?)\|(.*?)\|(.*?)\|(.*?)\|$", README, re.MULTILINE)
    table = {name: dict(zip(columns, (cell.strip() for cell in cells), strict=True)) for name, *cells in rows}
    assert set(table) == {name for name, _ in registry()}
    for name, backends in registry():
        for column, cell in table[name].items():
            if column in backends:
                assert cell == "yes", (name, column)
            else:
                server, note = re.fullmatch(r"`(\w+)` (\[\w\])", cell).groups()  # type: ignore[union-attr]
                assert server in backends, (name, column)
                assert f"{note} " in README.split("Where another backend is named")[1]


def test_speed_tables_are_those_of_the_newest_record() -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmarks" / "readme_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def registry() -> list[tuple[str, tuple[str, ...]]]:
    return [(name, backends) for name, backends in ops.backends._registry.items() if hasattr(ops, name)]
