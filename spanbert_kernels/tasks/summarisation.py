"""Summaries of documents, long ones in windows that see each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from statistics import mean

from rouge_score.rouge_scorer import RougeScorer

from spanbert_kernels.data.parallel import Pair
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.tasks import generation
from spanbert_kernels.tasks.base import Scores
from spanbert_kernels.tasks.formats import SUMMARISED

METRICS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
LENGTH = 64  # tokens of a summary that is written
LABEL_SMOOTHING = 0.1  # summaries are few; Vaswani et al. 2017, Attention Is All You Need
FIRST_SENTENCE = re.compile(r".+?[.!?](?=\s|$)|.+", re.DOTALL)


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(METRICS), use_stemmer=True)


def rouge(targets: Sequence[str], text: str) -> Scores:
    """F1 of ROUGE with stemming of a text, each the best over several summaries.

    Example:
        >>> rouge(["the cat sat", "a dog"], "the cat")["ROUGE-2"]
        0.6666666666666666
    """
    found = _scorer().score_multi(list(targets), text)
    return {title: found[name].fmeasure for name, title in METRICS.items()}


def score(pairs: Sequence[Pair], summaries: Sequence[str]) -> Scores:
    """F1 of ROUGE with stemming, the best over a document's summaries, a mean over documents."""
    found = [rouge(pair.targets, text) for pair, text in zip(pairs, summaries, strict=True)]
    return {title: mean(each[title] for each in found) for title in METRICS.values()}


def lead(pairs: Sequence[Pair]) -> Scores:
    """The trivial baseline: the first sentence."""
    firsts = (FIRST_SENTENCE.match(pair.source) for pair in pairs)
    return score(pairs, [first[0] if first else "" for first in firsts])


TASK = generation.Writing(
    read=read_summarised,
    read_plain=partial(read_summarised, targets=False),
    texts=lambda pair: [pair.source, *pair.targets],
    length=LENGTH,
    score=score,
    measure="ROUGE-L",
    baseline=lambda train_on, pairs, found: lead(pairs),
    predictions=lambda pair, text: [generation.prediction(pair, summary=text)],
    columns=SUMMARISED,
    label_smoothing=LABEL_SMOOTHING,
)
