"""The tasks' results: how data are cut, questions made by rule, and runs that need not be repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from task_results import __main__ as command
from task_results import recording, splits, stories
from task_results.one_run import Asked
from task_results.own_path import ATTENTION, POOLING
from task_results.questions import asked
from task_results.rows import ROWS
from task_results.tables import lines
from task_results.tables import splits as cut_and_run

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.entities import read_marked
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
def test_a_story_is_read_as_texts(tmp_path: Path) -> None:
    """Of a topic that is held out, called by their first sentences."""
    block = (
        "#begin document ({0}/{1}); part 0\nIt\t-\n'{2}\t(cross_PER1)\n.\t(cross_intra_PER1)\n\n{1}\t-\n#end document\n"
    )
    (tmp_path / "meantime").mkdir()
    names = [("a", n) for n in range(3)] + [("b", n) for n in range(12)]
    text = "".join(block.format(topic, n, "s") for topic, n in names)
    (tmp_path / "meantime" / "meantime.conll").write_text(text)
    split = splits.without_topic("a", tmp_path, tmp_path)
    counts = [path.read_text().count("#begin") for path in (split.train, split.dev, split.test)]
    assert (counts, "(a/" in split.train.read_text()) == ([10, 2, 3], False)
    assert {mention.entity for each in read_marked(split.test) for mention in each.mentions} == {"PER1"}
    (path,) = stories.write_texts(split.test, "/2)", tmp_path / "texts").iterdir()
    assert (path.name, path.read_text()) == ("Its.txt", "It's.\n2\n")


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
        logged = {"auto": 1.0, "eager": 1.25}[asked.backend]
        seconds = {"auto": 2.0, "eager": 5.0}[asked.backend]
        figures = {"seconds": 60.0, "training seconds": seconds, "peak MB": 9, "logged": [logged]}
        return {"scores": scores, "baseline": {"accuracy": 0.25}, **figures}

    commit = ["abc"]
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"hidden_dropout_prob": 0.1, "classifier_dropout": null, "hidden_size": 8}')
    (encoder / "vocab.txt").write_text("[PAD]")
    monkeypatch.setattr(command, "carry_out", carry_out)
    monkeypatch.setattr(command, "BUILD", tmp_path)
    monkeypatch.setattr(recording, "commit", lambda: commit[0])
    monkeypatch.setitem(ROWS, "topics", ROWS["topics"].__class__(**{**vars(ROWS["topics"]), "files": small}))
    monkeypatch.setenv("SPANBERT_KERNELS_DATA", str(tmp_path))
    words = ["topics", "--seeds", "2", "--output", str(tmp_path / "record.json"), "--model", str(encoder)]

    def runs() -> list[str]:
        done.clear()
        command.main(words, standalone_mode=False)
        return list(done)

    timed = [f"topics 0 {backend} {steps}" for steps in (200, 20) for backend in ("auto", "eager")]
    assert runs() == ["topics 0 auto None", "topics 1 auto None", *timed]
    assert runs() == []
    (tmp_path / "small.jsonl").write_text("changed")
    assert len(runs()) == 6
    commit[0] = "abc+"
    assert len(runs()) == len(runs()) == 6
    commit[0] = "def"
    words.append("--missing")
    assert runs() == ["topics 0 auto None", "topics 1 auto None", *timed]  # nobody has what "abc+" was
    commit[0] = "ghi"
    assert runs() == []
    words += ["--whole", "--timed", "20"]
    assert runs() == ["topics 0 eager None", *timed[2:]]  # with dropout, which those without do not give way to
    assert runs() == []
    words[-1:] = ["0", "--compared", "0"]
    assert runs() == []
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["runs"]) == 9
    for run in record["runs"]:
        assert run.pop("processor") == record["machine"]["processor"]
        run["processor"] = "Maker(R) Fast Processor"
    (line,) = (line for line in lines(record) if line[1] == "topics of meantime")
    assert line[3:] == [
        "1.000",
        "0.500, 1.500",
        "0.975",
        "0.250",
        "the commonest label",
        "2.50 (Maker)",
        "2",
        "1.0",
        "9 (9)",
    ]
    other = [{**run, "options": {**run["options"], "lower_layers": 5}} for run in record["runs"]]
    (line,) = (line for line in lines({**record, "runs": other}) if line[1] == "topics of meantime")
    assert (line[8], line[11]) == ("not measured", "")  # those steps are not the row's
    told = cut_and_run(record)
    assert "Begun from encoder, on " in told
    assert "over 20, 200 steps of the same batches, on " in told
    assert " thread" in told
    assert ". Without dropout the losses of both" in told
    assert "differ by 0.2 of their size at most. The same seed, trained whole on transformers' own path: " in told
    assert "topics 0.500 for 0.500 (seeds are 1.000 apart). 0.1 hours in all" in told
    still = json.loads((tmp_path / "encoder-without-dropout/config.json").read_text())
    assert still == {"hidden_dropout_prob": 0.0, "classifier_dropout": None, "hidden_size": 8}
    assert (tmp_path / "encoder-without-dropout/vocab.txt").read_text() == "[PAD]"


def small(data: Path, folder: Path) -> splits.Split:
    path = data / "small.jsonl"
    path.touch()
    return splits.Split(path, path, path)


def test_what_is_timed_is_pytorchs_own() -> None:
    """Of transformers' own path, and not our definitions of what stands beside the encoder."""
    path = recording.newest()
    assert path is not None
    pooling = {"nested", "coreference", "cross_document_coreference", "relations", "extraction"}
    across = {"cross_document_coreference", "relations", "summarisation"}
    seen = set()
    for run in recording.load(path)["runs"]:
        if run["backend"] == "eager" and run["steps asked"] and not run["model"].endswith(recording.STILL):
            task = ROWS[run["row"]].task
            wanted = [POOLING] * (task in pooling) + [ATTENTION] * (task in across or run["row"] == "genres")
            assert set(wanted) <= run["paths"].keys(), (run["row"], run["paths"])
            seen.add(task)
    assert pooling | across <= seen


def test_a_row_that_begins_with_another_s_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trainings that are scored do, and not before there is one; what is timed begins with the encoder."""
    ran: list[Asked] = []

    def carry_out(one: Asked, log: Path) -> dict[str, Any]:
        ran.append(one)
        return {"seconds": 1.0, "peak MB": 1, "scores": None if one.steps else {"accuracy": 0.5}}

    row = replace(ROWS["topics"], files=small, begins_with="genres")
    monkeypatch.setattr(command, "carry_out", carry_out)
    monkeypatch.setattr(command, "BUILD", tmp_path)
    monkeypatch.setattr(recording, "commit", lambda: "abc")
    monkeypatch.setitem(ROWS, "topics", row)
    monkeypatch.setenv("SPANBERT_KERNELS_DATA", str(tmp_path))
    words = ["topics", "--seeds", "1", "--compared", "0", "--output", str(tmp_path / "record.json"), "--model", "none"]
    with pytest.raises(SystemExit):
        command.main(words, standalone_mode=False)
    assert [one.steps for one in ran] == [200, 200]
    before = tmp_path / "genres/seed-0/model"
    before.mkdir(parents=True)
    (before / "config.json").touch()
    command.main(words, standalone_mode=False)
    assert [one.begins_with for one in ran] == ["", "", str(before)]
    (run,) = json.loads((tmp_path / "record.json").read_text())["runs"][2:]
    assert run["options"] == {**ROWS["topics"].options, "begins_with": "genres"}
    (line,) = (line for line in lines({"runs": []}) if line[1].startswith("topics"))
    assert (
        line[1]
        == "topics of meantime; begun from the model of classification on genres of gum, pieces of five sentences"
    )
