"""Documents of words as windows that a model can hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.data.counts import cut as cut_short
from spanbert_kernels.tasks.vocabulary import Tokenizer

SENTENCE_ENDS = frozenset(".!?")
WINDOW = 128  # tokens of a window, special ones counted, where the model can hold more


def window_length(model: Any) -> int:
    """Tokens of a window."""
    return min(WINDOW, model.config.max_position_embeddings)


def pieces_of(words: Sequence[str], tokenizer: Tokenizer, room: int) -> list[list[int]]:
    """The word pieces of each word, at least one and at most `room`."""
    return [tokenizer(word, add_special_tokens=False)["input_ids"][:room] or [tokenizer.unk_token_id] for word in words]


def cut(
    words: Sequence[str], sizes: Sequence[int], room: int, ends: Collection[str] = SENTENCE_ENDS
) -> Iterator[tuple[int, int]]:
    """First words and the words after the last ones of windows of at most `room` pieces.

    A window ends with a sentence where one of `ends` stands in it, else with a word.

    Example:
        >>> list(cut(["Yes", ".", "It", "is", "so"], [1, 1, 1, 1, 1], 3))
        [(0, 2), (2, 5)]
    """
    first = 0
    while first < len(words):
        last, used = first, 0
        while last < len(words) and used + sizes[last] <= room:
            used += sizes[last]
            last += 1
        if last < len(words):
            last = max((word + 1 for word in range(first, last) if words[word] in ends), default=last)
        yield first, last
        first = last


def encoded(pieces: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A window's tokens, the special ones around them, and the column of each word's first piece."""
    ids = [tokenizer.cls_token_id, *(piece for word in pieces for piece in word), tokenizer.sep_token_id]
    return np.array(ids, dtype=np.int64), np.cumsum([1, *map(len, pieces)])[:-1]


def count_cut_words(texts: Iterable[Sequence[str]], tokenizer: Tokenizer, room: int) -> None:
    """Counts the words of more than `room` pieces, of which `pieces_of` keeps so many."""
    long = (word for words in texts for word in words if len(word) > room)  # a piece has a letter at least
    number = sum(len(tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]) > room for word in long)
    cut_short("word", f"to its first {room} pieces", number)
