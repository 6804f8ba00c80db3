"""Encodings on Ray whose workers or driver are killed have every document once, with the same vectors."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import children
import numpy as np
import pytest

from spanbert_kernels.scale import DocumentEncoder

parquet = pytest.importorskip("pyarrow.parquet", reason="files of vectors are Parquet")
ray = pytest.importorskip("ray", reason="`make test-scale` installs it")
psutil = pytest.importorskip("psutil", reason="finds the workers")
pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parent / "encoding_on_ray.py"
FILES = 30  # of vectors: 60 documents, 2 a file


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray of two processors, which outlives the drivers that are killed."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def workers() -> list[Any]:
    """The processes of actors with a model; they descend from this one, which has started Ray."""
    return [each for each in psutil.Process().children(recursive=True) if "RayWorker" in " ".join(cmdline(each))]


def cmdline(process: Any) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return found


def encoded(command: list[Any], environment: dict[str, str], log: Path, kills: dict[int, str]) -> int:
    """Runs an encoding, kills a worker or the driver after so many files, and gives the driver's exit code."""
    with (
        log.open("ab") as errors,
        children.started(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as driver,
    ):
        for number, _ in enumerate(driver.stdout, start=1):
            victim = kills.pop(number, None)
            if victim == "driver":
                driver.kill()
            elif victim == "worker":
                found = workers()
                assert found, "no worker was found"
                random.Random(number).choice(found).send_signal(signal.SIGKILL)
        return driver.wait()


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_five_moments(seed: int, address: str, model: str, lines: Path, tmp_path: Path) -> None:
    """Twice a worker and then the driver, and a worker once more while the third run ends what they began."""
    rng = random.Random(seed)
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    folder, log = tmp_path / "vectors", tmp_path / "log"
    command = [sys.executable, PROGRAM, lines, model, folder]
    for last in (False, False, True):
        kills = {rng.randint(1, 3): "worker"} | ({} if last else {rng.randint(4, 6): "driver"})
        code = encoded(command, environment, log, kills)
        assert (code, kills) == (0 if last else -signal.SIGKILL, {}), log.read_text()[-3000:]
        assert len(list(folder.glob("part-*.parquet"))) < FILES or last
    table = parquet.read_table(sorted(folder.glob("part-*.parquet"))).to_pydict()
    assert table["line"] == list(range(1, 61))
    expected = DocumentEncoder(model)({"text": lines.read_text().splitlines()})["vector"]
    np.testing.assert_allclose(np.array(table["vector"]), expected, atol=2e-6)
    names = {f"part-00000-{place:05d}.parquet" for place in range(FILES)}
    assert {path.name for path in folder.iterdir()} == {*names, "manifest.json"}
