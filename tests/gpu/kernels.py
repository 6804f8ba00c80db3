"""Triton's kernels, compiled where there is no GPU for a machine that is lent for minutes.

    python tests/gpu/kernels.py make [--processes 2] [--only PATTERN]

fills a folder, and an archive of it, a tenth as large, to travel with the checkout. It is Triton's cache there, if it
is of these sources, this Triton and this GPU; what it lacks, Triton compiles as ever. What is compiled is what calls
launch: those of the operations' tables of cases, in the dtypes that gpu-check looks at first, and the rows of
`benchmarks/roof`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu" / "triton"
CAPABILITY = "90"
DESCRIPTION = "description.json"
GROUPS = "*/__grp__*.json"
ARCHIVE = ".tar.xz"  # behind the folder's name
PATHS = [str(ROOT), *(str(ROOT / folder) for folder in ("tests", "tests/ops", "tests/aot", "benchmarks"))]


def described(capability: str) -> dict[str, str]:
    """What kernels are made of: their sources, and what they are compiled by and for."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    for file in sorted((ROOT / "spanbert_kernels" / "ops").rglob("*.py")):
        digest.update(file.read_bytes())
    return {"sources": digest.hexdigest(), "triton": version("triton"), "capability": capability}


def refusal(folder: Path, capability: str) -> str | None:
    """Why a folder is not to be the cache, or None."""
    if not (folder / DESCRIPTION).is_file():
        return "no kernels were carried"
    carried, here = json.loads((folder / DESCRIPTION).read_text()), described(capability)
    differing = [f"{name} {carried.get(name)}, here {here[name]}" for name in here if carried.get(name) != here[name]]
    return f"the carried kernels are of {'; '.join(differing)}" if differing else None


def unpack(folder: Path) -> None:
    """The folder that an archive beside it holds, if there is only that."""
    archive = folder.with_name(folder.name + ARCHIVE)
    if archive.is_file() and not folder.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")


def pack(folder: Path) -> None:
    """An archive of the folder beside it."""
    with tarfile.open(folder.with_name(folder.name + ARCHIVE), "w:xz", preset=2) as packed:
        packed.add(folder, ".")


def settle(folder: Path) -> int:
    """Have Triton find the files where the folder lies now, for it keeps whole paths; the number of kernels."""
    groups = list(folder.glob(GROUPS))
    for group in groups:
        files = json.loads(group.read_text())["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.parent / name) for name in files}}))
    return len(groups)


def use(folder: Path) -> None:
    """Have this process's Triton look into the folder.

    Its keys begin with a hash of its own files, which differ by the version of Python that it was built for.
    """
    import triton
    from triton.runtime import cache

    os.environ["TRITON_CACHE_DIR"] = str(folder)
    cache.triton_key = lambda: triton.__version__


def environment(capability: str, folder: Path = FOLDER) -> dict[str, str]:
    """For a command that runs pytest, with the folder for a cache if it is to be one."""
    unpack(folder)
    paths = {"PYTHONPATH": os.pathsep.join(PATHS[:2])}
    if refusal(folder, capability) is not None:
        return paths
    settle(folder)
    return {**paths, "SPANBERT_KERNELS_CARRIED": str(folder), "PYTEST_PLUGINS": "gpu.carried"}


@contextmanager
def compiling() -> Iterator[list[tuple[str, bool]]]:
    """Calls inside compile what they would launch, by Triton's own keys; the kernels' names, and which were there."""
    from roof.recording import Recording, pretended
    from triton import knobs
    from triton.runtime import driver

    from spanbert_kernels.ops.aot import NoDevice

    found: list[tuple[str, bool]] = []

    def compile_alone(run: Callable[..., object], *_: Any) -> None:
        run(warmup=True)

    def note(*, src: Any, cache_hit: bool, **_: Any) -> None:
        found.append((src.name, cache_hit))

    with ExitStack() as stack:
        stack.enter_context(knobs.compilation.scope())
        knobs.compilation.listener = note
        stack.enter_context(mock.patch.object(driver, "_active", NoDevice()))
        stack.enter_context(pretended(Recording(), compile_alone))
        yield found


@functools.cache
def calls() -> dict[str, Callable[[], object]]:
    """What is compiled for, by name."""
    import torch
    from compile_triton import operation_modules
    from launches import cases_of
    from op_checks import Setting, run_setting
    from roof.workloads import WORKLOADS

    found: dict[str, Callable[[], object]] = {}
    for module in operation_modules():
        for case in cases_of(module):
            for dtype in (torch.float32, torch.bfloat16):
                name = f"{module.split('.')[-2]}, {case.name}, {str(dtype).removeprefix('torch.')}"
                found[name] = functools.partial(run_setting, Setting(case, dtype=dtype), "triton")
    for name, workload in WORKLOADS.items():
        found[name] = lambda workload=workload: workload.prepare().run()
    return found


def compile_call(name: str, folder: Path) -> list[tuple[str, bool]]:
    """Fill the folder with what a call launches."""
    use(folder)
    call = calls()[name]  # before anything pretends: what is imported for it asks the libraries
    with compiling() as found:
        call()
    return found


def attempt(name: str, folder: Path) -> tuple[list[tuple[str, bool]], str]:
    """What `compile_call` finds, or why it went wrong: kernels of other calls are worth as much without it."""
    try:
        return compile_call(name, folder), ""
    except Exception as error:  # whatever it is, it is told
        return [], f"left out: {name}: {type(error).__name__}: {str(error).splitlines()[0]}"


def names(pattern: str) -> list[str]:
    return [name for name in calls() if re.search(pattern, name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "look"], help="fill the folder, or say whether it is used here")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--capability", default=CAPABILITY, help="of the GPU that is looked for")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", metavar="PATTERN", help="calls whose names it is found in")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.what == "look":
        unpack(folder)
        reason = refusal(folder, arguments.capability)
        print(f"{settle(folder)} carried kernels" if reason is None else f"Triton compiles as it goes: {reason}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"  # a tenth of the size
    (folder / DESCRIPTION).unlink(missing_ok=True)
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        wanted = pool.submit(names, arguments.only).result()
        found = list(pool.map(attempt, wanted, [folder] * len(wanted)))
    (folder / DESCRIPTION).write_text(json.dumps(described(CAPABILITY)))
    pack(folder)
    compiled = sum(not was_there for kernels, _ in found for _, was_there in kernels)
    print("\n".join(reason for _, reason in found if reason))
    print(f"{len(wanted)} calls, {settle(folder)} kernels, {compiled} of them compiled now")


sys.path[:0] = [path for path in PATHS if path not in sys.path]
if __name__ == "__main__":
    importlib.import_module("gpu.kernels").main()
