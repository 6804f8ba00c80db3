"""Compiles the Triton kernels ahead of time, without a GPU, and says what each needs.

    python tests/aot/compile_triton.py [--print] [--everyday] [--architecture NUMBER ...] [module ...]

By default every configuration of every `spanbert_kernels/ops/<op>/triton.py`, for all architectures; with --everyday
without those of attention between rows of one role, with every combination of roles and links for heads of 64 columns
in bfloat16 alone, and without others whose names say so. Writes JSON, or with --print a table. Not under
TRITON_INTERPRET=1, which leaves nothing to compile.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
ARCHITECTURES = (80, 90, 100, 120)
PROCESSES = 2
SELDOM = re.compile(
    "tokens to tokens|anchors to anchors|seldom|links, no dropout"
    "|(?<!bf16 64), (anchors to tokens|tokens to anchors, links)"
)
WARP_GROUPS = (90, 100)  # whose products some configurations are made for, and some for others, as their names say
sys.path.append(str(ROOT / "benchmarks"))


def operation_modules() -> list[str]:
    """The modules of all operations that have Triton kernels."""
    files = sorted((ROOT / "spanbert_kernels" / "ops").glob("*/triton.py"))
    return [f"spanbert_kernels.ops.{file.parent.name}.triton" for file in files]


@functools.cache
def configurations(module: str) -> list[Any]:
    """A module's: a process asks for them once, not for each that it compiles."""
    return list(importlib.import_module(module).aot_configurations())


def names_of(module: str) -> list[str]:
    return [configuration.name for configuration in configurations(module)]


def is_for(name: str, architecture: int) -> bool:
    """Whether a configuration of that name is made for GPUs of an architecture."""
    return "warp groups" not in name or ("no warp groups" in name) != (architecture in WARP_GROUPS)


def compile_one(module: str, index: int, architecture: int) -> dict[str, Any]:
    """Compile one configuration; what it needs, or the error."""
    from roof.compiling import compiled

    configuration = configurations(module)[index]
    found: dict[str, Any] = {"module": module, "name": configuration.name, "architecture": architecture}
    try:
        kernel = compiled(configuration, architecture)
    except Exception as error:  # whatever the compiler raises is the result
        return {**found, "error": f"{type(error).__name__}: {error}"}
    return found | {name: getattr(kernel, name) for name in ("registers", "stack", "local", "shared")}


def compile_all(modules: Sequence[str], architectures: Sequence[int], everyday: bool = False) -> list[dict[str, Any]]:
    # Spawned, not forked: the parent may run threads.
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        names = list(pool.map(names_of, modules))
        jobs = [
            (module, index, architecture)
            for module, its_names in zip(modules, names, strict=True)
            for index, name in enumerate(its_names)
            if not (everyday and SELDOM.search(name))
            for architecture in architectures
            if is_for(name, architecture)
        ]
        return list(pool.map(compile_one, *zip(*jobs, strict=True))) if jobs else []


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'operation':<28}{'configuration':<40}{'sm':>4}{'registers':>11}{'stack':>7}{'local':>7}{'shared':>8}"]
    for one in results:
        operation = one["module"].removeprefix("spanbert_kernels.ops.").removesuffix(".triton")
        line = f"{operation:<28}{one['name']:<40}{one['architecture']:>4}"
        if "error" in one:
            line += f"  {one['error'].splitlines()[0]}"
        else:
            line += f"{one['registers']:>11}{one['stack']:>7}{one['local']:>7}{one['shared']:>8}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="modules with aot_configurations(); by default all operations'")
    parser.add_argument("--print", action="store_true", help="a table instead of JSON")
    parser.add_argument("--everyday", action="store_true", help="what every test run compiles")
    parser.add_argument("--architecture", type=int, action="append", help="such as 90; may be repeated")
    arguments = parser.parse_args()
    results = compile_all(
        arguments.modules or operation_modules(), arguments.architecture or ARCHITECTURES, arguments.everyday
    )
    print(table(results) if arguments.print else json.dumps(results))


if __name__ == "__main__":
    main()
