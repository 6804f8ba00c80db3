"""Describes and builds the compiled extension. Everything else about the package stands in pyproject.toml.

The extension is a plain shared library on PyTorch's stable ABI (target 2.10), so one build serves every
later PyTorch and every Python. It is optional: without a compiler or without PyTorch's headers the package
installs as pure Python, and `python -m spanbert_kernels` says why.
The host module (csrc/host) is an ordinary pybind11 module for this Python, built on its own and just as optional.

The CUDA kernels (csrc/<operation>/cuda.cu) are a second such library, built where nvcc is found and the installed
PyTorch is a CUDA build; whether a GPU is present does not matter.

Environment: SPANBERT_KERNELS_BUILD=0 builds nothing, =1 fails where a build is not possible;
SPANBERT_KERNELS_CUDA=0 leaves the CUDA library out, =1 builds it for any PyTorch and fails where that is not possible;
SPANBERT_KERNELS_CUDA_ARCHITECTURES names the GPUs, "80;90;100" by default (the last one as PTX too, for later ones);
SPANBERT_KERNELS_SANITIZE=1 builds the CPU library with the address and undefined-behaviour sanitizers, to be loaded
beneath them (`make sanitize`); CXX names the compiler; MAX_JOBS limits the parallel jobs.
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
OPERATIONS = [
    "span_gather",
    "span_pool",
    "span_linear",
    "span_score",
    "document_attention",
    "cross_document_attention",
    "packed_linear",
]
KERNELS = [f"csrc/{operation}/cpu_kernels.cpp" for operation in OPERATIONS]
BINDINGS = [
    "csrc/common/levels.cpp",
    "csrc/span_pool/groups.cpp",
    "csrc/span_linear/prepare.cpp",
    "csrc/document_attention/neighbourhoods.cpp",
    *(f"csrc/{operation}/cpu.cpp" for operation in OPERATIONS),
]
# What a sanitizer must find: part of sanitized builds alone.
CANARY, CANARY_KERNELS = "csrc/common/canary.cpp", "csrc/common/canary_kernels.cpp"
HOST = [f"csrc/host/{name}.cpp" for name in ("module", "prune_spans", "span_masking", "work_lists")]


# The first fault ends the process. Typeinfo of PyTorch's classes is hidden, so `vptr` cannot be checked.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
SANITIZERS += ["-fno-omit-frame-pointer", "-g1", "-O1"]


def find_torch() -> Path:
    """The installed PyTorch's folder, without importing it: build isolation hides it from `import`."""
    folders = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"], *site.getsitepackages()]
    folders += [site.getusersitepackages(), *sys.path]
    for folder in folders:
        torch = Path(folder) / "torch"
        if (torch / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return torch
    raise RuntimeError("no PyTorch 2.10 or later is installed in the target environment: its headers are needed")


def torch_version(torch: Path, name: str = "__version__") -> str | None:
    """A line of PyTorch's version.py: its version, or with `cuda` that of the CUDA it was built with, None without."""
    scope: dict[str, str | None] = {}
    exec((torch / "version.py").read_text(), scope)
    return scope.get(name)


def find_compiler() -> str:
    for name in filter(None, [os.environ.get("CXX"), "g++", "c++", "clang++"]):
        if shutil.which(shlex.split(name)[0]):
            return name
    raise RuntimeError("no C++ compiler found (looked for $CXX, g++, c++, clang++)")


def find_nvcc() -> str | None:
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [*(f"{folder}/bin/nvcc" for folder in folders if folder), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def cuda_refusal() -> str | None:
    """Why no CUDA library is built here, or None where it is."""
    asked = os.environ.get("SPANBERT_KERNELS_CUDA", "")
    if asked == "0":
        return "switched off by SPANBERT_KERNELS_CUDA=0"
    if find_nvcc() is None:
        return "no CUDA compiler found (looked for nvcc in $CUDA_HOME, on the PATH and in /usr/local/cuda)"
    if asked != "1" and torch_version(find_torch(), "cuda") is None:
        return "the installed PyTorch is not a CUDA build"
    return None


def cuda_architectures() -> list[int]:
    text = os.environ.get("SPANBERT_KERNELS_CUDA_ARCHITECTURES", "") or "80;90;100"
    try:
        return sorted({int(name) for name in text.split(";")})
    except ValueError as error:
        raise RuntimeError(f'SPANBERT_KERNELS_CUDA_ARCHITECTURES must look like "80;90", got {text!r}') from error


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
        info |= self.try_host(folder, wish)
        try:
            info |= self.try_cuda(folder, wish)
        finally:
            (folder / "build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def build_cpu(self, folder: Path) -> dict[str, object]:
        torch, compiler = find_torch(), find_compiler()
        objects = (ROOT / self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        common = [*shlex.split(compiler), "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
        common += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi"]
        common += [f"-I{ROOT / 'csrc'}", f"-I{torch / 'include'}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        sanitize = os.environ.get("SPANBERT_KERNELS_SANITIZE") == "1"
        sanitizers = SANITIZERS if sanitize else []
        common += sanitizers
        levels = LEVELS.get(platform.machine(), {"portable": []})
        common += [f"-DSPANBERT_HAS_{level.upper()}" for level in levels]

        commands = {}
        units = [(source, "", []) for source in BINDINGS + [CANARY] * sanitize]
        units += [
            (source, f".{level}", [*flags, f"-DSPANBERT_LEVEL={level}", f"-DSPANBERT_LEVEL_{level.upper()}"])
            for source in KERNELS + [CANARY_KERNELS] * sanitize
            for level, flags in levels.items()
        ]
        for source, suffix, flags in units:
            target = objects / (source.removeprefix("csrc/").replace("/", "_").removesuffix(".cpp") + suffix + ".o")
            dependencies = ["-MMD", "-MF", f"{target}.d"]
            commands[target] = [*common, *flags, *dependencies, "-c", str(ROOT / source), "-o", str(target)]
        compile_all(commands, objects)

        library = folder / "libspanbert_kernels_cpu.so"
        library.unlink(missing_ok=True)
        link = [*shlex.split(compiler), "-shared", *sanitizers, *map(str, commands), "-o", str(library)]
        subprocess.run([*link, f"-L{torch / 'lib'}", "-ltorch_cpu", "-Wl,--as-needed"], check=True)
        version = subprocess.run([*shlex.split(compiler), "--version"], check=True, capture_output=True, text=True)
        return {"cpu": sorted(levels), "compiler": version.stdout.splitlines()[0], "torch": torch_version(torch)}

    def try_host(self, folder: Path, wish: str) -> dict[str, object]:
        """Build the host module if that is wished and possible; what to record about it."""
        module = folder / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
        reason = "switched off by SPANBERT_KERNELS_BUILD=0"
        if wish != "0":
            try:
                self.build_host(module)
                print(f"spanbert-kernels: built the host module ({module.name})", file=sys.stderr)
                return {"host": module.name}
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                if wish == "1":
                    raise
                reason = str(error)
        module.unlink(missing_ok=True)
        print(f"spanbert-kernels: installing without the compiled host module: {reason}", file=sys.stderr)
        return {"host": None, "host_reason": reason}

    def build_host(self, module: Path) -> None:
        """The host module: pybind11, so of this Python alone, and without PyTorch."""
        try:
            import pybind11
        except ImportError as error:
            raise RuntimeError("pybind11 is not installed") from error
        compiler, python = find_compiler(), sysconfig.get_path("include")
        if not (Path(python) / "Python.h").is_file():
            raise RuntimeError(f"Python's headers are not installed (no Python.h in {python})")
        objects = (ROOT / self.build_temp / "host").resolve()
        objects.mkdir(parents=True, exist_ok=True)
        common = [*shlex.split(compiler), "-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall"]
        common += [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{python}"]
        commands = {}
        for source in HOST:
            target = objects / f"{Path(source).stem}.o"
            dependencies = ["-MMD", "-MF", f"{target}.d"]
            commands[target] = [*common, *dependencies, "-c", str(ROOT / source), "-o", str(target)]
        compile_all(commands, objects)
        module.unlink(missing_ok=True)
        subprocess.run([*shlex.split(compiler), "-shared", *map(str, commands), "-o", str(module)], check=True)

    def try_cuda(self, folder: Path, wish: str) -> dict[str, object]:
        """Build the CUDA library if that is wished and possible; what to record about it."""
        library = folder / "libspanbert_kernels_cuda.so"
        asked = wish != "0" and os.environ.get("SPANBERT_KERNELS_CUDA") == "1"
        try:
            reason = "switched off by SPANBERT_KERNELS_BUILD=0" if wish == "0" else cuda_refusal()
            if reason is None:
                architectures = self.build_cuda(library)
                print(f"spanbert-kernels: built the CUDA extension ({architectures})", file=sys.stderr)
                return {"cuda": architectures}
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            reason = str(error)
        library.unlink(missing_ok=True)
        if asked:
            raise RuntimeError(f"SPANBERT_KERNELS_CUDA=1 asks for the CUDA library, but: {reason}")
        print(f"spanbert-kernels: installing without the compiled CUDA extension: {reason}", file=sys.stderr)
        return {"cuda": None, "cuda_reason": reason}

    def build_cuda(self, library: Path) -> list[int]:
        torch, architectures = find_torch(), cuda_architectures()
        nvcc = find_nvcc()
        assert nvcc is not None
        objects = (ROOT / self.build_temp / "cuda").resolve()
        objects.mkdir(parents=True, exist_ok=True)
        common = [nvcc, "-std=c++20", "-O3", "--threads=4", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
        common += [f"-I{ROOT / 'csrc'}", f"-I{torch / 'include'}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        for number in architectures:
            codes = f"[sm_{number},compute_{number}]" if number == architectures[-1] else f"sm_{number}"
            common += ["-gencode", f"arch=compute_{number},code={codes}"]
        if "CXX" in os.environ:
            common += ["-ccbin", shlex.split(os.environ["CXX"])[0]]
        commands = {}
        for source in sorted((ROOT / "csrc").glob("*/cuda.cu")):
            target = objects / f"{source.parent.name}.o"
            commands[target] = [*common, "-MMD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target)]
        compile_all(commands, objects)
        # A CPU build of PyTorch has no libtorch_cuda: what is built beside it for a test is not loaded.
        libraries = [name for name in ("torch_cuda", "torch_cpu") if (torch / "lib" / f"lib{name}.so").is_file()]
        link = [nvcc, "-shared", "-cudart", "static", *map(str, commands), "-o", str(library), f"-L{torch / 'lib'}"]
        subprocess.run([*link, *(f"-l{name}" for name in libraries)], check=True)
        return architectures

    def get_outputs(self) -> list[str]:
        return []


setup(
    # The list only makes setuptools call build_ext and tag the wheel for this platform.
    ext_modules=[Extension("spanbert_kernels._lib", sources=[])],
    cmdclass={"build_ext": BuildLibraries},
)
