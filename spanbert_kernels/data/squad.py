"""Reads questions in SQuAD's JSON format, versions 1.1 and 2.0; what cannot be used is named with file and question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_kernels.data.jsonl import parse_value
from spanbert_kernels.data.sources import Source, files_of
from spanbert_kernels.data.text import read_text


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
    """All questions of files in SQuAD's format.

    Args:
        source: a file, a folder, or several of them.
        answers: whether the answers are wanted; else they are not looked at.

    Raises:
        ValueError: the file is not SQuAD's JSON; `QuestionFault` for a question about an empty text and, where
            `answers` are wanted, for an answer that does not stand in the text where it should, or a question without
            an answer that is not marked `is_impossible`.
        OSError: the file cannot be read.
    """
    return [question for path in files_of(source, (".json",)) for question in _of_file(path, answers)]


def _of_file(path: Path, answers: bool) -> list[Question]:
    text = read_text(path)
    try:
        found = list(_questions(parse_value(text), path, answers))
    except RecursionError:
        raise ValueError(f"{path} is not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
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
                there = question.context[start : start + len(text)]
                raise QuestionFault(path, question.id, f"answer {text!r} is not at {start}, where {there!r} stands")
    return [question for question, _ in found]


def _questions(made: Any, path: Path, answers: bool) -> Iterator[tuple[Question, bool]]:
    for article in made["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                impossible = bool(entry.get("is_impossible", False))
                given = entry.get("answers", ()) if answers and not impossible else ()
                own = tuple((str(answer["text"]), int(answer["answer_start"])) for answer in given)
                yield Question(str(entry["id"]), entry["question"], paragraph["context"], own, path), impossible
