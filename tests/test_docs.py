"""What the pages of the documentation say is so: their examples run, and what they list is all there is."""

from __future__ import annotations

import importlib
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import click
import pytest

from spanbert_kernels import SpanBERTModel, ops
from spanbert_kernels.cli import main
from spanbert_kernels.tasks.start import Start

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "SCALING.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
PRINTED = re.compile(r"```text\n(.*?)```", re.DOTALL)
# What some of them print, and do not show.
SHOWN = {
    "README.md": ["packed-inference torch.Size([400, 2304])"],
    "docs/training.md": ["Anna lives in Oslo ['PERSON', 'O', 'O', 'PLACE']", "accuracy 1.00", "'packed-training': 20"],
    "docs/operations.md": ["('span_pool', 'eager')"],
}
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def checkpoint(folder: Path) -> None:
    """A small model with a vocabulary of the examples' words, as any folder that transformers wrote."""
    start = Start(size="tiny", vocabulary_size=80)
    tokenizer = start.tokenizer(["Anna lives in Oslo", "Boris went home", "it rains in Lima"] * 2)
    start.build(SpanBERTModel, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if CODE.search(text)])
def test_examples_run_from_the_top_of_a_page_to_its_end(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each README example on its own, those of other pages one after the other; a warning fails."""
    monkeypatch.chdir(tmp_path)
    blocks = CODE.findall(TEXTS[page])
    if any('("checkpoint"' in block for block in blocks):
        checkpoint(tmp_path / "checkpoint")
    scope: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks:
            scope = {"__name__": "__main__"} if page == "README.md" else scope
            exec(compile(block, page, "exec"), scope)
    printed = capsys.readouterr().out
    assert [line for line in SHOWN.get(page, ()) if line not in printed] == []
    said = " ".join(printed.split())  # the page breaks lines where it likes
    assert [text for text in PRINTED.findall(TEXTS[page]) if " ".join(text.split()) not in said] == []


def test_commands_on_the_pages_exist() -> None:
    """Each `spanbert-kernels` line names a command, a task it knows and options it has; each `make`, a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    seen = set()
    for page, text in TEXTS.items():
        lines = "\n".join(SHELL.findall(text)).splitlines() + re.findall(r"`((?:make|spanbert-kernels) [^`]+)`", text)
        for line in lines:
            words = line.split("#")[0].split()
            if words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), (page, line)
            elif words[:1] == ["spanbert-kernels"] and len(words) > 1:
                check_command(words[1:], f"{page}: {line}")
                seen.add(words[1])
    assert seen == set(main.commands)


def check_command(words: list[str], place: str) -> None:
    command = main.commands[words[0]]
    options = {name for each in command.params for name in each.opts}
    for option in re.findall(r"--[a-z-]+", " ".join(words)):
        assert option in options, place
    first = command.params[0]
    if isinstance(first.type, click.Choice) and len(words) > 1:
        assert words[1] in first.type.choices, place


def test_the_table_of_operations_and_backends() -> None:
    """Each operation says what it computes and, where a backend has no kernel, who serves the call and why."""
    table = runpy.run_path(str(ROOT / "docs" / "making" / "hooks.py"))["operations"]()
    for name, backends in ops.backends._registry.items():
        if hasattr(ops, name):
            (row,) = re.findall(rf"^\| `{name}` \| [^|]+ \|(.*)\|$", table, re.MULTILINE)
            cells = [cell.strip() for cell in row.split("|")]
            assert [cell == "yes" for cell in cells] == [
                each in backends for each in ("cuda", "triton", "cpu", "eager")
            ]
            for server, note in (re.fullmatch(r"`(\w+)` (\[\w\])", cell).groups() for cell in cells if cell != "yes"):  # type: ignore[union-attr]
                assert server in backends
                assert re.search(rf"{re.escape(note)} \w", table.splitlines()[-1])


def test_the_table_of_tasks_has_every_task() -> None:
    assert "<!-- generated: tasks -->" in TEXTS["docs/tasks.md"]
    table = runpy.run_path(str(ROOT / "docs" / "making" / "hooks.py"))["tasks"]()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \| [^|]+ \|$", table, re.MULTILINE)
    train = main.commands["train"].params[0].type
    assert isinstance(train, click.Choice)
    assert rows == list(train.choices)
    assert f"{('ten', 'eleven', 'twelve')[len(rows) - 10]} tasks" in TEXTS["README.md"]


@pytest.mark.parametrize(
    "module", ["ops", "nn", "models", "acceleration", "integrations", "host", "testing", "tasks.explanation"]
)
def test_the_reference_has_every_public_name_once(module: str) -> None:
    named = [
        name
        for names in re.findall(rf"<!-- reference: spanbert_kernels\.{module} ([\w ]+) -->", "".join(TEXTS.values()))
        for name in names.split()
    ]
    if module == "ops":
        named += [each.name for each in ops.backends.operations()]
    public = set(importlib.import_module(f"spanbert_kernels.{module}").__all__) - {"backends"}  # a page of its own
    assert sorted(named) == sorted(public)


VARIABLE = re.compile(r"\b(?:SPANBERT_KERNELS_[A-Z]\w*|TRITON_INTERPRET)\b")
SOURCES = ("Makefile", "setup.py", ".ci", "spanbert_kernels", "csrc", "benchmarks", "tests")


def test_every_environment_variable_has_its_line() -> None:
    found = set()
    for name in SOURCES:
        paths = [ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*")
        for path in paths:
            if path.suffix in ("", ".py", ".cpp", ".h", ".cu", ".cuh") and path.is_file() and path != Path(__file__):
                found |= set(VARIABLE.findall(path.read_text(encoding="utf-8")))
    rows = re.findall(r"^\| (`.+?) \| ", TEXTS["docs/environment.md"], re.MULTILINE)
    assert found == {name for row in rows for name in VARIABLE.findall(row)}


def test_every_setting_of_the_makefile_has_its_line() -> None:
    settings = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    rows = "".join(re.findall(r"^\| (`.+?) \| ", TEXTS["docs/environment.md"], re.MULTILINE))
    assert {name for name in settings if f"`{name}`" not in rows} == set()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1].split("exclude_docs")[0]
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", navigation)) == pages


def test_links_of_the_pages_lead_to_files() -> None:
    for page, text in TEXTS.items():
        for address in re.findall(r"\]\(([^)#\s]+)", text):
            if not address.startswith("http"):
                assert ((ROOT / page).parent / address).exists(), (page, address)


def test_no_page_tells_of_the_machine_it_was_written_on() -> None:
    for page, text in TEXTS.items():
        assert not re.search(r"(?<![\w.])/(tmp|root|home|work)/", text), page
