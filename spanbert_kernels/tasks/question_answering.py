"""Extractive question answering: the first and the last token of the answer in a text, or that there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.text import squad

from spanbert_kernels.data.counts import cut as cut_short
from spanbert_kernels.data.counts import left_out, took
from spanbert_kernels.data.faults import warn
from spanbert_kernels.data.squad import Question, read_questions
from spanbert_kernels.models import SpanBERTForQuestionAnswering
from spanbert_kernels.tasks.attribution import Claim, Pass, Reading, reading_of_text
from spanbert_kernels.tasks.base import Batches, Scores, Task
from spanbert_kernels.tasks.batches import Example, padded
from spanbert_kernels.tasks.means import Batch, Mean
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.span_training import SpanTraining, shown
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import text_length

OVERLAP = 128  # tokens that neighbouring windows of a long text share
LONGEST_ANSWER = 30  # tokens
ENDS = 2  # of an answer, which the head scores
OUTSIDE = 10**6  # a place beyond every text: the model's loss passes over it


def windows_of(questions: Sequence[Question], tokenizer: Tokenizer, length: int) -> list[Example]:
    """Windows of at most `length` tokens; a long text has several. One without the whole answer points at [CLS].

    `offsets [L, 2]` are the characters of the text's tokens, which stand from column `first` on. A question is cut
    where it takes more than half of the tokens.
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
            found.append(
                {
                    "item": index,
                    "offsets": offsets,
                    "sequence": sequence,
                    "characters": np.array(encoded["offset_mapping"][number]),
                    "words": encoded.word_ids(number),
                    "input_ids": np.array(ids, dtype=np.int64),
                    "token_type_ids": (np.arange(len(ids)) >= context).astype(np.int64),
                    "first": context,
                    "start": start,
                    "end": end,
                }
            )
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


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A padded batch `[B, L]` with `start_positions` and `end_positions [B]`."""
    return {
        **padded(examples, {"input_ids": 0, "token_type_ids": 0}),
        "start_positions": torch.tensor([example["start"] for example in examples]),
        "end_positions": torch.tensor([example["end"] for example in examples]),
    }


def _asked(batch: Batch, config: Any) -> Tensor:
    """The rows that carry loss."""
    return (batch["start_positions"] != OUTSIDE).sum()


def _encode(model: Any, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Example]:
    """The windows of all questions but those whose answer is in no window, which would teach that there is none."""
    examples = windows_of(questions, tokenizer, text_length(model))
    placed = {example["item"] for example in examples if example["start"]}
    lost = {index for index, question in enumerate(questions) if question.answers and index not in placed}
    left_out("question", "its answer fits in no window", len(lost))
    return [example for example in examples if example["item"] not in lost]


def _count(model: Any, tokenizer: Tokenizer, questions: Sequence[Question], examples: Sequence[Example]) -> int:
    number = len({example["item"] for example in examples})
    took("question", number)
    return number


def _dataset(
    model: Any,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    examples: list[Example],
    spans: SpanTraining | None,
    seed: int,
) -> Any:
    """Where a question has no answer, the model may say so later.

    Of an answer that begins or ends inside a token, all of the token is learnt; a warning names the first.
    """
    model.config.answers_may_be_missing = any(not question.answers for question in questions)
    _warn_of_widened(questions, examples)
    return shown(examples, spans, seed, show)


def _warn_of_widened(questions: Sequence[Question], examples: Sequence[Example]) -> None:
    widened: dict[int, str] = {}
    for example in examples:
        question, start, end = questions[example["item"]], example["start"], example["end"]
        learnt = question.context[example["offsets"][start][0] : example["offsets"][end][1]]
        if start and all(learnt != text.strip() for text, _ in question.answers):
            widened.setdefault(example["item"], learnt)
    for number, learnt in list(widened.items())[:1]:
        question = questions[number]
        answer, _ = question.answers[0]
        warn(
            f"{question.path}, question {question.id}: answer {answer!r} begins or ends inside a token, "
            f"so {learnt!r} is learnt; {len(widened)} of {len(questions)} questions are like this"
        )


@dataclass
class _Best:
    """Of a question: the window with the likeliest answer, its first and last column, and both of its scores."""

    window: Example | None = None
    first: int = 0
    last: int = 0
    score: float = -np.inf
    none: float = np.inf


def _best_answers(count: int, batches: Iterable[tuple[list[Example], Any]]) -> list[_Best]:
    found = [_Best() for _ in range(count)]
    for examples, output in batches:
        for row, example in enumerate(examples):
            best, text = found[example["item"]], slice(example["first"], len(example["offsets"]) - 1)
            start, end = output.start_logits[row].float(), output.end_logits[row].float()
            best.none = min(best.none, float(start[0] + end[0]))
            if text.start >= text.stop:
                continue
            score, first, last = _best_span(start[text], end[text])
            if score > best.score:
                best.window, best.score = example, score
                best.first, best.last = text.start + first, text.start + last
    return found


def _text(model: Any, question: Question, best: _Best) -> str:
    missing = getattr(model.config, "answers_may_be_missing", False)
    if best.window is None or (missing and best.none > best.score):
        return ""
    return question.context[best.window["offsets"][best.first][0] : best.window["offsets"][best.last][1]]


def _decode(model: Any, questions: Sequence[Question], batches: Batches) -> list[str]:
    """An answer from each question's text, "" where there is none."""
    best = _best_answers(len(questions), batches)
    return [_text(model, question, each) for question, each in zip(questions, best, strict=True)]


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


def _claims(model: Any, tokenizer: Tokenizer, questions: Sequence[Question], passes: list[Pass]) -> Iterator[Claim]:
    """The answer, in the window that has it, or that there is none."""
    question = questions[passes[0].example["item"]]
    windows = [{**each.example, "item": 0, "number": i} for i, each in enumerate(passes)]
    (best,) = _best_answers(1, (([window], each.output) for window, each in zip(windows, passes, strict=True)))
    if best.window is None:
        return
    window, first, last, text = best.window, best.first, best.last, _text(model, question, best)
    if not text:
        first, last = 0, 0

    def score(output: Any) -> Tensor:
        begin: Tensor = output.start_logits[0].float().log_softmax(-1)[first]
        return begin + output.end_logits[0].float().log_softmax(-1)[last]

    asked, read = (
        _reading(words, window, sequence) for sequence, words in enumerate((question.question, question.context))
    )
    word_of = np.where(read.word_of < 0, asked.word_of, read.word_of + len(asked.words))
    about = set(word_of[0, first : last + 1].tolist()) if text else set()
    yield Claim(
        *(window["number"], text or "no answer", score, Reading((*asked.words, *read.words), word_of)),
        tuple(sorted(about)),
        document=question.id,
        file=str(question.path),
        probability=float(score(passes[window["number"]].output).exp()),
    )


def _reading(text: str, window: Example, sequence: int) -> Reading:
    """Of the question, 0, or of the part of its text that a window shows, 1."""
    own = window["sequence"] == sequence
    offsets = np.where(own[:, None], window["characters"], 0)
    begin, end = (int(offsets[own, 0].min()), int(offsets[own, 1].max())) if own.any() else (0, 0)
    words = [word if mine else None for word, mine in zip(window["words"], own, strict=True)]
    return reading_of_text(text[begin:end], words, (offsets - begin).tolist())


TASK = Task(
    noun="question",
    lack="there is no question whose answer fits in a window",
    kind=SpanBERTForQuestionAnswering,
    read=read_questions,
    read_plain=partial(read_questions, answers=False),
    texts=lambda question: [question.question, question.context],
    fields=lambda questions, start, data: {"num_labels": ENDS},
    bare=lambda question: replace(question, answers=()),
    encode=_encode,
    count=_count,
    dataset=_dataset,
    collate=collate,
    answers=("start_positions", "end_positions"),
    means=(Mean(_asked),),
    decode=_decode,
    score=score,
    baseline=lambda train_on, questions, found: whole_text(questions),
    predictions=lambda question, text: [
        Prediction(question.path, found={"id": question.id, "question": question.question, "answer": text})
    ],
    claims=_claims,
)
train, evaluate, load, answer = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
