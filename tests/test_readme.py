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
    rows = re.findall(r"^\| `(\w+)` \|.*?\|(.*?)\|(.*?)\|(.*?)\|$", README, re.MULTILINE)
    table = {name: {"eager": eager.strip(), "cpu": cpu.strip()} for name, eager, cpu, _ in rows}
    has = {name: {each: "yes" * (each in backends) for each in ("eager", "cpu")} for name, backends in registry()}
    assert table == has


def registry() -> list[tuple[str, tuple[str, ...]]]:
    return [(name, backends) for name, backends in ops.backends._registry.items() if hasattr(ops, name)]
