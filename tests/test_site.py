"""How the documentation is built: what its pages take from the code, and which faults of a built site are found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import children
import pytest

from spanbert_kernels.acceleration.families import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def loaded(name: str) -> ModuleType:
    """A module of docs/making, which is no package."""
    spec = importlib.util.spec_from_file_location(f"making_{name}", DOCS / "making" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mark_of_every_page_is_filled() -> None:
    hooks = loaded("hooks")
    for page in sorted(DOCS.rglob("*.md")):
        built = hooks.on_page_markdown(page.read_text(encoding="utf-8"))
        assert not any(mark in built for mark in ("<!-- generated", "<!-- reference", "<!-- file", "](pictures")), page


def test_the_accelerated_classes_are_those_of_the_table() -> None:
    built = loaded("hooks").on_page_markdown((DOCS / "drop-in.md").read_text(encoding="utf-8"))
    for family in FAMILIES:
        assert f"| `{family.model_class}` | `{family.module}` |" in built
    assert f"<!-- families -->\n{loaded('hooks').families_by_layers()}\n<!-- end -->" in README


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('<a href="b.html#there">x</a><img src="c.svg"><a href="https://example.org">y</a>', None),
        ('<a href="d.html">x</a>', "a.html links to d.html, which is not there"),
        ('<a href="b.html#gone">x</a>', "a.html links to b.html#gone, but there is no such heading"),
        ('<img src="e.png">', "a.html links to e.png, which is not there"),
        ('<script src="https://example.org/x.js"></script>', "a.html loads https://example.org/x.js"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "a.html loads //example.org/x.css"),
    ],
)
def test_faults_of_a_site(tmp_path: Path, page: str, fault: str | None) -> None:
    for name, text in (("a.html", page), ("b.html", '<h2 id="there">'), ("c.svg", "<svg/>"), ("f.css", "url(x.png)")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(loaded("links").faults(tmp_path)) == ([] if fault is None else [fault])


def test_a_style_sheet_that_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "f.css").write_text("@font-face{src:url(https://example.org/f.woff2)}", encoding="utf-8")
    assert list(loaded("links").faults(tmp_path)) == ["f.css loads https://example.org/f.woff2"]


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "with a broken link"])
def test_the_site_is_built_and_a_warning_is_an_error(tmp_path: Path, broken: bool) -> None:
    pytest.importorskip("mkdocstrings_handlers.python", reason="`make docs` installs what this needs")
    for name in ("docs", "spanbert_kernels", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    if broken:
        with (tmp_path / "docs" / "spans.md").open("a", encoding="utf-8") as page:
            page.write("\n[nowhere](nowhere.md)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = children.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == broken, done.stderr
    if not broken:
        assert list(loaded("links").faults(tmp_path / "build" / "docs")) == []
