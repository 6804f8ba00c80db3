"""Describes and builds the compiled libraries. Everything else about the package stands in pyproject.toml.

The CPU kernels are a plain shared library on PyTorch's stable ABI (target 2.10), so one build serves every later
PyTorch and every Python. They are optional: without a compiler or without PyTorch's headers the package installs as
pure Python, and `python -m spanbert_kernels` says why.
The CUDA kernels (csrc/<operation>/cuda.cu) are a second such library, built where nvcc is found and the installed
PyTorch is a CUDA build; whether a GPU is present does not matter.
The host module (csrc/host) is an ordinary pybind11 module for this Python alone, built where kernels are.

A wheel is tagged by what is in it: for this Python with the host module, for every Python of this platform with kernels
alone (`make wheel`), for all platforms with neither.

Environment: SPANBERT_KERNELS_BUILD=0 builds nothing, =1 fails where the CPU library or the host module cannot be built;
SPANBERT_KERNELS_CPU=0 and SPANBERT_KERNELS_HOST=0 leave one of the two out, =1 fails where it cannot be built;
SPANBERT_KERNELS_CUDA=0 leaves the CUDA library out, =1 builds it for any PyTorch and fails where that is not possible;
SPANBERT_KERNELS_CUDA_ARCHITECTURES names the GPUs, "80;90;100" by default (the last one as PTX too, for later ones);
SPANBERT_KERNELS_SANITIZE=1 builds the CPU library with the address and undefined-behaviour sanitizers, to be loaded
beneath them (`make sanitize`); CXX names the compiler, _PYTHON_HOST_PLATFORM the machine where it compiles for another
("linux-aarch64"); MAX_JOBS limits the parallel jobs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020a000000000000ULL"


class ISA(NamedTuple):
    """An instruction set: bytes of a vector, rows and vectors of the products' micro-kernel, and the compiler's flags.

    Every kernel file is compiled once for each; the library chooses when it runs, by the `has_` function of that name
    in csrc/common/isa.cpp. One with `rooms` is for the kernels of these folders alone (SPANBERT_DECLARE_ALL), and the
    others then use the one before it.
    """

    vector_bytes: int
    tile_rows: int
    tile_vectors: int
    flags: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()


AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mbmi2")
# By machine, the best last, and those with rooms of their own behind the others.
PORTABLE = {"portable": ISA(16, 4, 2)}
ISAS = {
    "x86_64": {
        **PORTABLE,
        "avx2": ISA(32, 6, 2, ("-mavx2", "-mfma", "-mf16c", "-mbmi2")),
        "avx512": ISA(64, 6, 4, AVX512),
        "avx512_bf16": ISA(64, 6, 4, (*AVX512, "-mavx512bf16", "-mavx512vnni"), ("encoder_stack", "packed_linear")),
    },
}


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


# What a sanitizer must find: part of sanitized builds alone.
CANARY, CANARY_KERNELS = "csrc/common/canary.cpp", "csrc/common/canary_kernels.cpp"
KERNELS, HOST, CUDA = (sources(f"csrc/{each}") for each in ("*/*cpu_kernels.cpp", "host/*.cpp", "*/cuda.cu"))
BINDINGS = [each for each in sources("csrc/*/*.cpp") if each not in {*KERNELS, *HOST, CANARY, CANARY_KERNELS}]

# The first fault ends the process. Typeinfo of PyTorch's classes is hidden, so `vptr` cannot be checked.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
SANITIZERS += ["-fno-omit-frame-pointer", "-g1", "-O1"]


def declared_schemas() -> dict[str, str]:
    """The raw operators' schemas by name, read without PyTorch: what `schema` of ops/operators.py makes of them."""
    paths = sorted((ROOT / "spanbert_kernels" / "ops").rglob("*.py"))
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    assigned = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in nodes if isinstance(node, ast.Assign)}
    fields = {
        node.name: [
            (ast.unparse(each.target), ast.unparse(each.annotation)) for each in node.body if hasattr(each, "target")
        ]
        for node in nodes
        if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases)
    }
    [table] = [node.value for node in nodes if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TYPES"]
    types = {ast.unparse(kind): ast.literal_eval(name) for kind, name in zip(table.keys, table.values, strict=True)}

    def arguments(name: str, kind: str) -> list[str]:
        if kind in fields:
            return [text for field in fields[kind] for text in arguments(*field)]
        return [f"{types.get(kind, kind)} {name}"]

    def result(kind: str) -> str:
        kind = assigned.get(kind, kind)
        if kind.startswith("tuple["):
            return f"({', '.join(map(result, kind[len('tuple[') : -1].split(', ')))})"
        return types.get(kind, kind)

    schemas = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(each).startswith("raw(") for each in node.decorator_list
        ):
            taken = [text for each in node.args.args for text in arguments(each.arg, ast.unparse(each.annotation))]
            schemas[node.name] = f"({', '.join(taken)}) -> {result(ast.unparse(node.returns))}"
    return schemas


def find_torch() -> Path:
    """The installed PyTorch's folder, without importing it: build isolation hides it from `import`."""
    folders = [*sys.path, *(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
    for folder in [*folders, *site.getsitepackages(), site.getusersitepackages()]:
        torch = Path(folder) / "torch"
        if (torch / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            version = str(torch_version(torch))
            if tuple(map(int, version.split(".")[:2])) < (2, 10):
                raise RuntimeError(f"PyTorch 2.10 or later is needed to build it, and {version} is installed")
            return torch
    raise RuntimeError(
        "no PyTorch 2.10 or later is installed where it is built: its headers are needed"
        " (install PyTorch first, then this with --no-build-isolation where the builder hides it)"
    )


def torch_version(torch: Path, name: str = "__version__") -> str | None:
    """A line of PyTorch's version.py: its version, or with `cuda` that of the CUDA it was built with, None without."""
    scope: dict[str, str | None] = {}
    exec((torch / "version.py").read_text(), scope)
    return scope.get(name)


def find_compiler() -> list[str]:
    for name in filter(None, [os.environ.get("CXX"), "g++", "c++", "clang++"]):
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise RuntimeError("no C++ compiler found (looked for $CXX, g++, c++, clang++)")


def find_nvcc() -> str | None:
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [*(f"{folder}/bin/nvcc" for folder in folders if folder), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)


def cuda_architectures() -> list[int]:
    text = os.environ.get("SPANBERT_KERNELS_CUDA_ARCHITECTURES", "") or "80;90;100"
    try:
        return sorted({int(name) for name in text.split(";")})
    except ValueError as error:
        raise RuntimeError(f'SPANBERT_KERNELS_CUDA_ARCHITECTURES must look like "80;90", got {text!r}') from error


def compile_all(commands: dict[str, list[str]], folder: Path) -> None:
    """Run the commands side by side: with ninja, which rebuilds only what changed, else in a thread pool."""
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    ninja = shutil.which("ninja", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)]))
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


def sources_hash() -> str:
    """Changes with every file that the libraries are built from."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def switched(value: str, *names: str) -> str | None:
    """The first of the named variables that has this value."""
    return next((f"{name}={value}" for name in names if os.environ.get(name) == value), None)


class BuildLibraries(build_ext):
    """Builds what can be built, and records beside it what was built, of which schemas, and why the rest was not."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.built: dict[str, Any] = {}

    def run(self) -> None:
        package = ROOT / "spanbert_kernels" if self.editable_mode else Path(self.build_lib) / "spanbert_kernels"
        folder = package / "_lib"
        folder.mkdir(parents=True, exist_ok=True)
        schemas = declared_schemas()
        try:
            self.attempt("cpu", "CPU extension", folder / "libspanbert_kernels_cpu.so", self.build_cpu)
            self.attempt("cuda", "CUDA extension", folder / "libspanbert_kernels_cuda.so", self.build_cuda)
            module = folder / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
            self.attempt("host", "host module", module, self.build_host)
        finally:
            info = {**self.built, "sources": sources_hash(), "schemas": schemas}
            (folder / "build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def attempt(self, part: str, title: str, library: Path, build: Callable[[Path], dict[str, Any]]) -> None:
        """Build a part unless it is switched off; where that fails it is left out, or ends all if it was asked for."""
        own = f"SPANBERT_KERNELS_{part.upper()}"
        off, asked = switched("0", "SPANBERT_KERNELS_BUILD", own), switched("1", own)
        if part != "cuda":
            asked = asked or switched("1", "SPANBERT_KERNELS_BUILD")
        library.unlink(missing_ok=True)
        reason = f"switched off by {off}"
        if off == "SPANBERT_KERNELS_HOST=0":
            reason += ", as in wheels for every Python (an installation from source builds it)"
        if off is None:
            try:
                self.built |= build(library)
                print(f"spanbert-kernels: built the {title} ({self.built[part]})", file=sys.stderr)
                return
            except subprocess.CalledProcessError:
                reason = "it does not compile here (pip install -v shows the compiler's words)"
            except (RuntimeError, OSError) as error:
                reason = str(error)
            library.unlink(missing_ok=True)
        self.built |= {part: None, "reason" if part == "cpu" else f"{part}_reason": reason}
        if off is None and asked is not None:
            raise RuntimeError(f"{asked} asks for the {title}, but: {reason}")
        print(f"spanbert-kernels: installing without the compiled {title}: {reason}", file=sys.stderr)

    def build_cpu(self, library: Path) -> dict[str, Any]:
        if not KERNELS:
            raise RuntimeError(f"the C++ sources are missing: there is no csrc/*/*cpu_kernels.cpp in {ROOT}")
        torch, compiler = find_torch(), find_compiler()
        common = [*compiler, "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
        common += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi"]
        common += [f"-I{ROOT / 'csrc'}", f"-I{torch / 'include'}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        sanitize = os.environ.get("SPANBERT_KERNELS_SANITIZE") == "1"
        sanitizers = SANITIZERS if sanitize else []
        isas = ISAS.get(sysconfig.get_platform().rpartition("-")[2], PORTABLE)
        everywhere = [name for name, isa in isas.items() if not isa.rooms]
        for macro, names in (("SPANBERT_ISAS", everywhere), ("SPANBERT_ALL_ISAS", isas)):
            common.append(f"-D{macro}(use,argument)=" + " ".join(f"use({name},argument)" for name in names))
        common += sanitizers
        units: list[tuple[str, str, list[str]]] = [(each, "", []) for each in BINDINGS + [CANARY] * sanitize]
        units += [
            (
                each,
                f".{name}",
                [
                    *isa.flags,
                    f"-DSPANBERT_ISA={name}",
                    f"-DSPANBERT_VECTOR_BYTES={isa.vector_bytes}",
                    f"-DSPANBERT_TILE_ROWS={isa.tile_rows}",
                    f"-DSPANBERT_TILE_VECTORS={isa.tile_vectors}",
                ],
            )
            for each in KERNELS + [CANARY_KERNELS] * sanitize
            for name, isa in isas.items()
            if not isa.rooms or Path(each).parent.name in isa.rooms
        ]
        link, libraries = [*compiler, "-shared", *sanitizers], [f"-L{torch / 'lib'}", "-ltorch_cpu", "-Wl,--as-needed"]
        self.compile_and_link("", common, units, link, library, libraries)
        rooms = {name: list(isa.rooms) for name, isa in isas.items() if isa.rooms}
        version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True)
        return {
            "cpu": everywhere,
            "cpu_rooms": rooms,
            "compiler": version.stdout.splitlines()[0],
            "torch": torch_version(torch),
        }

    def build_cuda(self, library: Path) -> dict[str, Any]:
        nvcc = find_nvcc()
        if nvcc is None:
            places = "$CUDA_HOME, on the PATH and in /usr/local/cuda"
            raise RuntimeError(f"no CUDA compiler found (looked for nvcc in {places})")
        torch, architectures = find_torch(), cuda_architectures()
        if torch_version(torch, "cuda") is None and not switched("1", "SPANBERT_KERNELS_CUDA"):
            raise RuntimeError("the installed PyTorch is not a CUDA build")
        common = [nvcc, "-std=c++20", "-O3", "--threads=4", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
        common += [f"-I{ROOT / 'csrc'}", f"-I{torch / 'include'}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        for number in architectures:
            codes = f"[sm_{number},compute_{number}]" if number == architectures[-1] else f"sm_{number}"
            common += ["-gencode", f"arch=compute_{number},code={codes}"]
        if "CXX" in os.environ:
            common += ["-ccbin", shlex.split(os.environ["CXX"])[0]]
        # A CPU build of PyTorch has no libtorch_cuda. An empty one of that name stands in for it, so that the library
        # asks for it where it is carried to: what is built here loads on a machine with a CUDA build.
        folders = [torch / "lib"]
        if not (torch / "lib" / "libtorch_cuda.so").is_file():
            folders.append(self.stand_in("torch_cuda"))
        libraries = [f"-L{folder}" for folder in folders]
        libraries += ["-Xlinker=--no-as-needed", "-ltorch_cuda", "-ltorch_cpu"]
        units: list[tuple[str, str, list[str]]] = [(each, "", []) for each in CUDA]
        self.compile_and_link("cuda", common, units, [nvcc, "-shared", "-cudart", "static"], library, libraries)
        return {"cuda": architectures}

    def stand_in(self, name: str) -> Path:
        """A folder with an empty library of this name."""
        folder = (ROOT / self.build_temp / "stand-in").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        command = [*find_compiler(), "-shared", f"-Wl,-soname,lib{name}.so", "-x", "c++", "/dev/null"]
        subprocess.run([*command, "-o", str(folder / f"lib{name}.so")], check=True)
        return folder

    def build_host(self, module: Path) -> dict[str, Any]:
        """The host module: pybind11, so of this Python alone, and without PyTorch."""
        if not (self.built["cpu"] or self.built["cuda"]):
            raise RuntimeError("without kernels the package stays pure Python, for every platform")
        try:
            import pybind11
        except ImportError as error:
            raise RuntimeError("pybind11 is not installed") from error
        compiler, python = find_compiler(), sysconfig.get_path("include")
        if not (Path(python) / "Python.h").is_file():
            raise RuntimeError(f"Python's headers are not installed (no Python.h in {python})")
        common = [*compiler, "-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall"]
        common += [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{python}"]
        units: list[tuple[str, str, list[str]]] = [(each, "", []) for each in HOST]
        self.compile_and_link("host", common, units, [*compiler, "-shared", "-pthread"], module, [])
        return {"host": module.name}

    def compile_and_link(
        self,
        part: str,
        compiler: list[str],
        units: list[tuple[str, str, list[str]]],
        linker: list[str],
        library: Path,
        libraries: list[str],
    ) -> None:
        """Compile each unit (source, suffix, flags) and link them all."""
        folder = (ROOT / self.build_temp / part).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        commands = {}
        for source, suffix, flags in units:
            name = source.removeprefix("csrc/").replace("/", "_").rpartition(".")[0]
            target = str(folder / f"{name}{suffix}.o")
            dependencies = ["-MMD", "-MF", f"{target}.d"]
            commands[target] = [*compiler, *flags, *dependencies, "-c", str(ROOT / source), "-o", target]
        compile_all(commands, folder)
        subprocess.run([*linker, *commands, "-o", str(library), *libraries], check=True)

    def get_outputs(self) -> list[str]:
        return []


class TagWheel(bdist_wheel):
    """Tags a wheel by what is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        built = self.get_finalized_command("build_ext").built
        # An editable wheel asks before anything is built.
        if not built or built["host"]:
            return python, abi, platform
        self.root_is_pure = not (built["cpu"] or built["cuda"])
        return "py3", "none", "any" if self.root_is_pure else platform


setup(
    # The list only makes setuptools call build_ext.
    ext_modules=[Extension("spanbert_kernels._lib", sources=[])],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": TagWheel},
)
