"""Documents of words as windows that a model can hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.data.counts import cut as cut_short
from spanbert_kernels.tasks.vocabulary import Tokenizer

SENTENCE_ENDS = frozenset(".!?")
FIELD = "text_length"  # of a model's configuration: tokens of a text or a window, where there could be more
WINDOW = 128  # tokens of a window, special ones counted, where the model can hold more


def limit(config: Any, length: int) -> None:
    """Has texts cut at `length` tokens, or into windows of so many, where the model could hold more.

    Raises:
        ValueError: it holds fewer.
    """
    if length > config.positions:
        raise ValueError(f"max_length {length} is more than the {config.positions} positions that the model has")
    setattr(config, FIELD, length)


def text_length(model: Any) -> int:
    """Tokens of a text that is not cut into windows where it need not be."""
    return int(getattr(model.config, FIELD, None) or model.config.positions)


def window_length(model: Any) -> int:
    """Tokens of a window."""
    return int(getattr(model.config, FIELD, None) or min(WINDOW, model.config.positions))


def pieces_of(words: Sequence[str], tokenizer: Tokenizer, room: int) -> list[list[int]]:
    r"""The pieces of each word, at least one and at most `room`, as they are where a space is between two words.

    The tokenizer gets the words as one text, and its offsets say whose a piece is: given as words, BPE that marks the
    space before a word would take each for the beginning of a text.

    Example:
        >>> from transformers import BertTokenizer
        >>> vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Ann", "##a", "is"])}
        >>> pieces_of(["Anna", "\x00", "is"], BertTokenizer(vocab=vocabulary, do_lower_case=False), room=9)
        [[4, 5], [1], [6]]
    """
    text = " ".join(words)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found: list[list[int]] = [[] for _ in words]
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    places = [start for start, _ in encoding["offset_mapping"]]  # perhaps of the space before a word
    for piece, word in zip(encoding["input_ids"], np.searchsorted(ends, places, side="right").tolist(), strict=True):
        found[min(word, len(words) - 1)].append(piece)
    return [own[:room] or [tokenizer.unk_token_id] for own in found]


def ends_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """The special tokens before and behind a text, as the tokenizer sets them.

    Raises:
        ValueError: it sets others than one before and one behind.
    """
    around = tokenizer("")["input_ids"]
    if len(around) != 2:
        tokens = tokenizer.convert_ids_to_tokens(around)
        raise ValueError(f"a special token before a text and one behind it are wanted, the tokenizer sets {tokens}")
    return around[0], around[1]


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
    first, last = ends_of(tokenizer)
    ids = [first, *(piece for word in pieces for piece in word), last]
    return np.array(ids, dtype=np.int64), np.cumsum([1, *map(len, pieces)])[:-1]


def windows(
    words: Sequence[str], tokenizer: Tokenizer, length: int, ends: Collection[str] = SENTENCE_ENDS
) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
    """Windows of at most `length` tokens: the first word, the one after the last, and what `encoded` gives."""
    pieces = pieces_of(words, tokenizer, length - 2)
    for first, last in cut(words, [len(own) for own in pieces], length - 2, ends):
        yield first, last, *encoded(pieces[first:last], tokenizer)


def count_cut_words(texts: Iterable[Sequence[str]], tokenizer: Tokenizer, room: int) -> None:
    """Counts the words of more than `room` pieces, of which `pieces_of` keeps so many."""
    # a piece has a byte at least, or is the space before the word
    long = (word for words in texts for word in words if len(word.encode()) >= room)
    number = sum(len(tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]) > room for word in long)
    cut_short("word", f"to its first {room} pieces", number)
