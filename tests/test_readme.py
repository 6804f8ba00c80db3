"""The README's examples run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import children
import pytest

from spanbert_kernels import SpanBERTModel, ops
from spanbert_kernels.tasks.start import Start

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def checkpoint(folder: Path) -> None:
    """A small model with a vocabulary of the example's words, as any folder that transformers wrote."""
    start = Start(size="tiny", vocabulary_size=80)
    tokenizer = start.tokenizer(["Anna lives in Oslo", "Boris went home", "it rains in Lima"] * 2)
    start.build(SpanBERTModel, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(example: str, tmp_path: Path) -> None:
    needs = 'from_pretrained("checkpoint"' in example
    if needs:
        checkpoint(tmp_path / "checkpoint")
    command = [sys.executable, "-W", "error", "-c", example]
    ran = children.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    if needs:
        assert "Anna lives in Oslo ['PERSON', 'O', 'O', 'PLACE']" in ran.stdout
        assert "accuracy 1.00" in ran.stdout


def test_table_of_operations_and_backends() -> None:
    """Each cell says yes, or who serves the call and, in a note, why."""
    columns = ("cuda", "triton", "cpu", "eager")
    rows = re.findall(r"^\| `(\w+)` \|.*?\|(.*?)\|(.*?)\|(.*?)\|(.*?)\|$", README, re.MULTILINE)
    table = {name: dict(zip(columns, (cell.strip() for cell in cells), strict=True)) for name, *cells in rows}
    assert set(table) == {name for name, _ in registry()}
    for name, backends in registry():
        for column, cell in table[name].items():
            if column in backends:
                assert cell == "yes", (name, column)
            else:
                server, note = re.fullmatch(r"`(\w+)` (\[\w\])", cell).groups()  # type: ignore[union-attr]
                assert server in backends, (name, column)
                assert f"{note} " in README.split("Where another backend is named")[1]


def test_speed_tables_are_those_of_the_newest_record() -> None:
    done = check_tables(Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_typed_figure_is_found(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    shutil.copytree(root / "benchmarks", tmp_path / "benchmarks")
    typed, changes = re.subn(r"(speed: encoder -->\n.*\n.*\n\| [^|]*\| )\d+", r"\g<1>1", README, count=1)
    assert changes == 1
    (tmp_path / "README.md").write_text(typed, encoding="utf-8")
    done = check_tables(tmp_path)
    assert done.returncode == 1
    assert "README.md differs from the records" in done.stdout


def check_tables(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "benchmarks" / "readme_tables.py"), "--check"]
    return children.run(command, capture_output=True, text=True, check=False)


def registry() -> list[tuple[str, tuple[str, ...]]]:
    return [(name, backends) for name, backends in ops.backends._registry.items() if hasattr(ops, name)]
