"""What stands in several files of the project is the same in all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import spanbert_kernels

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PINS = dict(re.findall(r'"([\w-]+)==([\d.]+)"', PROJECT))


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_version_comes_from_the_package() -> None:
    assert 'dynamic = ["version"]' in PROJECT
    assert 'version = { attr = "spanbert_kernels.__version__" }' in PROJECT


def test_changelog_and_citation_have_the_version() -> None:
    newest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    citation = loaded("CITATION.cff")
    assert newest[1] == citation["version"] == spanbert_kernels.__version__
    assert newest[2] == citation["date-released"]
    assert citation["authors"] == [{"name": "The spanbert_kernels authors"}]


def test_pre_commit_runs_the_versions_that_make_check_runs() -> None:
    hooks = {hook["id"]: hook for repo in loaded(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert list(hooks) == ["ruff-check", "ruff-format", "clang-format", "mypy"]
    for name, tool in (("ruff-check", "ruff"), ("ruff-format", "ruff"), ("clang-format", "clang-format")):
        assert hooks[name]["additional_dependencies"] == [f"{tool}=={PINS[tool]}"]
    # The types of PyTorch are needed: the virtual environment has them, and mypy in the version of pyproject.toml.
    assert hooks["mypy"]["entry"].startswith(".venv/bin/mypy")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"$(BIN)/{tool}" in makefile for tool in ("ruff", "clang-format", "mypy"))


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_run_targets_that_there_are(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^make ([\w-]+)", "\n".join(runs), re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_tests_run_on_every_python_that_the_package_names() -> None:
    versions = loaded(".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert versions == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert f'requires-python = ">={versions[0]}"' in PROJECT
