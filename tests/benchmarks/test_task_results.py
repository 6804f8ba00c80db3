"""The tasks' results: how data are cut, questions made by rule, and runs that need not be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from task_results import __main__ as command
from task_results import recording, splits
from task_results.one_run import Asked
from task_results.questions import asked
from task_results.rows import ROWS
from task_results.tables import lines

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.tasks.base import TASKS, load

RUN = {"row": "topics", "seed": 0, "backend": "auto", "steps asked": None, "commit": "a", "data": "d", "options": {}}


def test_questions_are_made_by_the_rule() -> None:
    """Not of pronouns, of what lies in a longer mention, of short sentences, or of places without a preposition."""
    sentences = ["Anna Smith met Bob in Paris yesterday .", "She left Lima for good then .", "Bob stayed .", "Bob"]
    words = tuple(word for sentence in sentences for word in sentence.split())
    numbers = tuple(
        line for n, sentence in enumerate(sentences) for line in [10 * n + i for i in range(len(sentence.split()))]
    )
    mentions = (
        *(Mention(0, 1, "person", "1"), Mention(1, 1, "person", "2"), Mention(3, 3, "person", "3")),
        *(Mention(5, 5, "", "cross_intra_LOC7"), Mention(8, 8, "person", "1"), Mention(10, 10, "place", "5")),
        *(Mention(15, 15, "person", "3"), Mention(18, 18, "person", "3")),
    )
    (passage,) = asked(MarkedDocument("d", words, mentions, Path("d"), numbers))
    assert passage["context"] == " ".join(words)
    found = {}
    for each in passage["qas"]:
        found[each["question"]] = [answer["text"] for answer in each["answers"]]
        for answer in each["answers"]:
            assert passage["context"][answer["answer_start"] :].startswith(answer["text"])
    assert found == {
        "Who met Bob in Paris yesterday ?": ["Anna Smith"],
        "Anna Smith met who in Paris yesterday ?": ["Bob"] * 3,
        "Anna Smith met Bob where yesterday ?": ["Paris"],
    }


@pytest.mark.slow
def test_rows_are_of_tasks_and_their_scores() -> None:
    """Measures are those that decide which model is kept."""
    assert {row.measure for row in ROWS.values()} == {load(row.task).measure for row in ROWS.values()}
    assert {row.task for row in ROWS.values()} == set(TASKS)


def test_a_run_that_is_recorded_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same code, data and options; an older one of the same row and seed is replaced."""
    done: list[str] = []

    def carry_out(asked: Asked, log: Path) -> dict[str, object]:
        done.append(f"{asked.row} {asked.seed} {asked.backend} {asked.steps}")
        scores = {} if asked.steps else {"accuracy": 0.5 + asked.seed}
        return {
            "scores": scores,
            "baseline": {"accuracy": 0.25},
            "seconds": 60.0,
            "training seconds": 2.0,
            "peak MB": 9,
        }

    commit = ["abc"]
    monkeypatch.setattr(command, "carry_out", carry_out)
    monkeypatch.setattr(command, "BUILD", tmp_path)
    monkeypatch.setattr(recording, "commit", lambda: commit[0])
    monkeypatch.setitem(ROWS, "topics", ROWS["topics"].__class__(**{**vars(ROWS["topics"]), "files": small}))
    monkeypatch.setenv("SPANBERT_KERNELS_DATA", str(tmp_path))
    words = ["topics", "--seeds", "2", "--output", str(tmp_path / "record.json"), "--model", "none"]

    def runs() -> list[str]:
        done.clear()
        command.main(words, standalone_mode=False)
        return list(done)

    assert runs() == ["topics 0 auto None", "topics 1 auto None", "topics 0 auto 200", "topics 0 eager 200"]
    assert runs() == []
    (tmp_path / "small.jsonl").write_text("changed")
    assert len(runs()) == 4
    commit[0] = "abc+"
    assert len(runs()) == len(runs()) == 4
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["runs"]) == 4
    (line,) = (line for line in lines(record) if line[1] == "topics of meantime")
    assert line[3:] == ["1.000", "0.500, 1.500", "0.975", "0.250", "the commonest label", "1.00", "2", "1.0", "9"]


def small(data: Path, folder: Path) -> splits.Split:
    path = data / "small.jsonl"
    path.touch()
    return splits.Split(path, path, path)
