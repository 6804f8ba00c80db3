"""The built library uses PyTorch's stable ABI alone, and a machine without a compiler gets a package that says so."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import children
import pytest
from setuptools import Distribution

from spanbert_kernels.ops import library, operators

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = library.FOLDER / "libspanbert_kernels_cpu.so"
# C++ names of PyTorch that a library on the stable ABI must not need: they change from release to release.
UNSTABLE = ("at::", "c10::", "torch::", "caffe2::")

needs_library = pytest.mark.skipif(library.build_info()["cpu"] is None, reason=str(library.build_info().get("reason")))


def undefined_symbols(path: Path) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("no nm here")
    done = children.run(["nm", "-DC", "--undefined-only", str(path)], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]


def unstable(symbols: list[str]) -> list[str]:
    return [symbol for symbol in symbols if any(name in symbol for name in UNSTABLE)]


@needs_library
def test_what_was_built_loads() -> None:
    assert library.load_cpu() is None
    info = library.build_info()
    assert library.cpu_isa() in {*info["cpu"], *info["cpu_rooms"]}


def test_schemas_are_read_from_the_sources_as_the_operators_declare_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    read = runpy.run_path(str(ROOT / "setup.py"))["declared_schemas"]()
    assert read == {name: operator.schema for name, operator in operators.REGISTERED.items()}


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


# A compiler that writes its command line into its output, and one that fails.
RECORDING = """#!/bin/sh
line="$*"
echo a compiler
while [ "$#" -gt 0 ]; do if [ "$1" = -o ]; then out="$2"; fi; shift; done
if [ -n "$out" ]; then echo "$line" > "$out"; fi
"""
FAILING = "#!/bin/sh\nexit 1\n"


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


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
    done = children.run(
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
    info = json.loads((folder / "build_info.json").read_text())
    assert info["cpu"] is info["host"] is None
    assert info["reason"] == info["host_reason"] == "switched off by SPANBERT_KERNELS_BUILD=0"


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


def test_without_the_sources_the_package_says_so(source: Path) -> None:
    shutil.rmtree(source / "csrc")
    done, _ = build(source, SPANBERT_KERNELS_BUILD="1")
    assert done.returncode != 0
    assert "asks for the CPU extension, but: the C++ sources are missing: there is no csrc/" in done.stderr


def test_without_pybind11_there_is_no_host_module(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pybind11.py").write_text("raise ImportError('hidden')")
    compiler = executable(tmp_path / "bin" / "recording", RECORDING)
    environment = {"CXX": str(compiler), "SPANBERT_KERNELS_CUDA": "0", "PYTHONPATH": str(tmp_path)}
    done, folder = build(source, SPANBERT_KERNELS_BUILD="", **environment)
    assert done.returncode == 0, done.stderr
    assert "installing without the compiled host module: pybind11 is not installed" in done.stderr
    info = json.loads((folder / "build_info.json").read_text())
    assert (info["host"], info["host_reason"]) == (None, "pybind11 is not installed")


@pytest.mark.parametrize("break_it", [no_compiler, broken_compiler])
def test_a_build_that_is_asked_for_must_succeed(source: Path, tmp_path: Path, break_it: object) -> None:
    assert callable(break_it)
    done, folder = build(source, SPANBERT_KERNELS_BUILD="1", **break_it(tmp_path / "bin"))
    assert done.returncode != 0
    assert not (folder / "libspanbert_kernels_cpu.so").exists()


def test_a_failed_build_removes_an_older_library(source: Path) -> None:
    folder = source / "built" / "spanbert_kernels" / "_lib"
    folder.mkdir(parents=True)
    host = folder / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    for old in (folder / "libspanbert_kernels_cpu.so", host):
        old.write_bytes(b"old")
    build(source, SPANBERT_KERNELS_BUILD="0")
    assert not (folder / "libspanbert_kernels_cpu.so").exists()
    assert not host.exists()


# The CUDA library: when it is built, and how. A whole build is in tests/aot/test_cuda_aot.py.


@pytest.fixture
def setup_module(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py defines, for a copy of the sources; PyTorch is a stand-in that says it is a CUDA build."""
    torch = tmp_path / "torch"
    (torch / "lib").mkdir(parents=True)
    (torch / "version.py").write_text("__version__ = '2.10.0'\ncuda = '13.0'\n")
    for name in ("libtorch_cuda.so", "libtorch_cpu.so"):
        (torch / "lib" / name).touch()
    for name in list(os.environ):
        if name.startswith("SPANBERT_KERNELS_") or name in ("CUDA_PATH", "CXX"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.chdir(source)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    module = runpy.run_path("setup.py")
    module["cuda_architectures"].__globals__["find_torch"] = lambda: torch
    return module


def try_cuda(module: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    command = module["BuildLibraries"](Distribution())
    command.build_temp = str(folder / "temporary")
    command.attempt("cuda", "CUDA extension", folder / "libspanbert_kernels_cuda.so", command.build_cuda)
    built: dict[str, Any] = command.built
    return built


@pytest.mark.parametrize(
    ("asked", "cuda", "nvcc", "refusal"),
    [
        ("", "'13.0'", True, None),
        ("", "None", True, "the installed PyTorch is not a CUDA build"),
        ("1", "None", True, None),
        ("0", "'13.0'", True, "switched off by SPANBERT_KERNELS_CUDA=0"),
        ("", "'13.0'", False, "no CUDA compiler found"),
    ],
)
def test_when_the_cuda_library_is_built(
    setup_module: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    cuda: str,
    nvcc: bool,
    refusal: str | None,
) -> None:
    """By what is installed and asked for: never by whether there is a GPU."""
    monkeypatch.setenv("SPANBERT_KERNELS_CUDA", asked)
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.10.0'\ncuda = {cuda}\n")
    if nvcc:
        executable(tmp_path / "cuda" / "bin" / "nvcc", RECORDING)
    else:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    built = try_cuda(setup_module, tmp_path / "lib")
    assert (built["cuda"] is None) == (refusal is not None)
    assert (refusal or "") in built.get("cuda_reason", "")


def test_how_the_cuda_library_is_built(setup_module: dict[str, Any], tmp_path: Path) -> None:
    executable(tmp_path / "cuda" / "bin" / "nvcc", RECORDING)
    assert try_cuda(setup_module, tmp_path / "lib") == {"cuda": [80, 90, 100]}
    objects = sorted((tmp_path / "lib" / "temporary" / "cuda").glob("*.o"))
    assert [path.stem for path in objects] == sorted(f"{path.parent.name}_cuda" for path in ROOT.glob("csrc/*/cuda.cu"))
    for path in objects:
        line = path.read_text()
        for text in ("arch=compute_80,code=sm_80 ", "arch=compute_90,code=sm_90 ", "arch=compute_100,code=[sm_100,"):
            assert text in line
        assert line.count("code=") == 3, "one process compiles a file for all"
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000ULL" in line
    link = (tmp_path / "lib" / "libspanbert_kernels_cuda.so").read_text()
    assert "-cudart static" in link
    assert "-ltorch_cuda -ltorch_cpu" in link


def test_the_cuda_library_without_libtorch_cuda(setup_module: dict[str, Any], tmp_path: Path) -> None:
    """Such as a library that is carried from a machine without a GPU: it asks for what the other machine has."""
    executable(tmp_path / "cuda" / "bin" / "nvcc", RECORDING)
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").unlink()
    try_cuda(setup_module, tmp_path / "lib")
    link = (tmp_path / "lib" / "libspanbert_kernels_cuda.so").read_text()
    stand_in = tmp_path / "lib" / "temporary" / "stand-in"
    assert f"-L{stand_in} -Xlinker=--no-as-needed -ltorch_cuda -ltorch_cpu" in link
    assert b"libtorch_cuda.so" in (stand_in / "libtorch_cuda.so").read_bytes()


def test_architectures_are_chosen_by_the_environment(
    setup_module: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "cuda" / "bin" / "nvcc", RECORDING)
    monkeypatch.setenv("SPANBERT_KERNELS_CUDA_ARCHITECTURES", "120;86")
    assert try_cuda(setup_module, tmp_path / "lib") == {"cuda": [86, 120]}
    monkeypatch.setenv("SPANBERT_KERNELS_CUDA_ARCHITECTURES", "ninety")
    info = try_cuda(setup_module, tmp_path / "lib")
    assert info["cuda"] is None
    assert "must look like \"80;90\", got 'ninety'" in info["cuda_reason"]


def test_a_cuda_compiler_that_fails(
    setup_module: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "cuda" / "bin" / "nvcc", FAILING)
    (tmp_path / "lib").mkdir()
    old = tmp_path / "lib" / "libspanbert_kernels_cuda.so"
    old.write_bytes(b"old")
    info = try_cuda(setup_module, tmp_path / "lib")
    assert info["cuda"] is None
    assert "it does not compile here" in info["cuda_reason"]
    assert not old.exists()
    monkeypatch.setenv("SPANBERT_KERNELS_CUDA", "1")
    with pytest.raises(RuntimeError, match="SPANBERT_KERNELS_CUDA=1 asks for the CUDA extension, but"):
        try_cuda(setup_module, tmp_path / "lib")


def test_a_failure_of_the_cuda_part_keeps_the_cpu_library(source: Path, tmp_path: Path) -> None:
    compiler = executable(tmp_path / "bin" / "recording", RECORDING)
    executable(tmp_path / "cuda" / "bin" / "nvcc", FAILING)
    environment = {"CXX": str(compiler), "CUDA_HOME": str(tmp_path / "cuda"), "SPANBERT_KERNELS_CUDA": "1"}
    done, folder = build(source, SPANBERT_KERNELS_BUILD="", **environment)
    assert done.returncode != 0, "it was asked for"
    assert "SPANBERT_KERNELS_CUDA=1 asks for the CUDA extension, but" in done.stderr
    assert (folder / "libspanbert_kernels_cpu.so").exists()
    assert json.loads((folder / "build_info.json").read_text())["cpu"] is not None
