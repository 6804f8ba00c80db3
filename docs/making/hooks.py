"""What pages take from the code when they are built, so that nobody types it.

Replaced are `<!-- generated: NAME -->` by what the function of that name returns, `<!-- reference: MODULE NAME ... -->`
by the docstrings of these names, wherever in the package they are defined, and `<!-- file: PATH -->` by a page that
lies elsewhere in the repository. Pictures become part of the page, where they follow its colours.
"""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).resolve().parents[1]
GENERATED = re.compile(r"<!-- generated: (\w+) -->")
INCLUDED = re.compile(r"<!-- file: (\S+) -->")
PICTURE = re.compile(r"!\[[^\]]*\]\((pictures/\w+\.svg)\)")
REFERENCE = re.compile(r"<!-- reference: ([\w.]+) ([\w ]+) -->")


def families() -> str:
    """The encoders that `accelerate` takes, from its own table."""
    from spanbert_kernels.acceleration.families import FAMILIES

    lines = ["| encoder | module in transformers | position of a token | layers |", "| --- | --- | --- | --- |"]
    for each in FAMILIES:
        position, layers = each.description
        lines.append(f"| `{each.model_class}` | `{each.module}` | {position} | {layers} |")
    return "\n".join(lines)


def families_by_layers() -> str:
    """The same in short, for the README."""
    from spanbert_kernels.acceleration.families import FAMILIES

    groups: dict[tuple[str, str], list[str]] = {}
    for each in FAMILIES:
        groups.setdefault(each.description, []).append(f"`{each.model_class}`")
    lines = ["| encoders | position of a token | layers |", "| --- | --- | --- |"]
    rows = [f"| {', '.join(names)} | {position} | {layers} |" for (position, layers), names in groups.items()]
    return "\n".join([*lines, *rows])


def unsupported() -> str:
    """The encoders that `accelerate` refuses by name, and why."""
    from spanbert_kernels.acceleration.families import UNSUPPORTED

    lines = ["| encoder | why it is not taken |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {reason} |" for name, reason in UNSUPPORTED.items())])


def span_layers() -> str:
    """The classes of other packages that `accelerate` knows, and what is computed in another way."""
    from spanbert_kernels.acceleration.span_layers import SPAN_LAYERS

    found = [
        each for module in dict.fromkeys(SPAN_LAYERS.values()) for each in importlib.import_module(module).REPLACEMENTS
    ]
    lines = ["| class | what is computed in another way |", "| --- | --- |"]
    # Paths may be broken at their points: in one piece they would leave no room for the words beside them.
    paths = ["<wbr>".join(f"`{name}`" for name in each.class_path.replace(".", ". ").split()) for each in found]
    return "\n".join([*lines, *(f"| {path} | {each.what} |" for path, each in zip(paths, found, strict=True))])


def operations() -> str:
    """Every operation, who has kernels for it, and who serves the call where one has none."""
    from spanbert_kernels import ops

    columns = {"cuda": "cuda (C++)", "triton": "triton", "cpu": "cpu (C++)", "eager": "eager"}
    lines = [f"| operation | what it computes | {' | '.join(columns.values())} |", "| --- " * (len(columns) + 2) + "|"]
    notes: dict[str, str] = {}
    for each in ops.backends.operations():
        server, reason = each.instead or ("", "")
        if reason:
            notes.setdefault(reason, f"[{string.ascii_lowercase[len(notes)]}]")
        cells = ["yes" if column in each.backends else f"`{server}` {notes[reason]}" for column in columns]
        lines.append(f"| `{each.name}` | {each.summary} | {' | '.join(cells)} |")
    reasons = "; ".join(f"{note} {reason}" for reason, note in notes.items())
    return "\n".join(lines) + f"\n\nWhere another backend is named it serves the call: {reasons}."


def tasks() -> str:
    """Every task, from the table that the commands have."""
    from spanbert_kernels.tasks.registry import TASKS

    lines = ["| TASK | what it finds | a file to learn from | a document | scores |", "| --- " * 5 + "|"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {' | '.join((each.text, *each.docs))} |" for name, each in TASKS.items())]
    )


def operation_references() -> str:
    """The docstrings of all operations."""
    from spanbert_kernels import ops

    return reference("spanbert_kernels.ops", [each.name for each in ops.backends.operations()])


def commands() -> str:
    """Every command with its help, as the terminal shows it."""
    from spanbert_kernels.cli import main

    return "\n\n".join(f"## {name}\n\n```text\n{text}\n```" for name, text in _helps(main, "spanbert-kernels"))


def _helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    yield name, command.get_help(click.Context(command, info_name=name, terminal_width=88))
    if isinstance(command, click.Group):
        for word, each in command.commands.items():
            yield from _helps(each, f"{name} {word}")


PAGES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (families, unsupported, span_layers, tasks, operations, operation_references, commands)
}


def reference(module: str, names: list[str]) -> str:
    """A directive of mkdocstrings for each name."""
    home = importlib.import_module(module)
    targets = (getattr(home, name) for name in names)
    return "\n\n".join(f"::: {target.__module__}.{target.__qualname__}" for target in targets)


def included(path: str) -> str:
    """A file of the repository, its links seen from this folder."""
    return (FOLDER.parent / path).read_text(encoding="utf-8").replace("](docs/", "](")


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by mkdocs for each page before it is rendered."""
    markdown = INCLUDED.sub(lambda match: included(match[1]), markdown)
    markdown = PICTURE.sub(lambda match: f"<div>{(FOLDER / match[1]).read_text(encoding='utf-8')}</div>", markdown)
    markdown = GENERATED.sub(lambda match: PAGES[match[1]](), markdown)
    return REFERENCE.sub(lambda match: reference(match[1], match[2].split()), markdown)
