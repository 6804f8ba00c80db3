"""Extractive question answering: the first and the last token of the answer in a text, or that there is none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.text import squad

from spanbert_kernels.data.counts import cut as cut_short
from spanbert_kernels.data.counts import left_out, took
from spanbert_kernels.data.faults import DataWarning
from spanbert_kernels.data.squad import Question, read_questions
from spanbert_kernels.models import SpanBERTForQuestionAnswering
from spanbert_kernels.tasks.base import Scores, Task
from spanbert_kernels.tasks.batches import outputs, padded
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.span_training import SpanTraining, shown
from spanbert_kernels.tasks.vocabulary import Tokenizer

OVERLAP = 128  # tokens that neighbouring windows of a long text share
LONGEST_ANSWER = 30  # tokens
ENDS = 2  # of an answer, which the head scores
OUTSIDE = 10**6  # a place beyond every text: the model's loss passes over it


@dataclass(frozen=True)
class QuestionWindow:
    """A question with a part of its text, as an example for the Trainer.

    `offsets [L, 2]` are the characters of the text's tokens, which stand from column `example["first"]` on.
    """

    question: int
    offsets: NDArray[np.int64]
    example: dict[str, Any]


def windows_of(questions: Sequence[Question], tokenizer: Tokenizer, length: int) -> list[QuestionWindow]:
    """Windows of at most `length` tokens; a long text has several. One without the whole answer points at [CLS].

    A question is cut where it takes more than half of the tokens.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    most = (length - special) // 2
    found = []
    for index, question in enumerate(questions):
        encoded = tokenizer(
            _cut_question(question.question, tokenizer, most),
            question.context,
            truncation="only_second",
            max_length=length,
            stride=min(OVERLAP, length // 4, length - special - 1 - most),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for number, ids in enumerate(encoded["input_ids"]):
            sequence = np.array([-1 if s is None else s for s in encoded.sequence_ids(number)])
            context = int(np.argmax(sequence == 1)) if (sequence == 1).any() else len(ids) - 1
            offsets = np.where(sequence[:, None] == 1, np.array(encoded["offset_mapping"][number]), -1)
            start, end = _place(question, offsets)
            example = {
                "input_ids": np.array(ids, dtype=np.int64),
                "token_type_ids": (np.arange(len(ids)) >= context).astype(np.int64),
                "first": context,
                "start": start,
                "end": end,
            }
            found.append(QuestionWindow(index, offsets, example))
    return found


def _cut_question(text: str, tokenizer: Tokenizer, most: int) -> str:
    """The first tokens of a question, `most` at most."""
    if len(text) <= most:  # a token has a character at least
        return text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(offsets) <= most:
        return text
    cut_short("question", f"to its first {most} tokens")
    return text[: offsets[most - 1][1]] if most else ""


def _place(question: Question, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """The columns of the first answer that the window holds whole, or [CLS] twice."""
    for text, begin in question.answers:
        first = np.flatnonzero((offsets[:, 0] <= begin) & (begin < offsets[:, 1]))
        last = np.flatnonzero((offsets[:, 0] < begin + len(text)) & (begin + len(text) <= offsets[:, 1]))
        if len(first) and len(last):
            return int(first[0]), int(last[-1])
    return 0, 0


def show(example: dict[str, Any], span: slice, crop: str) -> dict[str, Any]:
    """Span training: a span of the text. An answer beyond it is none for crop "input", and carries no loss else."""
    start, end = example["start"], example["end"]
    inside = span.start <= start and end < span.stop
    if crop == "loss":
        return example if inside else {**example, "start": OUTSIDE, "end": OUTSIDE}
    kept = np.r_[: example["first"], span, len(example["input_ids"]) - 1]
    moved = span.start - example["first"]
    return {
        "input_ids": example["input_ids"][kept],
        "token_type_ids": example["token_type_ids"][kept],
        "first": example["first"],
        "start": start - moved if inside else 0,
        "end": end - moved if inside else 0,
    }


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A padded batch `[B, L]` with `start_positions` and `end_positions [B]`."""
    batch = _without_answers(examples)
    for name in ("start", "end"):
        batch[f"{name}_positions"] = torch.tensor([example[name] for example in examples])
    return batch


def _without_answers(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return padded(examples, {"input_ids": 0, "token_type_ids": 0})


def _examples(
    model: Any, tokenizer: Tokenizer, questions: Sequence[Question], spans: SpanTraining | None, seed: int
) -> Any:
    """Where a question has no answer, the model may say so later.

    Of an answer that begins or ends inside a token, all of the token is learnt; a warning names the first.
    """
    model.config.answers_may_be_missing = any(not question.answers for question in questions)
    windows = _answered(questions, windows_of(questions, tokenizer, model.config.positions))
    if not windows:
        raise ValueError(f"{questions[0].path}: there is no question whose answer fits in a window")
    _warn_of_widened(questions, windows)
    return shown([window.example for window in windows], spans, seed, show)


def _answered(questions: Sequence[Question], windows: Sequence[QuestionWindow]) -> list[QuestionWindow]:
    """The windows of all questions but those whose answer is in no window, which would teach that there is none."""
    placed = {window.question for window in windows if window.example["start"]}
    lost = {index for index, question in enumerate(questions) if question.answers and index not in placed}
    took("question", len(questions) - len(lost))
    left_out("question", "its answer fits in no window", len(lost))
    return [window for window in windows if window.question not in lost]


def _warn_of_widened(questions: Sequence[Question], windows: Sequence[QuestionWindow]) -> None:
    widened: dict[int, str] = {}
    for window in windows:
        question, start, end = questions[window.question], window.example["start"], window.example["end"]
        learnt = question.context[window.offsets[start][0] : window.offsets[end][1]]
        if start and all(learnt != text.strip() for text, _ in question.answers):
            widened.setdefault(window.question, learnt)
    for number, learnt in list(widened.items())[:1]:
        question = questions[number]
        answer, _ = question.answers[0]
        warnings.warn(
            f"{question.path}, question {question.id}: answer {answer!r} begins or ends inside a token, "
            f"so {learnt!r} is learnt; {len(widened)} of {len(questions)} questions are like this",
            DataWarning,
            stacklevel=3,
        )


def answer(
    model: SpanBERTForQuestionAnswering, tokenizer: Tokenizer, questions: Sequence[Question], backend: str = "auto"
) -> list[str]:
    """An answer from each question's text, "" where there is none. The questions' own answers are not looked at."""
    plain = [Question(q.id, q.question, q.context, (), q.path) for q in questions]
    windows = windows_of(plain, tokenizer, model.config.positions)
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(questions)
    none = [np.inf] * len(questions)
    examples = [window.example for window in windows]
    for chosen, output in outputs(model, examples, _without_answers, lambda e: len(e["input_ids"]), backend=backend):
        for row, index in enumerate(chosen):
            window = windows[index]
            start, end = output.start_logits[row].float(), output.end_logits[row].float()
            none[window.question] = min(none[window.question], float(start[0] + end[0]))
            last = len(window.offsets) - 1
            if window.example["first"] >= last:
                continue
            text = slice(window.example["first"], last)
            score, first, final = _best_span(start[text], end[text])
            if score > best[window.question][0]:
                begin, stop = window.offsets[text][first][0], window.offsets[text][final][1]
                best[window.question] = score, questions[window.question].context[begin:stop]
    missing = getattr(model.config, "answers_may_be_missing", False)
    return ["" if missing and none[i] > score else text for i, (score, text) in enumerate(best)]


def _best_span(start: Tensor, end: Tensor) -> tuple[float, int, int]:
    """The highest sum, its first and last token; start, end `[W]`."""
    scores = start[:, None] + end
    scores = scores.where(torch.ones_like(scores).triu().tril(LONGEST_ANSWER - 1).bool(), -torch.inf)
    found = int(scores.argmax())
    first, last = divmod(found, len(end))
    return float(scores[first, last]), first, last


def score(questions: Sequence[Question], answers: Sequence[str]) -> Scores:
    """Exact match and F1 of words, from 0 to 1, each against the best of the given answers, as SQuAD's script does."""
    wanted: list[dict[str, Any]] = [
        {"id": str(i), "answers": {"text": [text for text, _ in q.answers] or [""], "answer_start": [0]}}
        for i, q in enumerate(questions)
    ]
    given = [{"id": str(i), "prediction_text": text} for i, text in enumerate(answers)]
    found = squad(given, wanted)
    return {"exact match": float(found["exact_match"]) / 100, "F1": float(found["f1"]) / 100}


def whole_text(questions: Sequence[Question]) -> Scores:
    """The trivial baseline: the whole text is the answer."""
    return score(questions, [question.context for question in questions])


def _lines(lines: Lines, question: Question, text: str) -> Iterator[str]:
    """A JSON object a question: its id and the answer."""
    yield lines.json(question.path, id=question.id, answer=text)


TASK = Task(
    noun="question",
    kind=SpanBERTForQuestionAnswering,
    read=read_questions,
    read_plain=partial(read_questions, answers=False),
    texts=lambda question: [question.question, question.context],
    fields=lambda questions, start, data: {"num_labels": ENDS},
    examples=_examples,
    collate=lambda model: collate,
    check=lambda model, tokenizer, questions: took("question", len(questions)),
    find=answer,
    score=score,
    baseline=lambda train_on, questions, found: whole_text(questions),
    lines=_lines,
)
train, evaluate, load = TASK.fit, TASK.evaluate_items, TASK.load
