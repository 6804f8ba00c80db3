"""Builds the CUDA kernels for a CPU (fibers.h) and registers them for CPU tensors, in a namespace of their own."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import children
import torch

import spanbert_kernels.ops  # noqa: F401  (defines the raw operators)

NAMESPACE = "spanbert_kernels_fibers"
HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
TORCH = Path(torch.__file__).resolve().parent
# -fsanitize=undefined stops at what C++ leaves undefined: shifts, overflow, alignment, array bounds. Hardly optimised:
# the tests' few small launches cost less than the compiler's work would.
FLAGS = ["-std=c++20", "-Og", "-fPIC", "-fvisibility=hidden", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"]
FLAGS += [f"-DSPANBERT_NAMESPACE={NAMESPACE}", "-DSPANBERT_KEY=CPU"]
FLAGS += [f"-I{CSRC}", f"-I{HERE}", f"-I{TORCH / 'include'}"]

_definitions: list[torch.library.Library] = []


def sources() -> list[Path]:
    """The CUDA files, one an operation."""
    return sorted(CSRC.glob("*/cuda.cu"))


@functools.cache
def load() -> str | None:
    """Build and load the library once. Returns None when it works, else the reason why not."""
    compiler = next(
        (name for name in (os.environ.get("CXX"), "g++") if name and shutil.which(shlex.split(name)[0])), None
    )
    if compiler is None:
        return "no C++ compiler found (looked for $CXX, g++)"
    if not sources():
        return f"there are no CUDA sources in {CSRC}"
    library = Path(tempfile.gettempdir()) / f"{NAMESPACE}-{os.getuid()}-{_key(compiler)}.so"
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test runs, one builds
        if not library.is_file():
            build(shlex.split(compiler), library)
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for source in sources():
        for name in re.findall(r'library\.impl\("(\w+)"', source.read_text()):
            original = getattr(torch.ops.spanbert_kernels, name)
            definitions.define(str(original.default._schema).removeprefix("spanbert_kernels::"))
            torch.library.register_fake(f"{NAMESPACE}::{name}", original, lib=definitions)
    _definitions.append(definitions)
    torch.ops.load_library(str(library))
    return None


def build(compiler: list[str], library: Path) -> None:
    """Compile the files side by side and link them; the finished library appears at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = {source: Path(folder) / f"{source.parent.name}.o" for source in sources()}

        def compile_one(source: Path) -> None:
            command = [*compiler, *FLAGS, "-x", "c++", "-c", str(source), "-o", str(objects[source])]
            children.run(command, check=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        linked = Path(folder) / "linked.so"
        link = [*compiler, "-shared", "-fsanitize=undefined", *map(str, objects.values()), "-o", str(linked)]
        children.run([*link, f"-L{TORCH / 'lib'}", "-ltorch_cpu"], check=True)
        linked.replace(library)


def _key(compiler: str) -> str:
    """Changes with everything that the library is built from."""
    files = [*HERE.glob("*.h"), *CSRC.glob("common/*.h"), *CSRC.glob("*/arguments.h"), *CSRC.glob("*/cuda*")]
    digest = hashlib.sha256(f"{compiler} {FLAGS} {torch.__version__}".encode())
    for file in sorted(files):
        digest.update(str(file).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
