"""What is published: the sources are whole and hold nothing that was built, and a wheel's tag says what is in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import children
import pytest
from setuptools import Distribution, Extension
from test_build import RECORDING, executable, needs_library, setup_module, source, undefined_symbols, unstable

from spanbert_kernels.ops import library

__all__ = ["setup_module", "source"]  # fixtures
ROOT = Path(__file__).resolve().parent.parent


def run_setup(folder: Path, *arguments: str, **environment: str) -> None:
    """Runs setup.py in a folder with the sources."""
    command = [sys.executable, "setup.py", "-q", *arguments]
    children.run(command, cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True)


def tracked() -> set[str]:
    """The files of this checkout that git knows."""
    done = children.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The source distribution made from a checkout in which something was built."""
    checkout = tmp_path / "checkout"
    for name in tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    built = "spanbert_kernels/_lib/libspanbert_kernels_cpu.so"
    executable(checkout / built, "built")
    executable(checkout / "tests" / "__pycache__" / "children.pyc", "built")
    executable(checkout / "spanbert_kernels.egg-info" / "SOURCES.txt", f"{built}\n")
    run_setup(checkout, "sdist", "-d", str(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def test_the_sources_are_whole_and_hold_nothing_that_was_built(sources: Path) -> None:
    names = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    made = {name for name in names if name.startswith("spanbert_kernels.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == tracked() - {".ci/run", ".gitignore"}
    assert {"csrc/common/vector.h", "tests/test_wheel.py", "README.md", "LICENSE"} <= names


@pytest.mark.parametrize(
    ("built", "tag"),
    [
        ({}, "of this Python"),  # an editable wheel, before anything is built
        ({"cpu": ["portable"], "cuda": None, "host": "_host.so"}, "of this Python"),
        ({"cpu": ["portable"], "cuda": None, "host": None}, "py3-none-linux_x86_64"),
        ({"cpu": None, "cuda": [90], "host": None}, "py3-none-linux_x86_64"),
        ({"cpu": None, "cuda": None, "host": None}, "py3-none-any"),
    ],
)
def test_the_tag_says_what_is_in_the_wheel(setup_module: dict[str, Any], built: dict[str, Any], tag: str) -> None:
    distribution = Distribution(
        {
            "ext_modules": [Extension("spanbert_kernels._lib", [])],
            "cmdclass": {"build_ext": setup_module["BuildLibraries"]},
        }
    )
    command = setup_module["TagWheel"](distribution)
    command.plat_name = "linux_x86_64"
    command.ensure_finalized()
    distribution.get_command_obj("build_ext").built = built
    expected = tag if tag.startswith("py3") else f"cp3{sys.version_info.minor}-"
    assert "-".join(command.get_tag()).startswith(expected)


@pytest.mark.parametrize(
    ("environment", "tag", "pure", "files"),
    [
        ({"SPANBERT_KERNELS_BUILD": "0"}, "py3-none-any", "true", {"build_info.json"}),
        (
            {"SPANBERT_KERNELS_HOST": "0", "SPANBERT_KERNELS_CUDA": "0"},
            "py3-none-linux_test",
            "false",
            {"build_info.json", "libspanbert_kernels_cpu.so"},
        ),
    ],
)
def test_a_wheel_is_for_all_that_can_use_it(
    source: Path, tmp_path: Path, environment: dict[str, str], tag: str, pure: str, files: set[str]
) -> None:
    compiler = executable(tmp_path / "bin" / "recording", RECORDING)
    switches = {"SPANBERT_KERNELS_BUILD": "", "CXX": str(compiler), "_PYTHON_HOST_PLATFORM": "linux-test"}
    run_setup(source, "bdist_wheel", "-d", str(tmp_path), **{**switches, **environment})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-{tag}.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert f"Root-Is-Purelib: {pure}\n" in archive.read(metadata).decode()
        names = archive.namelist()
    assert {Path(name).name for name in names if "/_lib/" in name} == files
    assert {"spanbert_kernels/py.typed", "spanbert_kernels/cli/templates/style.css"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "csrc/"))]


SMOKE = """
import torch, spanbert_kernels
from spanbert_kernels.ops import backends, span_pool
print(spanbert_kernels.__file__)
print(backends.refusals()["cpu"]["span_pool"])
backend = "cpu" if backends.refusals()["cpu"]["span_pool"] is None else "eager"
print(span_pool(torch.ones(3, 1), torch.tensor([[0, 2]]), ["sum"], backend=backend).item())
"""


def use(wheel: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on the unpacked wheel, which hides the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = children.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_pure_python_wheel_works(source: Path, tmp_path: Path) -> None:
    """As pip builds it; imported from the unpacked wheel, it computes and names the reason."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(tmp_path)]
    environment = {**os.environ, "SPANBERT_KERNELS_BUILD": "0"}
    children.run([*command, str(source)], env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    done = use(wheel, tmp_path / "unpacked", "-c", SMOKE)
    assert str(tmp_path / "unpacked") in done.stdout
    assert "switched off by SPANBERT_KERNELS_BUILD=0" in done.stdout
    assert done.stdout.splitlines()[-1] == "3.0"


@pytest.mark.slow
@needs_library
def test_a_full_build_from_the_published_sources(sources: Path, tmp_path: Path) -> None:
    switches = {"SPANBERT_KERNELS_BUILD": "1", "SPANBERT_KERNELS_CUDA": "0"}
    run_setup(sources, "build_ext", "--build-lib", str(tmp_path / "built"), **switches)
    folder = tmp_path / "built" / "spanbert_kernels" / "_lib"
    assert unstable(undefined_symbols(folder / "libspanbert_kernels_cpu.so")) == []
    info = json.loads((folder / "build_info.json").read_text())
    assert info["cpu"] == library.build_info()["cpu"]
    # The host module is as free of PyTorch as it says.
    assert not [symbol for symbol in undefined_symbols(folder / info["host"]) if symbol.startswith(("aoti_", "torch_"))]
    assert unstable(undefined_symbols(folder / info["host"])) == []

    # The wheel for every Python: its kernels run, and it says what serves for the host module.
    run_setup(sources, "bdist_wheel", "-d", str(tmp_path), **switches, SPANBERT_KERNELS_HOST="0")
    (wheel,) = tmp_path.glob("*-py3-none-*.whl")
    done = use(wheel, tmp_path / "unpacked", "-c", SMOKE)
    assert done.stdout.splitlines() == [f"{tmp_path}/unpacked/spanbert_kernels/__init__.py", "None", "3.0"]
    done = use(wheel, tmp_path / "unpacked", "-m", "spanbert_kernels")
    assert "Host module: in numpy, slower" in done.stdout
    assert "an installation from source builds it" in done.stdout
