"""The layout that the code keeps: rooms of an operation, direction of imports, what importing the package loads."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import children
import pytest

from spanbert_kernels import __main__, extras

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings there

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "spanbert_kernels"
# Lowest first: a layer imports from itself and from those before it.
LAYERS = (
    *("extras", "testing", "host", "auto_classes", "ops", "nn", "acceleration", "integrations", "models"),
    *("data", "tasks", "scale", "cli", "__main__"),
)
# What a layer may import beyond the package's own dependencies: an extra of pyproject.toml, or libraries by name.
EXTRAS = {
    **{"data": "data", "tasks": "tasks", "scale": "scale", "cli": "cli"},
    **{"ops": "triton", "integrations": "integrations"},
}
# Modules that are not called as the distribution that brings them.
BRINGS = {
    "torch": ("typing_extensions",),
    "transformers": ("huggingface_hub", "packaging", "safetensors", "tokenizers", "tqdm"),
    "jinja2": ("markupsafe",),
    "rouge-score": ("rouge_score",),
    "scikit-learn": ("sklearn",),
    "spacy": ("thinc",),
    "ufal.chu_liu_edmonds": ("ufal",),
}
SHARED = ("attention",)  # rooms beside the operations, of what some of them have in common
VAGUE = ("utils", "util", "helpers", "helper", "misc")
PRIVATE = re.compile(r"_(?!_|fields$|replace$|asdict$|make$)")
MAX_LINES = 700
CODE = (".py", ".cpp", ".cu", ".h", ".cuh")


def operations(root: Path) -> list[str]:
    folder = root / PACKAGE / "ops"
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in ("__pycache__", *SHARED))


def missing_rooms(root: Path) -> Iterator[str]:
    """Files that an operation lacks, and kernels without an operation."""
    for op in operations(root):
        rooms = [f"{PACKAGE}/ops/{op}/__init__.py", f"tests/ops/test_{op}.py"]
        if (root / "csrc" / op).is_dir() or (root / PACKAGE / "ops" / op / "triton.py").is_file():
            # Without kernels the public function may be the definition itself.
            rooms += [f"{PACKAGE}/ops/{op}/reference.py", f"benchmarks/bench_{op}.py"]
        if (root / "csrc" / op).is_dir():
            rooms.append(f"csrc/{op}/cpu.cpp")
        yield from (f"{op}: {room} is missing" for room in rooms if not (root / room).is_file())
    for folder in sorted((root / "csrc").glob("*/")):
        if folder.name not in ("common", "host", *SHARED, *operations(root)):
            yield f"csrc/{folder.name} belongs to no operation"


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def imported_modules(path: Path, root: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, also inside functions and for type checkers."""
    module = path.relative_to(root).with_suffix("").parts
    package = module[:-1]
    for node in ast.walk(parsed(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def upward_imports(root: Path) -> Iterator[str]:
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        if parts == ("__init__",):  # the names that users import, each of its layer
            continue
        if parts[0] not in LAYERS:
            yield f"{PACKAGE}/{parts[0]} is not a layer; there are {', '.join(LAYERS)}"
            continue
        for name in imported_modules(path, root):
            names = name.split(".")
            if names[0] != PACKAGE or len(names) < 2 or names[1] not in LAYERS:
                continue
            if LAYERS.index(names[1]) > LAYERS.index(parts[0]):
                yield f"{path.relative_to(root)} imports {name}: {parts[0]} stands below {names[1]}"


def declared(project: dict[str, Any], lines: list[str]) -> Iterator[str]:
    """Modules that requirements bring, those of the extras that they name among them."""
    for line in lines:
        name = re.split(r"[\s<>=;\[]", line)[0]
        if name == project["name"]:
            for extra in re.findall(r"[\w-]+", line[len(name) :]):
                yield from declared(project, project["optional-dependencies"][extra])
        else:
            yield from (name, *BRINGS.get(name, ()))


def undeclared_imports(root: Path) -> Iterator[str]:
    """Imports of what an installation with a layer's dependencies alone does not have."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for path in sorted((root / PACKAGE).rglob("*.py")):
        layer = path.relative_to(root / PACKAGE).with_suffix("").parts[0]
        lines = project["dependencies"] + extras.get(EXTRAS.get(layer), [])
        known = {PACKAGE, *sys.stdlib_module_names, *declared(project, lines)}
        for name in sorted({each.split(".")[0] for each in imported_modules(path, root)} - known):
            yield f"{path.relative_to(root)} imports {name}, which neither the package nor {layer}'s extra brings"


def private_names(root: Path) -> Iterator[str]:
    """Names with an underscore that one of our modules takes from another; those of named tuples are public."""
    for folder in (PACKAGE, "benchmarks"):
        own = {PACKAGE, *(path.stem for path in (root / "benchmarks").glob("*") if folder == "benchmarks")}
        for path in sorted((root / folder).rglob("*.py")):
            nodes = list(ast.walk(parsed(path.read_text())))
            imported: dict[str, str] = {}
            for node in nodes:
                if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).split(".")[0] in own):
                    imported |= {alias.asname or alias.name: alias.name for alias in node.names}
                elif isinstance(node, ast.Import):
                    names = ((alias.asname, alias.name.split(".")[0]) for alias in node.names)
                    imported |= {called or name: name for called, name in names if name in own}
            taken = {name for name in imported.values() if PRIVATE.match(name)}
            taken |= {
                ast.unparse(node)
                for node in nodes
                if isinstance(node, ast.Attribute)
                and PRIVATE.match(node.attr)
                and ast.unparse(node.value).split(".")[0] in imported
            }
            yield from (f"{path.relative_to(root)} takes {name}, another module's own" for name in sorted(taken))


KERNELS = ("triton*.py", "operators.py", "reference.py")


def kernels_that_import_back(root: Path) -> Iterator[str]:
    """Kernels, raw operators and definitions take nothing from their operation's public module, nor from another's."""
    ops = root / PACKAGE / "ops"
    for path in sorted(path for pattern in KERNELS for path in ops.glob(f"*/{pattern}")):
        for name in imported_modules(path, root):
            package = ops.joinpath(*name.split(".")[2:3])
            if name.startswith(f"{PACKAGE}.ops.") and package.is_dir() and name.count(".") > 2:
                module = package / name.split(".")[3]
                if not module.with_suffix(".py").is_file() and not module.is_dir():
                    yield f"{path.relative_to(root)} imports {name} from what is public: kernels do not import back"


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
    "tests/gpu/check.py",
    "tests/gpu/steps.py",
)
STARTS = re.compile(r"\b(subprocess\.(run|Popen|call|check_\w+)|os\.(system|popen|spawn\w+|fork))\(")
# What puts a file where it is wanted before it is whole, unless the line says that it goes aside or to a stream.
WRITERS = (f"{PACKAGE}/tasks/atomic.py", f"{PACKAGE}/cli/measuring.py", "benchmarks/records/running.py")
WRITES = re.compile(
    r"(?<!atomic)\.write_(text|bytes)\(|\bopen\([^)]*[\"'][wxa]b?[\"']"
    r"|(\b(torch\.save|save_file)|\.(save_model|savefig))\((?!.*\b(aside|stream)\b)"
)
PRINTERS = (f"{PACKAGE}/cli/terminal.py", f"{PACKAGE}/cli/errors.py")
PRINTS = re.compile(r"\bclick\.(echo|secho)\(|(?<![.\w])print\(|from rich\.console import|sys\.std(out|err)\.write")


def processes_not_ended(root: Path) -> Iterator[str]:
    for path, line in _lines_with(root, ("tests",), STARTS, STARTERS):
        yield f"{path}:{line} starts a process that nobody ends: use tests/children.py"


def files_not_written_aside(root: Path) -> Iterator[str]:
    for path, line in _lines_with(root, (PACKAGE, "benchmarks/records"), WRITES, WRITERS):
        yield f"{path}:{line} writes a file in place: use {PACKAGE}/tasks/atomic.py"


def printing_past_the_terminal(root: Path) -> Iterator[str]:
    for path, line in _lines_with(root, (f"{PACKAGE}/cli", "benchmarks/records"), PRINTS, PRINTERS):
        yield f"{path}:{line} prints what may hold controls: use {PACKAGE}/cli/terminal.py"


def _lines_with(
    root: Path, folders: tuple[str, ...], pattern: re.Pattern[str], exceptions: tuple[str, ...]
) -> Iterator[tuple[str, int]]:
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
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


def classes_of_one_name(root: Path) -> Iterator[str]:
    """One name is one thing, also for who reads two modules."""
    found: dict[str, str] = {}
    for path in sorted(path for folder in (PACKAGE, "benchmarks") for path in (root / folder).rglob("*.py")):
        for node in ast.walk(parsed(path.read_text())):
            if isinstance(node, ast.ClassDef):
                place = f"{path.relative_to(root)}:{node.lineno}"
                if (other := found.setdefault(node.name, place)) != place:
                    yield f"{place} has a class {node.name} as {other} has"


CHECKS = (
    files_of_one_name,
    classes_of_one_name,
    missing_rooms,
    upward_imports,
    kernels_that_import_back,
    undeclared_imports,
    private_names,
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
    "import sys, spanbert_kernels; print([n for n in ('numpy', 'torch', 'transformers', 'triton') if n in sys.modules])"
)


@pytest.mark.parametrize("code", [IMPORT, BARE_IMPORT], ids=["with ops", "bare"])
def test_importing_loads_no_kernel_and_no_driver(code: str) -> None:
    done = children.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


class Absent(importlib.abc.MetaPathFinder):
    """An environment without the libraries of any extra."""

    names = frozenset(("click", "conllu", "jinja2", "matplotlib", "psutil", "rich", "sklearn", "triton"))

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in Absent.names or name.startswith(f"{PACKAGE}.cli"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])


@pytest.mark.usefixtures("without_extras")
def test_the_state_of_a_machine_needs_no_extra(capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("spanbert-kernels ")
    (row,) = [line for line in lines if line.startswith("  span_pool ")]
    assert re.fullmatch(r"  span_pool +(no \(\d\)|yes) +(no \(\d\)|yes) +(no \(\d\)|yes) +yes", row)
    assert lines[-1].startswith("(")


@pytest.mark.usefixtures("without_extras")
def test_commands_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries by name: they alone can be installed from anywhere."""
    requires = [
        "torch",
        'spanbert-kernels[data]; extra == "cli"',
        'click>=8.1; extra == "cli"',
        'psutil>5; extra == "data"',
    ]
    there = {"psutil": "6"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    with pytest.raises(SystemExit) as ended:
        __main__.commands()
    assert ended.value.code == "Error: this needs click: pip install 'click>=8.1'"
    there.clear()
    assert extras.advice("click", "cli") == "this needs click: pip install 'psutil>5' 'click>=8.1'"


# A small house of its own, to see every check fail.


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PROJECT = """
[project]
name = "spanbert-kernels"
dependencies = ["torch>=2.10"]
[project.optional-dependencies]
triton = ["triton>=3.6"]
data = ["conllu>=6"]
cli = ["spanbert-kernels[data]", "rich"]
tasks = ["scikit-learn>=1.3; python_version > '3'"]
"""


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
            "pyproject.toml": PROJECT,
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


def test_an_operation_without_kernels_needs_neither_reference_nor_benchmark(house: Path) -> None:
    (house / "csrc/twist/cpu.cpp").unlink()
    (house / "csrc/twist").rmdir()
    (house / "benchmarks/bench_twist.py").unlink()
    (house / "spanbert_kernels/ops/twist/reference.py").unlink()
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
        ("benchmarks/records/a.py", "print(name)", "records/a.py:1 prints what may hold controls"),
        ("benchmarks/records/a.py", "path.write_text('a')", "records/a.py:1 writes a file in place"),
        ("spanbert_kernels/cli/a.py", "from records import table", "cli/a.py imports records, which neither"),
        (
            "benchmarks/a.py",
            "class A:\n    pass\n\n\nclass A:\n    pass",
            "benchmarks/a.py:5 has a class A as benchmarks/a.py:1 has",
        ),
        ("spanbert_kernels/nn/utils.py", "", "spanbert_kernels/nn/utils.py says nothing about what is in it"),
        ("spanbert_kernels/ops/helpers.py", "", "spanbert_kernels/ops/helpers.py says nothing about what is in it"),
        ("spanbert_kernels/attic/x.py", "", "spanbert_kernels/attic is not a layer; there are extras, testing, host"),
        ("spanbert_kernels/attic.py", "", "spanbert_kernels/attic is not a layer; there are extras, testing, host"),
        ("spanbert_kernels/nn/a.py", "import rich", "nn/a.py imports rich, which neither the package nor nn's extra"),
        ("spanbert_kernels/data/a.py", "def f():\n    import sklearn", "data/a.py imports sklearn, which neither"),
        ("spanbert_kernels/__main__.py", "import click", "__main__.py imports click, which neither"),
        (
            "spanbert_kernels/nn/a.py",
            "from spanbert_kernels.ops.plans import _load",
            "nn/a.py takes _load, another module's own",
        ),
        ("spanbert_kernels/nn/a.py", "from ..ops import plans as p\np.x._load(1)", "nn/a.py takes p.x._load, another"),
        (
            "benchmarks/a.py",
            "import bench_twist\nbench_twist._load",
            "benchmarks/a.py takes bench_twist._load, another",
        ),
        ("spanbert_kernels/nn/long.py", "x = 1\n" * 701, "spanbert_kernels/nn/long.py has 701 lines, more than 700"),
        (
            "spanbert_kernels/nn/a.py",
            "import spanbert_kernels.cli",
            "imports spanbert_kernels.cli: nn stands below cli",
        ),
        ("spanbert_kernels/nn/a.py", "from spanbert_kernels import cli", "nn/a.py imports spanbert_kernels.cli"),
        (
            "spanbert_kernels/ops/twist/triton.py",
            "from spanbert_kernels.ops.twist import check",
            "ops/twist/triton.py imports spanbert_kernels.ops.twist.check from what is public",
        ),
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
