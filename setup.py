"""Describes and builds the compiled extension. Everything else about the package stands in pyproject.toml.

The extension is a plain shared library on PyTorch's stable ABI (target 2.10), so one build serves every
later PyTorch and every Python. It is optional: without a compiler or without PyTorch's headers the package
installs as pure Python, and `python -m spanbert_kernels` says why.

Environment: SPANBERT_KERNELS_BUILD=0 builds nothing, =1 fails where a build is not possible;
CXX names the compiler; MAX_JOBS limits the parallel jobs.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020a000000000000ULL"

# Every kernel file is compiled once per level; the library picks the level at run time (csrc/common/levels.h).
LEVELS = {
    "x86_64": {
        "portable": [],
        "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mbmi2"],
    },
}
OPERATIONS = ["span_pool", "document_attention", "packed_linear"]
KERNELS = [f"csrc/{operation}/cpu_kernels.cpp" for operation in OPERATIONS]
BINDINGS = [
    "csrc/common/levels.cpp",
    "csrc/span_pool/groups.cpp",
    *(f"csrc/{operation}/cpu.cpp" for operation in OPERATIONS),
]


def find_torch() -> Path:
    """The installed PyTorch's folder, without importing it: build isolation hides it from `import`."""
    folders = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"], *site.getsitepackages()]
    folders += [site.getusersitepackages(), *sys.path]
    for folder in folders:
        torch = Path(folder) / "torch"
        if (torch / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return torch
    raise RuntimeError("no PyTorch 2.10 or later is installed in the target environment: its headers are needed")


def torch_version(torch: Path) -> str:
    scope: dict[str, str] = {}
    exec((torch / "version.py").read_text(), scope)
    return scope["__version__"]


def find_compiler() -> str:
    for name in filter(None, [os.environ.get("CXX"), "g++", "c++", "clang++"]):
        if shutil.which(shlex.split(name)[0]):
            return name
    raise RuntimeError("no C++ compiler found (looked for $CXX, g++, c++, clang++)")


def compile_all(commands: dict[Path, list[str]], folder: Path) -> None:
    """Run the commands side by side: with ninja, which rebuilds only what changed, else in a thread pool."""
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    ninja = shutil.which("ninja")
    if ninja is None:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda command: subprocess.run(command, check=True), commands.values()))
        return
    lines = ["rule cxx", "  command = $cmd", "  depfile = $out.d", "  deps = gcc", ""]
    for target, command in commands.items():
        source = command[command.index("-c") + 1]
        lines += [f"build {target}: cxx {source}", f"  cmd = {shlex.join(command)}", ""]
    (folder / "build.ninja").write_text("\n".join(lines))
    subprocess.run([ninja, "-C", str(folder), f"-j{jobs}"], check=True)


class BuildLibraries(build_ext):
    """Builds the CPU library and records what was built beside it."""

    def run(self) -> None:
        package = ROOT / "spanbert_kernels" if self.editable_mode else Path(self.build_lib) / "spanbert_kernels"
        folder = package / "_lib"
        folder.mkdir(parents=True, exist_ok=True)
        wish = os.environ.get("SPANBERT_KERNELS_BUILD", "")
        info: dict[str, object] = {"cpu": None, "reason": "switched off by SPANBERT_KERNELS_BUILD=0"}
        if wish != "0":
            try:
                info = self.build_cpu(folder)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                if wish == "1":
                    raise
                info = {"cpu": None, "reason": str(error)}
        if info["cpu"] is None:
            (folder / "libspanbert_kernels_cpu.so").unlink(missing_ok=True)
            print(f"spanbert-kernels: installing without the compiled CPU extension: {info['reason']}", file=sys.stderr)
        else:
            print(f"spanbert-kernels: built the CPU extension ({info['cpu']})", file=sys.stderr)
        (folder / "build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def build_cpu(self, folder: Path) -> dict[str, object]:
        torch, compiler = find_torch(), find_compiler()
        objects = (ROOT / self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        common = [*shlex.split(compiler), "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
        common += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi"]
        common += [f"-I{ROOT / 'csrc'}", f"-I{torch / 'include'}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        levels = LEVELS.get(platform.machine(), {"portable": []})
        common += [f"-DSPANBERT_HAS_{level.upper()}" for level in levels]

        commands = {}
        units = [(source, "", []) for source in BINDINGS]
        units += [
            (source, f".{level}", [*flags, f"-DSPANBERT_LEVEL={level}", f"-DSPANBERT_LEVEL_{level.upper()}"])
            for source in KERNELS
            for level, flags in levels.items()
        ]
        for source, suffix, flags in units:
            target = objects / (source.removeprefix("csrc/").replace("/", "_").removesuffix(".cpp") + suffix + ".o")
            dependencies = ["-MMD", "-MF", f"{target}.d"]
            commands[target] = [*common, *flags, *dependencies, "-c", str(ROOT / source), "-o", str(target)]
        compile_all(commands, objects)

        library = folder / "libspanbert_kernels_cpu.so"
        library.unlink(missing_ok=True)
        link = [*shlex.split(compiler), "-shared", *map(str, commands), "-o", str(library)]
        subprocess.run([*link, f"-L{torch / 'lib'}", "-ltorch_cpu", "-Wl,--as-needed"], check=True)
        version = subprocess.run([*shlex.split(compiler), "--version"], check=True, capture_output=True, text=True)
        return {"cpu": sorted(levels), "compiler": version.stdout.splitlines()[0], "torch": torch_version(torch)}

    def get_outputs(self) -> list[str]:
        return []


setup(
    # The list only makes setuptools call build_ext and tag the wheel for this platform.
    ext_modules=[Extension("spanbert_kernels._lib", sources=[])],
    cmdclass={"build_ext": BuildLibraries},
)
