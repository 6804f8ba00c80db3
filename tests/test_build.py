"""The built library uses PyTorch's stable ABI alone, and a machine without a compiler gets a package that says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from spanbert_kernels.ops import library

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = library.FOLDER / "libspanbert_kernels_cpu.so"
# C++ names of PyTorch that a library on the stable ABI must not need: they change from release to release.
UNSTABLE = ("at::", "c10::", "torch::", "caffe2::")

needs_library = pytest.mark.skipif(library.build_info()["cpu"] is None, reason=str(library.build_info().get("reason")))


def undefined_symbols(path: Path) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("no nm here")
    done = subprocess.run(["nm", "-DC", "--undefined-only", str(path)], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]


def unstable(symbols: list[str]) -> list[str]:
    return [symbol for symbol in symbols if any(name in symbol for name in UNSTABLE)]


@needs_library
def test_what_was_built_loads() -> None:
    assert library.load_cpu() is None
    assert library.cpu_level() in library.build_info()["cpu"]


@needs_library
def test_the_library_uses_the_stable_abi_alone() -> None:
    symbols = undefined_symbols(LIBRARY)
    assert unstable(symbols) == []
    torch_symbols = [symbol for symbol in symbols if symbol.startswith(("aoti_torch_", "torch_"))]
    assert len(torch_symbols) > 5, "the library calls PyTorch through its C functions"
    assert not [symbol for symbol in symbols if symbol.startswith("Py")], "no Python API: one build serves every Python"


def test_an_unstable_symbol_would_be_seen() -> None:
    symbols = [
        "aoti_torch_empty_strided",
        "std::bad_alloc",
        "at::Tensor::sum() const",
        "c10::Error::Error(char const*)",
    ]
    assert unstable(symbols) == symbols[2:]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The package's sources, without what this checkout built."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(
        ROOT / "spanbert_kernels", folder / "spanbert_kernels", ignore=shutil.ignore_patterns("_lib", "__pycache__")
    )
    return folder


def build(source: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Runs the build step of setup.py and returns it with the folder of the built library."""
    target = source / "built"
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(target)]
    done = subprocess.run(
        command, cwd=source, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done, target / "spanbert_kernels" / "_lib"


def no_compiler(folder: Path) -> dict[str, str]:
    """A PATH on which nothing is found, so that no other compiler takes over."""
    folder.mkdir()
    return {"CXX": "/nonexistent", "PATH": str(folder)}


def broken_compiler(folder: Path) -> dict[str, str]:
    folder.mkdir()
    compiler = folder / "broken"
    compiler.write_text("#!/bin/sh\necho 'broken: internal compiler error' >&2\nexit 1\n")
    compiler.chmod(0o755)
    return {"CXX": str(compiler)}


def test_building_can_be_switched_off(source: Path) -> None:
    done, folder = build(source, SPANBERT_KERNELS_BUILD="0")
    assert done.returncode == 0, done.stderr
    text = "installing without the compiled CPU extension: switched off by SPANBERT_KERNELS_BUILD=0"
    assert text in done.stderr
    assert [path.name for path in folder.iterdir()] == ["build_info.json"]
    assert json.loads((folder / "build_info.json").read_text()) == {
        "cpu": None,
        "reason": "switched off by SPANBERT_KERNELS_BUILD=0",
    }


def test_without_a_compiler_the_package_is_pure_python_and_says_so(source: Path, tmp_path: Path) -> None:
    done, folder = build(source, SPANBERT_KERNELS_BUILD="", **no_compiler(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert "installing without the compiled CPU extension: no C++ compiler found" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["build_info.json"]
    assert json.loads((folder / "build_info.json").read_text())["cpu"] is None


def test_a_compiler_that_fails_leaves_pure_python(source: Path, tmp_path: Path) -> None:
    done, folder = build(source, SPANBERT_KERNELS_BUILD="", **broken_compiler(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    assert "installing without the compiled CPU extension" in done.stderr
    assert not (folder / "libspanbert_kernels_cpu.so").exists()
    assert json.loads((folder / "build_info.json").read_text())["cpu"] is None


@pytest.mark.parametrize("break_it", [no_compiler, broken_compiler])
def test_a_build_that_is_asked_for_must_succeed(source: Path, tmp_path: Path, break_it: object) -> None:
    assert callable(break_it)
    done, folder = build(source, SPANBERT_KERNELS_BUILD="1", **break_it(tmp_path / "bin"))
    assert done.returncode != 0
    assert not (folder / "libspanbert_kernels_cpu.so").exists()


def test_a_failed_build_removes_an_older_library(source: Path) -> None:
    folder = source / "built" / "spanbert_kernels" / "_lib"
    folder.mkdir(parents=True)
    (folder / "libspanbert_kernels_cpu.so").write_bytes(b"old")
    build(source, SPANBERT_KERNELS_BUILD="0")
    assert not (folder / "libspanbert_kernels_cpu.so").exists()


@pytest.mark.slow
def test_a_pure_python_wheel_works(source: Path, tmp_path: Path) -> None:
    """As pip builds it; imported from the unpacked wheel, it computes and names the reason."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(tmp_path),
        ".",
    ]
    environment = {**os.environ, "SPANBERT_KERNELS_BUILD": "0"}
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    code = (
        "import torch, spanbert_kernels\n"
        "from spanbert_kernels.ops import backends, span_pool\n"
        "print(spanbert_kernels.__file__, backends.report()['cpu']['span_pool'])\n"
        "print(span_pool(torch.ones(3, 1), torch.tensor([[0, 2]]), ['sum'], backend='eager').item())\n"
    )
    # Not from the checkout: -P keeps the working folder out, the path puts the wheel first.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(unpacked) in done.stdout
    assert "switched off by SPANBERT_KERNELS_BUILD=0" in done.stdout
    assert done.stdout.splitlines()[-1] == "3.0"


@pytest.mark.slow
@needs_library
def test_a_full_build_from_a_copy(source: Path) -> None:
    done, folder = build(source, SPANBERT_KERNELS_BUILD="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert unstable(undefined_symbols(folder / "libspanbert_kernels_cpu.so")) == []
    assert json.loads((folder / "build_info.json").read_text())["cpu"] == library.build_info()["cpu"]
