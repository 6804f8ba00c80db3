"""The notebook runs from top to bottom in a process of its own, and shows what it says."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import children
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # what is this small waits for threads where others work, too
    command = [sys.executable, "-c", code]
    done = children.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"with the other document: (\S+)", done.stdout)[1]) > 0.95  # type: ignore[index]
    assert float(re.search(r"without: (\S+)", done.stdout)[1]) < 0.6  # type: ignore[index]
    assert "'packed-training': 300" in done.stdout
    assert "<- " in done.stdout
