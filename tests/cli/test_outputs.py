"""Every file that a command writes is the old one or the new one at every moment, and stays the old one on failure."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from changes_to_files import before_each
from click.testing import CliRunner, Result
from records import record

from spanbert_kernels.cli import main

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

Run = Callable[..., Result]
TINY = ("--size", "tiny", "--vocabulary-size", 60, "--steps", 1, "--threads", 1)
RECORDS = Path(__file__).parent.parent.parent / "benchmarks" / "results"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    rows = [{"text": f"Anna went to {place} .", "label": place} for place in ("Oslo", "Rome") * 4]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "classification", "--data", folder / "data.jsonl", "--output", folder / "model", *TINY]
    assert CliRunner().invoke(main, list(map(str, words))).exit_code == 0
    found = record.load(next(RECORDS.glob("*-cpu-*.json")))
    (folder / "record.json").write_text(record.dumps(dataclasses.replace(found, rows=found.rows[:1])))
    return folder / "model"


def writing(model: Path, output: Path) -> dict[str, tuple[tuple[object, ...], tuple[str, ...]]]:
    """A command line for each command that writes files, and their names in the output folder."""
    data = model.parent / "data.jsonl"
    quick = ("demo", data, "--quick", "--repeats", 1, "--tokens", 300)
    return {
        "predict": (("predict", "classification", data, "--model", model, "--output", output / "p"), ("p",)),
        "explain": (
            ("explain", "classification", data, "--model", model, "--output", output / "e.html"),
            ("e.html", "e.png"),
        ),
        "demo": ((*quick, "--output", output / "d.html", "--json", output / "d.json"), ("d.html", "d.json")),
        "report": (("report", model.parent / "record.json", "--output", output / "r.html"), ("r.html",)),
    }


@pytest.mark.parametrize("command", ["predict", "explain", "demo", "report"])
def test_an_output_is_the_old_one_or_the_new_one(run: Run, model: Path, tmp_path: Path, command: str) -> None:
    output = tmp_path / "output"
    output.mkdir()
    words, names = writing(model, output)[command]
    seen: dict[str, list[bytes]] = {name: [b"old"] for name in names}
    for name in names:
        (output / name).write_bytes(b"old")

    def look() -> None:
        for name in names:
            content = (output / name).read_bytes()
            if content != seen[name][-1]:
                seen[name].append(content)

    with before_each(output, look):
        result = run(*words)
        look()
    assert result.exit_code == 0, result.output
    assert {name: len(contents) for name, contents in seen.items()} == dict.fromkeys(names, 2)
    assert sorted(path.name for path in output.iterdir()) == sorted(names)


@pytest.mark.parametrize("command", ["predict", "explain", "report"])
def test_a_full_disk_leaves_the_old_output(
    run: Run, model: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, names = writing(model, tmp_path)[command]
    for name in names:
        (tmp_path / name).write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: cannot write")
    assert f"{tmp_path / names[0]}: no space left on device" in result.stderr
    assert [(tmp_path / name).read_bytes() for name in names] == [b"old"] * len(names)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("demo", "--output", "a", "--json", "a"), "the report and the results would both be written to a"),
        (("demo", "--output", "a", "--json", "./a"), "the report and the results would both be written to a"),
        (("train", "tagging", "--data", "a", "--output", "/dev/null"), "/dev/null is no folder"),
        (("train", "tagging", "--data", "a", "--output", "/dev/null/model"), "/dev/null is no folder"),
        (("explain", "nested", "a", "--model", "a", "--output", "."), "cannot write the page to .: it is a folder"),
        (("predict", "tagging", "a", "--model", "a", "--output", "no/p"), "there is no folder no"),
    ],
)
def test_outputs_are_looked_at_before_the_work(run: Run, words: tuple[str, ...], reason: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert reason in result.stderr
