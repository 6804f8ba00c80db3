"""Ray Data runs what this machine does alone, and begins a worker anew that dies."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from spanbert_kernels.scale import DocumentEncoder, Wanted, encode
from spanbert_kernels.scale.corpus import CorpusProgress

ray = pytest.importorskip("ray", reason="`make test-scale` installs it")
psutil = pytest.importorskip("psutil", reason="finds the workers")
pytestmark = pytest.mark.slow


def test_a_worker_that_is_killed_is_begun_anew(model: str, lines: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    killed: list[int] = []

    def kill_one(progress: CorpusProgress) -> None:
        workers = [each for each in psutil.Process().children(recursive=True) if "MapWorker" in each.name()]
        workers = workers or [
            each for each in psutil.Process().children(recursive=True) if "RayWorker" in " ".join(each.cmdline())
        ]
        if not killed and workers:
            killed.append(workers[0].pid)
            workers[0].send_signal(signal.SIGKILL)

    out = tmp_path / "out"
    options = {"engine": "ray", "workers": 2, "batch_tokens": 64, "shard_documents": 8, "tokenizers": 0}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = encode(lines, model, out, Wanted(), hear=kill_one, **options)
    finally:
        ray.shutdown()
    assert len(killed) == 1
    assert found.manifest["documents"] == 60
    table = parquet.read_table(sorted(out.glob("part-*.parquet"))).to_pydict()
    assert table["line"] == list(range(1, 61))
    expected = DocumentEncoder(model)({"text": lines.read_text().splitlines()})["vector"]
    np.testing.assert_allclose(np.array(table["vector"]), expected, atol=2e-6)
