"""Encodings that are killed and gone on with have every document once, with the same vectors."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import children
import numpy as np
import pytest

from spanbert_kernels.scale import DocumentEncoder

parquet = pytest.importorskip("pyarrow.parquet", reason="files of vectors are Parquet")
PROGRAM = Path(__file__).parent / "killed_encodings.py"


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "workers"), [(10, 1), (10, 2)])
def test_killed_at_any_moment(kills: int, workers: int, model: str, lines: Path, tmp_path: Path) -> None:
    """Half of them after some document, half before some change to a file, and each once more where it goes on."""
    paths = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, PROGRAM, lines, model, tmp_path, str(kills), str(workers)]
    done = children.run(command, capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == kills
    expected = DocumentEncoder(model)({"text": lines.read_text().splitlines()})["vector"]
    for outcome in outcomes:
        first, second, last = outcome["codes"]
        assert (first, second in (0, -signal.SIGKILL), last) == (-signal.SIGKILL, True, 0), (outcome, done.stderr)
        folder = Path(outcome["folder"])
        table = parquet.read_table(sorted(folder.glob("part-*.parquet"))).to_pydict()
        assert table["line"] == list(range(1, 61))
        np.testing.assert_allclose(np.array(table["vector"]), expected, atol=2e-6)
        assert {path.name for path in folder.iterdir()} == {
            *(f"part-00000-{number:05d}.parquet" for number in range(8)),
            "manifest.json",
        }
