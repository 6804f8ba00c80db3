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
@pytest.mark.parametrize("trained", [False, True])
def test_quickstart(trained: bool, tmp_path: Path) -> None:
    """From random weights, and from the trained encoder where there is one."""
    data = Path(os.environ.get("SPANBERT_KERNELS_DATA", "none"))
    if trained and not (data.parent / "models" / "minilm").is_dir():
        pytest.skip("needs SPANBERT_KERNELS_DATA, with the models beside it")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # what is this small waits for threads where others work, too
    if not trained:
        alone.pop("SPANBERT_KERNELS_DATA", None)
    command = [sys.executable, "-c", code]
    done = children.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert ("begins with minilm" if trained else "begins with random weights") in done.stdout
    score, baseline = map(float, re.search(r"F1 (\S+), a word's commonest label (\S+)", done.stdout).groups())  # type: ignore[union-attr]
    assert score > max(baseline + 0.1, 0.2 if trained else 0.9)
    assert "'packed-training': 80" in done.stdout
    equal, count = map(int, re.search(r"labels equal: (\d+) of (\d+)", done.stdout).groups())  # type: ignore[union-attr]
    assert equal >= 0.95 * count
    assert '"entities": [{"start": ' in done.stdout
    assert len(re.findall(r"^.+ \(.+, [01]\.\d\d\) <- ", done.stdout, re.M)) == 3
