"""Memory does not grow with the corpus: four times the documents take no more of it."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import children
import pytest

pytest.importorskip("pyarrow.parquet", reason="files of vectors are Parquet")
PROGRAM = Path(__file__).parent / "peak_memory.py"
WORDS = ("it", "rains", "in", "the", "harbour", "of", "paris", "we", "go", "home", "a", "storm")
MARGIN = 12 << 20  # bytes that the allocator may take more
# Documents of the smaller corpus, and their words; three times as many would take over 25 MB, if they were kept.
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "documents": (8_000, 5, {"rows": "documents", "workers": 1}),
    "spans": (1_000, 28, {"rows": "spans", "width": 10, "workers": 1}),
    "two workers": (8_000, 5, {"rows": "documents", "workers": 2}),
}


def encoded(folder: Path, model: str, documents: int, length: int, options: dict[str, Any]) -> dict[str, Any]:
    """What the program says of so many documents."""
    rng, lines = random.Random(0), folder / f"{documents}.txt"
    with lines.open("w") as stream:
        for _ in range(documents):
            stream.write(" ".join(rng.choices(WORDS, k=length)) + "\n")
    command = [sys.executable, PROGRAM, lines, model, folder / str(documents), json.dumps(options)]
    done = children.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["documents"] == documents
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are counted in kilobytes on Linux alone")
@pytest.mark.parametrize("case", CASES)
def test_four_times_the_documents_take_no_more_memory(case: str, model: str, tmp_path: Path) -> None:
    documents, length, options = CASES[case]
    small, large = (encoded(tmp_path, model, count, length, options) for count in (documents, 4 * documents))
    assert large["rows"] >= 3.9 * small["rows"]
    for peak, least in zip(large["peaks"], small["peaks"], strict=True):
        assert peak <= least + MARGIN, (small, large)
