"""Question answering: files, windows, span training, learning, and answers that are not there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spanbert_kernels import SpanBERTForQuestionAnswering
from spanbert_kernels.data.squad import Question, QuestionFault, read_questions
from spanbert_kernels.tasks import question_answering
from spanbert_kernels.tasks.means import counts, shares, weighed
from spanbert_kernels.tasks.question_answering import OUTSIDE, windows_of
from spanbert_kernels.tasks.span_training import SpansOfDocuments, SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

ASKED = "Who was there ?", "Where was it ?", "When was it ?"
NAMES, PLACES = ("Anna", "Boris", "Clara", "David"), ("Paris", "Oslo", "Quito", "Lima")


def content(count: int, missing: bool = False) -> dict[str, Any]:
    """Who was where, and a question about one of these, or about the time, which stands nowhere."""
    draw, paragraphs = random.Random(0), []
    for i in range(count):
        there = draw.choice(NAMES), draw.choice(PLACES)
        filler = " ".join(draw.choices(("so", "it", "was"), k=draw.randrange(8)))
        context = f"{filler} {there[0]} was in {there[1]} {filler} .".strip()
        asked = draw.randrange(3 if missing else 2)
        entry: dict[str, Any] = {"id": f"q{i}", "question": ASKED[asked]}
        if asked == 2:
            entry |= {"is_impossible": True, "answers": []}
        else:
            entry["answers"] = [{"text": there[asked], "answer_start": context.index(there[asked])}]
        paragraphs.append({"context": context, "qas": [entry]})
    return {"data": [{"title": "t", "paragraphs": paragraphs}]}


def read(tmp_path: Path, made: Any) -> list[Question]:
    path = tmp_path / "questions.json"
    path.write_text(made if isinstance(made, str) else json.dumps(made))
    return read_questions(path)


def tokenizer_for(questions: list[Question]) -> Any:
    texts = [text for question in questions for text in (question.question, question.context)]
    return Start(vocabulary_size=200).tokenizer(texts * 2)  # a word that stands there once is none


def test_reading(tmp_path: Path) -> None:
    first, second = read(tmp_path, content(2, missing=True))
    assert first.id == "q0"
    assert all(first.context[start:].startswith(text) for text, start in first.answers)
    assert second.question in ASKED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": [{"text": "Rome", "answer_start": 0}]}, r"question q0: answer 'Rome' is not at 0, where '\w+"),
        ({"answers": [{"text": "Rome", "answer_start": -1}]}, "question q0: answer 'Rome' is not in the text"),
        ({"answers": []}, "question q0: has no answer and is not marked is_impossible"),
        ({"answers": [{"text": "Oslo"}]}, "not in SQuAD's format: KeyError 'answer_start'"),
    ],
)
def test_bad_answers_are_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    made = content(1)
    made["data"][0]["paragraphs"][0]["qas"][0] |= change
    with pytest.raises(ValueError, match=f"questions.json.*{reason}"):
        read(tmp_path, made)


def test_bad_files(tmp_path: Path) -> None:
    for text, reason in (("{", "line 1: not JSON"), ('{"data": 1}', "not in SQuAD's format")):
        with pytest.raises(ValueError, match=reason) as caught:
            read(tmp_path, text)
        assert not isinstance(caught.value, QuestionFault)


@pytest.mark.parametrize(
    "record",
    [
        {"ID": 7, "Question": "Where?", "Context": "In Oslo.", "answers": {"text": ["Oslo"], "answer_start": [3]}},
        {"question": "Where?", "text": "In Oslo.", "answer": "Oslo", "id": "7"},
        {"question": "Where?", "body": "In Oslo.", "answers": ["Oslo"], "id": "7"},
    ],
)
def test_records_are_questions_too(tmp_path: Path, record: dict[str, Any]) -> None:
    """As the library `datasets` has them, or with an answer alone; without any there is none."""
    path = tmp_path / "questions.jsonl"
    bare = {"question": "Who?", "context": "Nobody.", "answers": {"text": [], "answer_start": []}}
    path.write_text(f"{json.dumps(record)}\n{json.dumps(bare)}\n")
    first, second = read_questions(path)
    assert first == Question("7", "Where?", "In Oslo.", (("Oslo", 3),), path)
    assert (second.id, second.answers) == ("2", ())
    table = tmp_path / "questions.csv"
    table.write_text("QUESTION,CONTEXT\nWhere?,In Oslo.\n")
    assert read_questions(table, answers=False) == [Question("2", "Where?", "In Oslo.", (), table)]
    path.write_text('{"body": "In Oslo.", "id": 7}')
    wanted = r"line 1: a question and its context are wanted: {.question.: .*; this record has body, id$"
    with pytest.raises(ValueError, match=wanted):
        read_questions(path)


def long_question() -> Question:
    context = "so it was " * 30 + "Anna lives in Oslo . " + "so it was " * 30
    return Question("q", "Where does Anna live ?", context, (("Oslo", context.index("Oslo")),), Path("a.json"))


def test_windows_hold_the_answer_or_point_at_cls() -> None:
    question = long_question()
    tokenizer = tokenizer_for([question])
    windows = windows_of([question], tokenizer, 64)
    assert len(windows) > 2
    held = []
    for window in windows:
        assert len(window["input_ids"]) <= 64
        start, end = window["start"], window["end"]
        if start:
            held.append(question.context[window["offsets"][start][0] : window["offsets"][end][1]])
        else:
            assert end == 0
    assert held
    assert set(held) == {"Oslo"}
    covered = np.concatenate([window["offsets"][window["offsets"][:, 0] >= 0, 0] for window in windows])
    assert set(covered) == {
        i for i, c in enumerate(question.context) if c != " " and question.context[i - 1] == " "
    } | {0}


def test_span_training(tmp_path: Path) -> None:
    question = long_question()
    tokenizer = tokenizer_for([question])
    (window,) = windows_of([question], tokenizer, 512)
    for crop in ("input", "loss"):
        data = SpansOfDocuments([window], SpanTraining(20, crop), 0, question_answering.show)
        inside = 0
        for epoch in range(60):
            data.set_epoch(epoch)
            example = data[0]
            ids = example["input_ids"]
            if crop == "loss":
                assert ids is window["input_ids"]
                assert example["start"] in (window["start"], OUTSIDE)
                inside += example["start"] != OUTSIDE
                continue
            assert len(ids) == window["first"] + 21
            assert tokenizer.decode(ids[1 : example["first"] - 1]).replace(" ?", "?") == "Where does Anna live?"
            if example["start"]:
                inside += 1
                assert tokenizer.decode(ids[example["start"] : example["end"] + 1]) == "Oslo"
        assert 0 < inside < 60


def test_a_batch_without_loss_has_none() -> None:
    """Where no answer of the batch lies in the span that carries loss."""
    question = long_question()
    tokenizer = tokenizer_for([question])
    model = Start(size="tiny").build(SpanBERTForQuestionAnswering, tokenizer, 0)
    example = windows_of([question], tokenizer, 512)[0]
    there = question_answering.collate([example])
    beside = question_answering.collate([example, {**example, "start": OUTSIDE, "end": OUTSIDE}])
    with torch.no_grad():
        assert model.eval()(**there).loss == pytest.approx(float(model(**beside).loss), rel=1e-5)


def test_the_best_span() -> None:
    start, end = torch.tensor([0.0, 3.0, 1.0]), torch.tensor([9.0, 0.0, 1.0])
    assert question_answering._best_span(start, end) == (9.0, 0, 0)
    assert question_answering._best_span(start, torch.tensor([0.0, 0.0, 1.0])) == (4.0, 1, 2)
    far = torch.zeros(64)
    far[40] = 5.0
    assert question_answering._best_span(torch.eye(64)[0], far)[1:] != (0, 40)  # longer than an answer may be


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_it_learns_and_is_loaded_again(tmp_path: Path, missing: bool) -> None:
    questions = read(tmp_path, content(1000, missing))
    tokenizer = tokenizer_for(questions)
    model = Start(size="tiny").build(
        SpanBERTForQuestionAnswering, tokenizer, 0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    options = TrainingOptions(tmp_path / "model", steps=400, batch_size=32, learning_rate=5e-4, quiet=True)
    training = question_answering.train(model, tokenizer, questions[:900], options)
    assert training.paths["packed-training"] == 400
    scores = question_answering.evaluate(model, tokenizer, questions[900:])
    assert scores["exact match"] > 0.9
    assert question_answering.whole_text(questions[900:])["exact match"] == 0.0
    assert model.config.answers_may_be_missing == missing
    path = tmp_path / "questions.json"
    found = [json.loads(line) for line in question_answering.TASK.predict(tmp_path / "model", path, "eager")]
    assert len(found) == 1000
    assert any(not each["answer"] for each in found) == missing


def test_batches_of_a_step_weigh_by_the_rows_that_carry_loss(tmp_path: Path) -> None:
    """Of span training: a row whose answer lies beyond its span has none."""
    tokenizer = tokenizer_for(read(tmp_path, content(9)))
    model = Start(size="tiny").build(SpanBERTForQuestionAnswering, tokenizer, 0).eval()
    ids = [np.arange(5) + 5, np.arange(7) + 6, np.arange(4) + 7]
    places = [(1, 2), (OUTSIDE,) * 2, (3, 3)]
    rows = [
        {"input_ids": ids, "token_type_ids": 0 * ids, "start": start, "end": end}
        for ids, (start, end) in zip(ids, places, strict=True)
    ]
    whole, *parts = (question_answering.collate(each) for each in (rows, rows[:2], rows[2:]))
    means = question_answering.TASK.means
    own, of_all = [counts(part, means, None) for part in parts], counts(whole, means, None)
    found = 0.0
    for part, count in zip(parts, own, strict=True):
        output = model(**part)
        found += weighed(output.loss, output, means, shares(count, of_all, means))
    assert torch.allclose(found, model(**whole).loss)


def test_scores_are_squads() -> None:
    question = Question("q", "?", "the old ferry", (("the old ferry", 0), ("ferry", 8)), Path("a.json"))
    nothing = Question("r", "?", "the old ferry", (), Path("a.json"))
    assert question_answering.score([question, nothing], ["ferry", ""]) == {"exact match": 1.0, "F1": 1.0}
    found = question_answering.score([question, nothing], ["new ferry", "ferry"])
    assert found["exact match"] == 0.0
    assert found["F1"] == pytest.approx(1 / 3)


def test_no_question(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no question"):
        question_answering.train(None, None, [], TrainingOptions(tmp_path))  # type: ignore[arg-type]
