"""Reads documents with summaries; what does not parse is named with file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.parallel import Pair, read_lines
from spanbert_kernels.data.text import lines_of, read_text

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
    content = read_text(path)
    if path.suffix == ".conllu":
        return _annotated(path, content, targets)
    if path.suffix in (".json", ".jsonl", ".ndjson"):
        numbered = ((number, line) for number, line in enumerate(lines_of(content), start=1) if line.strip())
        return [_json_line(path, number, line, targets) for number, line in numbered]
    if targets:
        raise DataFault(path, 1, "summaries stand in .jsonl or .conllu files")
    return read_lines(path)


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
    for number, line in enumerate([*lines_of(content), "# newdoc"], start=1):
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
