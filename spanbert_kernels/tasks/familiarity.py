"""Whether texts are like those that a model was trained on: its vocabulary has their words, they are in its case."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, chain, takewhile
from typing import Any

from spanbert_kernels.data.faults import warn
from spanbert_kernels.data.splitting import words_in
from spanbert_kernels.tasks.vocabulary import Tokenizer

FIELD = "capitalised_words"  # of a model's configuration: their share in the texts that it was trained on
MOST_UNKNOWN = 0.05  # of the words
MOST_TIMES, LEAST_SHARE = 4.0, 0.05  # shares of capitalised words differ where one is above so much and so many times
SAMPLE = 200_000  # characters that are looked at
FEWEST = 20  # words, of which shares can be told


def capitalised(texts: Iterable[str]) -> float | None:
    """The share of words that begin with a capital letter; None where too few have a case.

    Example:
        >>> capitalised(["Anna went to Oslo , she said ."] * 4)
        0.3333333333333333
    """
    starts = [text[start] for text in sample(texts) for start, _ in words_in(text)]
    cased = [letter.isupper() for letter in starts if letter.isupper() or letter.islower()]
    return sum(cased) / len(cased) if len(cased) >= FEWEST else None


def unknown(texts: Iterable[str], tokenizer: Tokenizer) -> float | None:
    """The share of words that hold a piece that the tokenizer does not know; None where there are too few words."""
    words = pieces = 0
    for text in sample(texts):
        encoding = tokenizer(text, add_special_tokens=False, verbose=False)
        of_word = encoding.word_ids()
        unseen = {
            word for word, piece in zip(of_word, encoding["input_ids"], strict=True) if piece == tokenizer.unk_token_id
        }
        words, pieces = words + len(set(of_word)), pieces + len(unseen)
    return pieces / words if words >= FEWEST else None


def sample(texts: Iterable[str]) -> Iterable[str]:
    """The first ones, some hundred thousand characters in all."""
    listed = [text[:SAMPLE] for text in texts]
    ends = accumulate(map(len, listed))
    begins = chain([0], ends)
    return [text for text, _ in takewhile(lambda each: each[1] < SAMPLE, zip(listed, begins, strict=False))]


def warn_of_strange_texts(config: Any, tokenizer: Tokenizer, texts: Iterable[str], name: str) -> None:
    """Warns where the words of texts are not the model's, or the texts are in another case than those it learnt from.

    Args:
        config: the model's; what was trained before the case was kept does not say it.
        tokenizer: the model's.
        texts: to predict for.
        name: of the texts, for the message.
    """
    texts = list(texts)
    parts = []
    missing = unknown(texts, tokenizer)
    if missing is not None and missing > MOST_UNKNOWN:
        parts.append(f"{missing:.0%} of the words are not in the model's vocabulary")
    before, now = getattr(config, FIELD, None), capitalised(texts)
    if before is not None and now is not None and not _is_blind(tokenizer):
        less, more = sorted((before, now))
        if more > LEAST_SHARE and more > MOST_TIMES * less:
            parts.append(f"{now:.0%} of the words are capitalised, in what the model was trained on {before:.0%}")
    if parts:
        warn(f"{name}: {', and '.join(parts)}: do not trust what is found before you have looked at some of it")


def _is_blind(tokenizer: Tokenizer) -> bool:
    """Whether case makes no difference to a tokenizer."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and str(normalizer.normalize_str("A")) == "a"
