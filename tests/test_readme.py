"""The README is short, its table is that of the newest record, and so are those of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import readme_tables

    return readme_tables


def test_it_is_read_in_two_minutes() -> None:
    assert len(README.splitlines()) < 140


def test_tables_are_those_of_the_newest_record(tables: ModuleType) -> None:
    done = CliRunner().invoke(tables.main, ["--check"])
    assert done.exit_code == 0, done.output


def test_a_typed_figure_is_found(tables: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    monkeypatch.setattr(tables, "PAGES", (page,))
    typed, changes = re.subn(r"(speed: encoder -->\n.*\n.*\n\| [^|]*\| )\d+", r"\g<1>1", README, count=1)
    assert changes == 1
    page.write_text(typed, encoding="utf-8")
    done = CliRunner().invoke(tables.main, ["--check"])
    assert done.exit_code == 1
    assert "README.md differs from the records" in done.output


def test_every_page_with_a_table_is_checked(tables: ModuleType) -> None:
    marked = {path for path in ROOT.rglob("*.md") if tables.MARKED.search(path.read_text(encoding="utf-8"))}
    assert marked == set(tables.PAGES)
