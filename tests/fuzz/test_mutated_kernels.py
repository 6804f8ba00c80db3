"""Kernels with a fault of one element in a stride, built on purpose: the fixed list of calls finds it."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import children
import pytest
from fuzz import test_fuzz
from setuptools import Distribution

from spanbert_kernels.ops import library

ROOT = Path(__file__).resolve().parents[2]
# What to look for in an operation's kernel file, and what to put there instead.
MUTATIONS = {
    "span_gather": ("grads.sources[i] * grads.output_stride", "grads.sources[i] * (grads.output_stride - 1)"),
    "pair_pool": ("rows) + index * from.stride", "rows) + index * (from.stride - 1)"),
    "packed_linear": ("row * call.out_features + column", "row * (call.out_features - 1) + column"),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++").split()[0]) is None, reason="no C++ compiler here"),
]


def build(source: Path, folder: Path, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operation's library with one instruction set, from a copy of the sources."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setenv("MAX_JOBS", "2")
    module = runpy.run_path(str(ROOT / "setup.py"))
    command = module["BuildLibraries"](Distribution())
    command.build_temp = str(folder / "objects")
    folder.mkdir()
    module["BuildLibraries"].build_cpu.__globals__.update(
        ROOT=source,
        ISAS={},
        BINDINGS=["csrc/common/isa.cpp", f"csrc/{operation}/cpu.cpp"],
        KERNELS=[f"csrc/{operation}/cpu_kernels.cpp"],
    )
    command.build_cpu(folder / "libspanbert_kernels_cpu.so")
    info = {"cpu": ["portable"], "schemas": library.build_info()["schemas"]}
    (folder / "build_info.json").write_text(json.dumps(info))


def fuzz(folder: Path, operation: str) -> subprocess.CompletedProcess[str]:
    """The operation's calls of the fixed list, on the library in a folder."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz" / "run.py"), "--operation", operation]
    command += ["--first", "0", "--calls", str(test_fuzz.CALLS), "--seconds", "inf"]
    environment = {**os.environ, "SPANBERT_KERNELS_LIBRARIES": str(folder)}
    return children.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("operation", MUTATIONS)
def test_the_fixed_list_finds_a_wrong_stride(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = MUTATIONS[operation]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    kernels = tmp_path / "csrc" / operation / "cpu_kernels.cpp"
    build(tmp_path, tmp_path / "right", operation, monkeypatch)
    text = kernels.read_text()
    assert text.count(before) == 1
    kernels.write_text(text.replace(before, after))
    build(tmp_path, tmp_path / "wrong", operation, monkeypatch)

    right, wrong = fuzz(tmp_path / "right", operation), fuzz(tmp_path / "wrong", operation)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "cpu-portable (" in right.stdout
    assert "cpu-avx2" not in right.stdout
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert "cpu-portable: AssertionError" in wrong.stdout
    assert "repeat it alone" in wrong.stdout
