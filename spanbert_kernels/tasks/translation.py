"""Translation, with a vocabulary of its own for the target."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sacrebleu import corpus_bleu, corpus_chrf

from spanbert_kernels.data.counts import TEST, TRAINING, counting
from spanbert_kernels.data.parallel import Pair, read_aligned, read_sources
from spanbert_kernels.data.sources import Source
from spanbert_kernels.tasks import generation
from spanbert_kernels.tasks.generation import Generator
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.reading import read, read_to_predict
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.task import Outcome, Scores, Task
from spanbert_kernels.tasks.training import TrainingOptions
from spanbert_kernels.tasks.vocabulary import train_tokenizer

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def score(pairs: Sequence[Pair], translations: Sequence[str]) -> Scores:
    """BLEU and chrF from 0 to 100, as sacrebleu has them; Chinese is cut into characters for BLEU."""
    wanted = [pair.targets[0] for pair in pairs]
    tokenize = "zh" if any(CHINESE.search(text) for text in wanted) else "13a"
    given = list(translations)
    return {
        "BLEU": float(corpus_bleu(given, [wanted], tokenize=tokenize).score),
        "chrF": float(corpus_chrf(given, [wanted]).score),
    }


def copied(pairs: Sequence[Pair]) -> Scores:
    """The trivial baseline: the source as it is."""
    return score(pairs, [pair.source for pair in pairs])


def evaluate(generator: Generator, pairs: Sequence[Pair], backend: str = "auto") -> Scores:
    """The scores of a model, and its loss a token."""
    with counting(TEST):
        generation.count_pairs(pairs, generator)
    translations = generation.write(generator, [pair.source for pair in pairs], backend=backend)
    return {**score(pairs, translations), "loss": generation.loss(generator, pairs, backend)}


def _train_files(
    data: Source, test: Source | None, start: Start, options: TrainingOptions, spans: SpanTraining | None
) -> Outcome:
    pairs = read(read_aligned, data, TRAINING)
    held_out = read(read_aligned, test, TEST)
    tokenizer = start.tokenizer(pair.source for pair in pairs)
    target = train_tokenizer((pair.targets[0] for pair in pairs), start.vocabulary_size)
    generator = Generator.build(start, tokenizer, target, options.seed, pairs)
    training = generation.train(generator, pairs, options, spans)
    if not held_out:
        return Outcome(training, {}, {})
    baseline = {**copied(held_out), "loss": generation.unigram_loss(pairs, held_out, generator)}
    return Outcome(training, evaluate(generator, held_out, options.backend), baseline)


def _evaluate_file(folder: Path, data: Source, backend: str) -> Scores:
    return evaluate(Generator.load(folder), read(read_aligned, data, TEST), backend)


def _predict_file(folder: Path, data: Source, backend: str) -> Iterator[str]:
    """A JSON object a line: its translation."""
    pairs = read_to_predict(read_sources, data, "text")
    lines = Lines(pair.path for pair in pairs)
    found = generation.write(Generator.load(folder), [pair.source for pair in pairs], backend=backend)
    for pair, text in zip(pairs, found, strict=True):
        yield lines.record(pair.path, translation=text)


TASK = Task(_train_files, _evaluate_file, _predict_file)
