"""Reads questions in SQuAD's JSON, 1.1 and 2.0, or as records; what cannot be used is named with file and question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_kernels.data import kinds
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.records import SUFFIXES, names_in, read_named
from spanbert_kernels.data.sources import Source, files_of

WANTED = 'a question and its context are wanted: {"question": "Who?", "context": "It was me."}, or SQuAD\'s JSON'


class QuestionFault(ValueError):
    """A question that cannot be used; the message begins with the file and the question's id."""

    def __init__(self, path: Path, question: str, reason: str) -> None:
        super().__init__(f"{path}, question {question}: {reason}")


@dataclass(frozen=True)
class Question:
    """A question about a text, and its answers as (text, first character); none where the text has none."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    path: Path


def read_questions(source: Source, answers: bool = True) -> list[Question]:
    """All questions of files in SQuAD's format, or of records of JSON or of a table: question, context and answers.

    Args:
        source: a file, a folder, or several of them.
        answers: whether the answers are wanted; else they are not looked at.

    Raises:
        ValueError: the file is not SQuAD's JSON; `DataFault` for a record without a question; `QuestionFault` for a
            question about an empty text and, where `answers` are wanted, for an answer that does not stand in the text
            where it should, or a question without an answer that is not marked `is_impossible`.
        OSError: the file cannot be read.
    """
    return [question for path in files_of(source, SUFFIXES) for question in _of_file(path, answers)]


def _of_file(path: Path, answers: bool) -> list[Question]:
    found: list[tuple[Question, bool]] = []
    with kinds.only(path, (kinds.JSON, kinds.TABLE), "SQuAD's JSON, or records of question, context and answers,"):
        for line, fields in read_named(path, ("question",)):
            try:
                found += _nested(fields, path, answers) if "data" in fields else [_flat(path, line, fields, answers)]
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is not in SQuAD's format: {type(error).__name__} {error}") from None
    for question, impossible in found:
        if not question.context.strip():
            raise QuestionFault(path, question.id, "is about an empty text")
        if not answers:
            continue
        if not question.answers and not impossible:
            raise QuestionFault(path, question.id, "has no answer and is not marked is_impossible")
        for text, start in question.answers:
            if not text or question.context[start : start + len(text)] != text:
                there = f"at {start}, where {question.context[start : start + len(text)]!r} stands"
                raise QuestionFault(
                    path, question.id, f"answer {text!r} is not {there if start >= 0 else 'in the text'}"
                )
    return [question for question, _ in found]


def _nested(made: dict[str, Any], path: Path, answers: bool) -> Iterator[tuple[Question, bool]]:
    for article in made["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                impossible = bool(entry.get("is_impossible", False))
                own = _answers(entry.get("answers", ())) if answers and not impossible else ()
                yield Question(str(entry["id"]), entry["question"], paragraph["context"], own, path), impossible


def _flat(path: Path, line: int, fields: dict[str, Any], answers: bool) -> tuple[Question, bool]:
    """A record with a question and its context, as the `datasets` library has SQuAD; no answers: there is none."""
    question, context = fields.get("question"), fields.get("context", fields.get("text"))
    if not isinstance(question, str) or not isinstance(context, str):
        raise DataFault(path, line, f"{WANTED}; this record has {names_in(fields)}")
    given = fields.get("answers", fields.get("answer")) if answers else None
    if isinstance(given, str):
        given = [given] if given else []
    if isinstance(given, list):  # of texts, each of which is where it stands first
        given = [{"text": one, "answer_start": context.find(one)} if isinstance(one, str) else one for one in given]
    own = _answers(given or ())
    return Question(str(fields.get("id", line)), question, context, own, path), given is not None and not own


def _answers(given: Any) -> tuple[tuple[str, int], ...]:
    """Of a list of them, or of a list of texts and one of their places."""
    if isinstance(given, dict):
        given = [
            {"text": text, "answer_start": start}
            for text, start in zip(given["text"], given["answer_start"], strict=True)
        ]
    return tuple((str(answer["text"]), int(answer["answer_start"])) for answer in given)
