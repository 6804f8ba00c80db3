"""Questions and texts of every length, beside every number of positions: an answer is part of the text, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels import SpanBERTForQuestionAnswering
from spanbert_kernels.data.counts import tallying
from spanbert_kernels.data.squad import Question, read_questions
from spanbert_kernels.tasks import question_answering
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

TOKENIZER = Start(vocabulary_size=12).tokenizer(["a b c . ? abab"])
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
QUESTIONS = {"empty": "", "blank": "  ", "no token": "\u200b", "one": "a", "word": "ab" * 30, "long": "a ? " * 300}
TEXTS = {
    "one": "b",
    "word": "ab" * 30,
    "long": "b . " * 300,
    "no token": "\u200b\x01",
    "special": "a [SEP] [CLS] [PAD] b",
}


@pytest.mark.parametrize("positions", [4, 5, 6, 8, 16, 300])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_windows_and_answers(positions: int, text: str) -> None:
    model = Start().build(SpanBERTForQuestionAnswering, TOKENIZER, 0, **SMALL, max_position_embeddings=positions)
    asked = [Question(name, question, text, (), Path("f")) for name, question in QUESTIONS.items()]
    windows = question_answering.windows_of(asked, TOKENIZER, positions)
    assert all(len(window["input_ids"]) <= positions for window in windows)
    tokens = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    for number in range(len(asked)):
        shown = {tuple(each) for window in windows if window["item"] == number for each in window["offsets"].tolist()}
        assert shown - {(-1, -1)} == set(tokens), "some window holds each token of the text"
    answers = question_answering.answer(model, TOKENIZER, asked)
    assert all(each in text for each in answers)
    assert all(answers) == bool(tokens)


@pytest.mark.parametrize(("positions", "cut"), [(16, 2), (300, 1), (1300, 0)])
def test_long_questions_are_cut_and_counted(positions: int, cut: int) -> None:
    """To half of what a window holds; the others as they are."""
    asked = [Question(name, question, "a", (), Path("f")) for name, question in QUESTIONS.items()]
    with tallying() as tally:
        windows = question_answering.windows_of(asked, TOKENIZER, positions)
    most = (positions - 3) // 2
    found = tally.counts["Data"].cut if cut else {}
    assert found == ({("question", f"to its first {most} tokens"): cut} if cut else {})
    sizes = [window["first"] - 2 for window in windows]
    assert sizes == [0, 0, 0, 1, min(60, most), min(600, most)]


def test_an_answer_that_no_window_holds_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window alone would teach that there is none."""
    model = Start().build(SpanBERTForQuestionAnswering, TOKENIZER, 0, **SMALL, max_position_embeddings=16)
    long = Question("long", "?", "b " * 40, (("b " * 19 + "b", 0),), Path("f"))
    short = Question("short", "?", "a b", (("b", 2),), Path("f"))
    learnt: list[Any] = []
    monkeypatch.setattr(
        "spanbert_kernels.tasks.base.fit", lambda model, options, examples, *rest, **more: learnt.extend(examples)
    )
    question_answering.train(model, TOKENIZER, [long, short], TrainingOptions(tmp_path))
    (example,) = learnt
    assert example["start"] == example["end"] == 4
    with pytest.raises(ValueError, match="f: there is no question whose answer fits in a window"):
        question_answering.train(model, TOKENIZER, [long], TrainingOptions(tmp_path))


def test_the_same_answer_whatever_the_title(tmp_path: Path) -> None:
    """A title is no part of what is asked, however long, and need not be there."""
    paragraph = {"context": "a b", "qas": [{"id": "1", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}]}
    for number, article in enumerate(({}, {"title": ""}, {"title": "a " * 9999}, {"title": None})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"data": [{**article, "paragraphs": [paragraph]}]}))
        (question,) = read_questions(path)
        assert (question.question, question.context, question.answers) == ("?", "a b", (("b", 2),))
