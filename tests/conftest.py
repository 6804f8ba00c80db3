"""What is decided before Triton and the compiled libraries are loaded: where there is no GPU, Triton's kernels run in
its interpreter.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spanbert_kernels.ops import library

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Nothing is measured, so that every run takes the same ways; the tests of measuring undo it.
os.environ.setdefault("SPANBERT_KERNELS_PRODUCTS", "torch")
os.environ.setdefault("SPANBERT_KERNELS_ENCODER", "fused")
os.environ.setdefault("SPANBERT_KERNELS_LINEARS", "torch")
os.environ.setdefault("SPANBERT_KERNELS_PACKED_LINEAR", "float32")

# Side by side, threads of one worker only wait for those of another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Other builds of the compiled libraries: sanitized ones, mutated ones.
if "SPANBERT_KERNELS_LIBRARIES" in os.environ:
    library.FOLDER = Path(os.environ["SPANBERT_KERNELS_LIBRARIES"])

# What is collected stays to the end: looking through it again and again for garbage takes a tenth of the tests' time.
gc.disable()

TESTS = Path(__file__).parent
SMALL = ("acceleration", "integrations", "models", "nn", "tasks")  # folders whose models gain nothing from more threads


def pytest_collection_finish() -> None:
    """Whatever was loaded and collected is never looked through again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where models are small, threads would wait for each other most of the time."""
    before = torch.get_num_threads()
    small = request.path.relative_to(TESTS).parts[0] in SMALL
    if small:
        torch.set_num_threads(1)
    yield
    if small:
        torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `spanbert-kernels` in an empty folder; a traceback fails the test."""
    from click.testing import CliRunner  # the GPU checks run where there is none

    from spanbert_kernels.cli import main

    monkeypatch.setenv("COLUMNS", "80")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(main, list(map(str, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
