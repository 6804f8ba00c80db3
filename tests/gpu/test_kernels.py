"""Kernels compiled here and found there: what is refused, where they lie, and that nothing is compiled twice."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import children
import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from gpu import kernels, stages

ROOT = kernels.ROOT


def carried(folder: Path, **changes: str) -> Path:
    """A folder with a kernel that was compiled somewhere else."""
    kept = folder / "KEY"
    kept.mkdir(parents=True)
    (kept / "add.cubin").write_bytes(b"")
    group = {"child_paths": {"add.cubin": "/elsewhere/KEY/add.cubin"}}
    (kept / "__grp__add.json").write_text(json.dumps(group))
    (folder / kernels.DESCRIPTION).write_text(json.dumps({**kernels.described("90"), **changes}))
    return folder


@pytest.mark.parametrize(("name", "other"), [("sources", "0"), ("triton", "3.5"), ("capability", "80")])
def test_kernels_of_something_else_are_refused(tmp_path: Path, name: str, other: str) -> None:
    folder = carried(tmp_path, **{name: other})
    reason = kernels.refusal(folder, "90")
    assert reason == f"the carried kernels are of {name} {other}, here {kernels.described('90')[name]}"
    assert list(kernels.environment("90", folder)) == ["PYTHONPATH"]
    assert kernels.refusal(tmp_path / "none", "90") == "no kernels were carried"


def test_files_are_found_where_the_folder_lies(tmp_path: Path) -> None:
    folder = carried(tmp_path)
    environment = kernels.environment("90", folder)
    group = json.loads((folder / "KEY" / "__grp__add.json").read_text())
    assert group["child_paths"] == {"add.cubin": str(folder / "KEY" / "add.cubin")}
    assert environment["SPANBERT_KERNELS_CARRIED"] == str(folder)
    assert environment["PYTEST_PLUGINS"] == "gpu.carried"
    assert all(
        (Path(path) / "tests" / "gpu").is_dir() or Path(path).name == "tests"
        for path in environment["PYTHONPATH"].split(os.pathsep)
    )


def test_an_archive_becomes_the_folder(tmp_path: Path) -> None:
    folder = carried(tmp_path / "made")
    kernels.pack(folder)
    (tmp_path / "there").mkdir()
    elsewhere = tmp_path / "there" / folder.name
    shutil.move(f"{folder}{kernels.ARCHIVE}", f"{elsewhere}{kernels.ARCHIVE}")
    assert "SPANBERT_KERNELS_CARRIED" in kernels.environment("90", elsewhere)
    assert sorted(path.name for path in elsewhere.rglob("*")) == sorted(path.name for path in folder.rglob("*"))


def test_the_stages_that_launch_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.environment, "__defaults__", (carried(tmp_path),))
    taken = {
        name: all("SPANBERT_KERNELS_CARRIED" in step.environment for step in stage.steps({}, tmp_path / "journal"))
        for name, stage in stages.STAGES.items()
    }
    assert [name for name, takes in taken.items() if takes] == ["values", "roof", "encoder", "bench", "rest"]


SECOND = """
import os
from pathlib import Path
from gpu import kernels
folder = Path(os.environ["SPANBERT_KERNELS_CARRIED"])
found = [each for name in kernels.names({only!r}) for each in kernels.compile_call(name, folder)]
print(len(found), sum(not was_there for _, was_there in found))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """By Triton's own keys, with the folder in another place; both processes see a driver that there is not."""
    only = r"^span_gather, packed"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "TRITON_CACHE_DIR")
    }
    first = tmp_path / "first"
    make = [sys.executable, "tests/gpu/kernels.py", "make", "--folder", str(first), "--processes", "1", "--only", only]
    made = children.run(make, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    second = tmp_path / "second"
    shutil.move(first, second)
    environment |= kernels.environment("90", second)
    again = children.run(
        [sys.executable, "-c", SECOND.format(only=only)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr[-3000:]
    launched, compiled = map(int, again.stdout.split())
    assert launched > 0
    assert compiled == 0
