"""Summaries of documents, long ones in windows that see each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from rouge_score.rouge_scorer import RougeScorer

from spanbert_kernels.data.counts import TEST, TRAINING, counting
from spanbert_kernels.data.parallel import Pair
from spanbert_kernels.data.sources import Source
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.tasks import generation
from spanbert_kernels.tasks.generation import Generator
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.reading import read, read_to_predict
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.task import Outcome, Scores, Task
from spanbert_kernels.tasks.training import TrainingOptions

METRICS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
LENGTH = 64  # tokens of a summary that is written
LABEL_SMOOTHING = 0.1  # summaries are few; Vaswani et al. 2017, Attention Is All You Need
FIRST_SENTENCE = re.compile(r".+?[.!?](?=\s|$)|.+", re.DOTALL)


def score(pairs: Sequence[Pair], summaries: Sequence[str]) -> Scores:
    """F1 of ROUGE with stemming, the best over a document's summaries, a mean over documents."""
    scorer = RougeScorer(list(METRICS), use_stemmer=True)
    found = [scorer.score_multi(list(p.targets), text) for p, text in zip(pairs, summaries, strict=True)]
    return {title: mean(each[name].fmeasure for each in found) for name, title in METRICS.items()}


def lead(pairs: Sequence[Pair]) -> Scores:
    """The trivial baseline: the first sentence."""
    firsts = (FIRST_SENTENCE.match(pair.source) for pair in pairs)
    return score(pairs, [first[0] if first else "" for first in firsts])


def evaluate(generator: Generator, pairs: Sequence[Pair], backend: str = "auto") -> Scores:
    """The scores of a model, and its loss a token."""
    with counting(TEST):
        generation.count_pairs(pairs, generator)
    summaries = generation.write(generator, [pair.source for pair in pairs], LENGTH, backend)
    return {**score(pairs, summaries), "loss": generation.loss(generator, pairs, backend)}


def _train_files(
    data: Source, test: Source | None, start: Start, options: TrainingOptions, spans: SpanTraining | None
) -> Outcome:
    pairs = read(read_summarised, data, TRAINING)
    held_out = read(read_summarised, test, TEST)
    tokenizer = start.tokenizer(text for pair in pairs for text in (pair.source, *pair.targets))
    generator = Generator.build(start, tokenizer, tokenizer, options.seed, pairs)
    training = generation.train(generator, pairs, options, spans, LABEL_SMOOTHING)
    if not held_out:
        return Outcome(training, {}, {})
    baseline = {**lead(held_out), "loss": generation.unigram_loss(pairs, held_out, generator)}
    return Outcome(training, evaluate(generator, held_out, options.backend), baseline)


def _evaluate_file(folder: Path, data: Source, backend: str) -> Scores:
    return evaluate(Generator.load(folder), read(read_summarised, data, TEST), backend)


def _predict_file(folder: Path, data: Source, backend: str) -> Iterator[str]:
    """A JSON object a document: its summary."""
    pairs = read_to_predict(partial(read_summarised, targets=False), data, "text")
    lines = Lines(pair.path for pair in pairs)
    found = generation.write(Generator.load(folder), [pair.source for pair in pairs], LENGTH, backend)
    for pair, text in zip(pairs, found, strict=True):
        yield lines.record(pair.path, summary=text)


TASK = Task(_train_files, _evaluate_file, _predict_file)
