"""Translation, with a vocabulary of its own for the target."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sacrebleu import corpus_bleu, corpus_chrf

from spanbert_kernels.data.parallel import Pair, read_aligned, read_sources
from spanbert_kernels.tasks import generation
from spanbert_kernels.tasks.base import Scores
from spanbert_kernels.tasks.formats import TRANSLATIONS
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


TASK = generation.Writing(
    read=read_aligned,
    read_plain=read_sources,
    texts=lambda pair: [pair.source],
    target=lambda pairs, start: train_tokenizer((pair.targets[0] for pair in pairs), start.vocabulary_size),
    score=score,
    measure="BLEU",
    baseline=lambda train_on, pairs, found: copied(pairs),
    predictions=lambda pair, text: [generation.prediction(pair, translation=text)],
    columns=TRANSLATIONS,
)
