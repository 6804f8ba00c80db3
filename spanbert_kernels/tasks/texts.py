"""Reads texts with what is wanted of them; what does not parse is named with file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

from spanbert_kernels.tasks.columns import DataFault
from spanbert_kernels.tasks.generation import Pair

SUMMARY = re.compile(r"# meta::summary\d* = \(human\d*\)\s*(.+)")
SENTENCE = "# text = "


def read_summarised(path: Path, targets: bool = True) -> list[Pair]:
    """Documents with summaries: JSON lines with source and target, or CoNLL-U with `# meta::summary1 = (human) ...`.

    Source and target are a text or a list: of sentences, and of alternatives. A folder stands for its .conllu files;
    where no `targets` are asked for, plain lines are a document each.

    Raises:
        DataFault: a line that is not JSON, a document without words or, where asked for, without a summary.
        OSError: a file cannot be read.
    """
    if path.is_dir():
        return [pair for file in sorted(path.glob("*.conllu")) for pair in read_summarised(file, targets)]
    content = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".conllu":
        return _annotated(path, content, targets)
    if path.suffix in (".json", ".jsonl", ".ndjson"):
        numbered = ((number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip())
        return [_json_line(path, number, line, targets) for number, line in numbered]
    if targets:
        raise DataFault(path, 1, "summaries stand in .jsonl or .conllu files")
    return _plain(path, content)


def read_aligned(folder: Path) -> list[Pair]:
    """Lines of `source.txt` and `target.txt` in a folder, which translate each other.

    Raises:
        DataFault: there are not as many lines in both, or one is empty on one side.
        OSError: a file cannot be read.
    """
    source, target = folder / "source.txt", folder / "target.txt"
    sides = [
        path.read_text(encoding="utf-8-sig", errors="replace").rstrip("\n").split("\n") for path in (source, target)
    ]
    if len(sides[0]) != len(sides[1]):
        shorter = source if len(sides[0]) < len(sides[1]) else target
        raise DataFault(shorter, min(map(len, sides)), f"{len(sides[0])} lines of source, {len(sides[1])} of target")
    found = []
    for number, (text, wanted) in enumerate(zip(*sides, strict=True), start=1):
        for path, line in ((source, text), (target, wanted)):
            if not line.strip():
                raise DataFault(path, number, "an empty line")
        found.append(Pair(text.strip(), (wanted.strip(),), source, number))
    return found


def read_lines(path: Path) -> list[Pair]:
    """Plain lines, a text each.

    Raises:
        OSError: the file cannot be read.
    """
    return _plain(path, path.read_text(encoding="utf-8-sig", errors="replace"))


def _plain(path: Path, content: str) -> list[Pair]:
    lines = enumerate(content.split("\n"), start=1)
    return [Pair(line.strip(), (), path, number) for number, line in lines if line.strip()]


def _json_line(path: Path, number: int, line: str, targets: bool) -> Pair:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataFault(path, number, f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DataFault(path, number, f"a JSON object is wanted, got {line[:40]!r}")
    source = " ".join(_texts(path, number, "source", fields.get("source")))
    wanted = _texts(path, number, "target", fields.get("target")) if targets else ()
    return Pair(source, wanted, path, number)


def _texts(path: Path, number: int, name: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataFault(path, number, f"{name} must be a text or a list of texts, got {str(value)[:40]!r}")
    return tuple(str(text).strip() for text in texts)


def _annotated(path: Path, content: str, targets: bool) -> list[Pair]:
    found = []
    sentences: list[str] = []
    summaries: list[str] = []
    begin, begun = 1, False
    for number, line in enumerate([*content.split("\n"), "# newdoc"], start=1):
        if line.startswith("# newdoc"):
            if sentences:
                if targets and not summaries:
                    raise DataFault(path, begin, "there is no summary such as '# meta::summary1 = (human) ...'")
                found.append(Pair(" ".join(sentences), tuple(summaries), path, begin))
            elif begun:
                raise DataFault(path, begin, "a document without a line such as '# text = ...'")
            sentences, summaries, begin, begun = [], [], number, True
        elif line.startswith(SENTENCE):
            sentences.append(line.removeprefix(SENTENCE).strip())
        elif summary := SUMMARY.match(line):
            summaries.append(summary[1].strip())
    return found
