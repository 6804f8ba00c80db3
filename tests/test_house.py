"""The layout that the code keeps: rooms of an operation, direction of imports, what importing the package loads."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import children
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "spanbert_kernels"
# Lowest first: a layer imports from itself and from those before it.
LAYERS = ("host", "ops", "nn", "acceleration", "integrations", "models", "data", "tasks", "cli")
VAGUE = ("utils", "util", "helpers", "helper", "misc")
MAX_LINES = 700
CODE = (".py", ".cpp", ".cu", ".h", ".cuh")


def operations(root: Path) -> list[str]:
    folder = root / PACKAGE / "ops"
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__")


def missing_rooms(root: Path) -> Iterator[str]:
    """Files that an operation lacks, and kernels without an operation."""
    for op in operations(root):
        rooms = [f"{PACKAGE}/ops/{op}/__init__.py", f"{PACKAGE}/ops/{op}/reference.py", f"tests/ops/test_{op}.py"]
        if (root / "csrc" / op).is_dir():
            rooms += [f"csrc/{op}/cpu.cpp", f"benchmarks/bench_{op}.py"]
        yield from (f"{op}: {room} is missing" for room in rooms if not (root / room).is_file())
    for folder in sorted((root / "csrc").glob("*/")):
        if folder.name not in ("common", "host", *operations(root)):
            yield f"csrc/{folder.name} belongs to no operation"


def imported_modules(path: Path, root: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, also inside functions and for type checkers."""
    module = path.relative_to(root).with_suffix("").parts
    package = module[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def upward_imports(root: Path) -> Iterator[str]:
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        if parts[0] not in LAYERS:
            if len(parts) > 1:
                yield f"{PACKAGE}/{parts[0]} is not a layer; there are {', '.join(LAYERS)}"
            continue
        for name in imported_modules(path, root):
            names = name.split(".")
            if names[0] != PACKAGE or len(names) < 2 or names[1] not in LAYERS:
                continue
            if LAYERS.index(names[1]) > LAYERS.index(parts[0]):
                yield f"{path.relative_to(root)} imports {name}: {parts[0]} stands below {names[1]}"


def vague_names(root: Path) -> Iterator[str]:
    for path in sorted((root / PACKAGE).rglob("*")):
        if path.stem in VAGUE:
            yield f"{path.relative_to(root)} says nothing about what is in it"


def long_files(root: Path) -> Iterator[str]:
    for folder in (PACKAGE, "csrc", "tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in CODE:
                lines = len(path.read_text().splitlines())
                if lines > MAX_LINES:
                    yield f"{path.relative_to(root)} has {lines} lines, more than {MAX_LINES}"


# What starts processes without the tests' own way: that way itself, and programs that run without the tests.
STARTERS = (
    "tests/children.py",
    "tests/test_house.py",
    "tests/aot/compile_triton.py",
    "tests/gpu/check.py",
    "tests/tasks/killed_trainings.py",
)
STARTS = re.compile(r"\b(subprocess\.(run|Popen|call|check_\w+)|os\.(system|popen|spawn\w+|fork))\(")
# What puts a file where it is wanted before it is whole, unless the line says that it goes aside or to a stream.
WRITERS = (f"{PACKAGE}/tasks/atomic.py", f"{PACKAGE}/cli/measuring.py", f"{PACKAGE}/cli/bench/running.py")
WRITES = re.compile(
    r"(?<!atomic)\.write_(text|bytes)\(|\bopen\([^)]*[\"'][wxa]b?[\"']"
    r"|(\b(torch\.save|save_file)|\.(save_model|savefig))\((?!.*\b(aside|stream)\b)"
)
PRINTERS = (f"{PACKAGE}/cli/terminal.py", f"{PACKAGE}/cli/errors.py")
PRINTS = re.compile(r"\bclick\.(echo|secho)\(|(?<![.\w])print\(|from rich\.console import|sys\.std(out|err)\.write")


def processes_not_ended(root: Path) -> Iterator[str]:
    for path, line in _lines_with(root, "tests", STARTS, STARTERS):
        yield f"{path}:{line} starts a process that nobody ends: use tests/children.py"


def files_not_written_aside(root: Path) -> Iterator[str]:
    for path, line in _lines_with(root, PACKAGE, WRITES, WRITERS):
        yield f"{path}:{line} writes a file in place: use {PACKAGE}/tasks/atomic.py"


def printing_past_the_terminal(root: Path) -> Iterator[str]:
    for path, line in _lines_with(root, f"{PACKAGE}/cli", PRINTS, PRINTERS):
        yield f"{path}:{line} prints what may hold controls: use {PACKAGE}/cli/terminal.py"


def _lines_with(
    root: Path, folder: str, pattern: re.Pattern[str], exceptions: tuple[str, ...]
) -> Iterator[tuple[str, int]]:
    for path in sorted((root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name in exceptions:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if pattern.search(line) and not line.lstrip().startswith((">>>", "...")):
                yield name, number


def files_of_one_name(root: Path) -> Iterator[str]:
    """One run of pytest refuses them: the tests' folders are no packages."""
    found: dict[str, Path] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        other = found.setdefault(path.name, path)
        if other != path:
            yield f"{path.relative_to(root)} has the name of {other.relative_to(root)}"


CHECKS = (
    files_of_one_name,
    missing_rooms,
    upward_imports,
    vague_names,
    long_files,
    processes_not_ended,
    files_not_written_aside,
    printing_past_the_terminal,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check: object) -> None:
    assert callable(check)
    assert list(check(ROOT)) == []


def test_there_is_something_to_check() -> None:
    assert {"span_pool", "span_gather", "document_attention", "cross_document_attention"} <= set(operations(ROOT))
    assert "torch.Tensor" in set(imported_modules(ROOT / PACKAGE / "ops" / "plans.py", ROOT))


IMPORT = """
import sys
import spanbert_kernels, spanbert_kernels.ops
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
bad = [name for name in sys.modules if name.split(".")[0] == "triton"]
bad += [name for name in ("spanbert_kernels_cpu.so", "spanbert_kernels_cuda.so", "libcuda.so") if name in maps]
import torch
bad += ["a CUDA context"] if torch.cuda.is_initialized() else []
print(bad)
"""
# Without torch's own modules: what the bare package loads.
BARE_IMPORT = (
    "import sys, spanbert_kernels; print([n for n in ('torch', 'transformers', 'triton') if n in sys.modules])"
)


@pytest.mark.parametrize("code", [IMPORT, BARE_IMPORT], ids=["with ops", "bare"])
def test_importing_loads_no_kernel_and_no_driver(code: str) -> None:
    done = children.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# A small house of its own, to see every check fail.


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        {
            "spanbert_kernels/__init__.py": "from spanbert_kernels import cli",
            "spanbert_kernels/ops/__init__.py": "",
            "spanbert_kernels/ops/plans.py": "import torch",
            "spanbert_kernels/ops/twist/__init__.py": "from . import reference\nfrom .. import plans",
            "spanbert_kernels/ops/twist/reference.py": "import torch",
            "spanbert_kernels/nn/__init__.py": "from spanbert_kernels.ops import twist",
            "spanbert_kernels/cli/__init__.py": "def main():\n    from spanbert_kernels.nn import layer",
            "tests/ops/test_twist.py": "",
            "benchmarks/bench_twist.py": "",
            "csrc/twist/cpu.cpp": "",
            "csrc/common/vector.h": "",
        },
    )


def complaints(root: Path) -> list[str]:
    return [text for check in CHECKS for text in check(root)]


def test_a_house_in_order_gets_no_complaint(house: Path) -> None:
    assert complaints(house) == []


@pytest.mark.parametrize(
    ("room", "complaint"),
    [
        ("spanbert_kernels/ops/twist/__init__.py", "twist: spanbert_kernels/ops/twist/__init__.py is missing"),
        ("spanbert_kernels/ops/twist/reference.py", "twist: spanbert_kernels/ops/twist/reference.py is missing"),
        ("tests/ops/test_twist.py", "twist: tests/ops/test_twist.py is missing"),
        ("csrc/twist/cpu.cpp", "twist: csrc/twist/cpu.cpp is missing"),
        ("benchmarks/bench_twist.py", "twist: benchmarks/bench_twist.py is missing"),
    ],
)
def test_a_missing_room(house: Path, room: str, complaint: str) -> None:
    (house / room).unlink()
    assert complaints(house) == [complaint]


def test_an_operation_without_kernels_needs_no_benchmark(house: Path) -> None:
    (house / "csrc/twist/cpu.cpp").unlink()
    (house / "csrc/twist").rmdir()
    (house / "benchmarks/bench_twist.py").unlink()
    assert complaints(house) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("csrc/shout/cpu.cpp", "", "csrc/shout belongs to no operation"),
        ("tests/nn/test_twist.py", "", "tests/ops/test_twist.py has the name of tests/nn/test_twist.py"),
        ("tests/ops/a.py", "subprocess.run(['a'])", "tests/ops/a.py:1 starts a process that nobody ends"),
        ("tests/ops/a.py", "import os\nos.fork()", "tests/ops/a.py:2 starts a process that nobody ends"),
        ("spanbert_kernels/nn/a.py", "path.write_text('a')", "nn/a.py:1 writes a file in place"),
        ("spanbert_kernels/nn/a.py", "with open(path, 'w') as file:\n    pass", "nn/a.py:1 writes a file in place"),
        ("spanbert_kernels/nn/a.py", "figure.savefig(path)", "nn/a.py:1 writes a file in place"),
        ("spanbert_kernels/cli/a.py", "click.echo(name)", "cli/a.py:1 prints what may hold controls"),
        ("spanbert_kernels/cli/a.py", "print(name)", "cli/a.py:1 prints what may hold controls"),
        ("spanbert_kernels/nn/utils.py", "", "spanbert_kernels/nn/utils.py says nothing about what is in it"),
        ("spanbert_kernels/ops/helpers.py", "", "spanbert_kernels/ops/helpers.py says nothing about what is in it"),
        ("spanbert_kernels/attic/x.py", "", "spanbert_kernels/attic is not a layer; there are host, ops, nn"),
        ("spanbert_kernels/nn/long.py", "x = 1\n" * 701, "spanbert_kernels/nn/long.py has 701 lines, more than 700"),
        (
            "spanbert_kernels/nn/a.py",
            "import spanbert_kernels.cli",
            "imports spanbert_kernels.cli: nn stands below cli",
        ),
        ("spanbert_kernels/nn/a.py", "from spanbert_kernels import cli", "nn/a.py imports spanbert_kernels.cli"),
        (
            "spanbert_kernels/nn/a.py",
            "from ..cli import main",
            "imports spanbert_kernels.cli.main: nn stands below cli",
        ),
        ("spanbert_kernels/nn/a.py", "from .. import models", "nn stands below models"),
        ("spanbert_kernels/ops/a.py", "def f():\n    from spanbert_kernels.nn import x", "ops stands below nn"),
        (
            "spanbert_kernels/acceleration/a.py",
            "import spanbert_kernels.models as m",
            "acceleration stands below models",
        ),
    ],
)
def test_what_does_not_belong(house: Path, name: str, text: str, complaint: str) -> None:
    found = complaints(write(house, {name: text}))
    assert len(found) == 1
    assert complaint in found[0]
