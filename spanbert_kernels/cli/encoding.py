"""From documents to token ids: the windows of long documents, and how many documents fit the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from spanbert_kernels.data.documents import Document
from spanbert_kernels.tasks.vocabulary import train_tokenizer

VOCABULARY_SIZE = 28996  # that of the published cased models
TRAINING_CHARACTERS = 4_000_000
SPECIAL_TOKENS = 2  # [CLS] and [SEP] around every window
Window = tuple[int, ...]  # token ids


@dataclass(frozen=True)
class EncodedDocument:
    """A document's windows of token ids, special tokens included, each within the model's positions."""

    document: Document
    windows: tuple[Window, ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows))


@dataclass(frozen=True)
class Selection:
    """The documents that fit the budget, in order, and what happened to the others."""

    documents: list[EncodedDocument]
    left_out: int
    cut: bool  # the only document taken was itself longer than the budget
    without_tokens: int = 0  # none of which are among those left out

    @property
    def windows(self) -> list[Window]:
        return [window for document in self.documents for window in document.windows]

    @property
    def tokens(self) -> int:
        return sum(document.tokens for document in self.documents)

    @property
    def split(self) -> list[EncodedDocument]:
        return [document for document in self.documents if len(document.windows) > 1]


def train_on(documents: Sequence[Document]) -> Any:
    """A tokenizer whose vocabulary is made of the documents' first four million characters."""
    texts, room = [], TRAINING_CHARACTERS
    for document in documents:
        texts.append(document.text[:room])
        room -= len(texts[-1])
    return train_tokenizer(texts, VOCABULARY_SIZE)


def split_windows(ids: Sequence[int], tokenizer: Any, positions: int) -> tuple[Window, ...]:
    """Cut a document's ids into as few windows as `positions` allows, of equal size give or take one.

    Example:
        >>> from types import SimpleNamespace
        >>> split_windows([7, 8, 9], SimpleNamespace(cls_token_id=101, sep_token_id=102), positions=4)
        ((101, 7, 8, 102), (101, 9, 102))
    """
    count = -(-len(ids) // (positions - SPECIAL_TOKENS))
    size, longer = divmod(len(ids), count)
    starts = [number * size + min(number, longer) for number in range(count + 1)]
    return tuple((tokenizer.cls_token_id, *ids[start:end], tokenizer.sep_token_id) for start, end in pairwise(starts))


def select_documents(documents: Sequence[Document], tokenizer: Any, positions: int, budget: int) -> Selection:
    """Take documents in order, each if it still fits `budget` tokens; count the others.

    Where not even one fits, the first is cut to the budget.
    """
    taken: list[EncodedDocument] = []
    first: EncodedDocument | None = None
    total, without_tokens = 0, 0
    for document in documents:
        if budget - total <= SPECIAL_TOKENS:
            break
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            without_tokens += 1
            continue
        encoded = EncodedDocument(document, split_windows(ids, tokenizer, positions))
        first = first or encoded
        if total + encoded.tokens <= budget:
            taken.append(encoded)
            total += encoded.tokens
    cut = not taken and first is not None
    if first is not None and cut:
        taken.append(EncodedDocument(first.document, tuple(_cut(first.windows, tokenizer.sep_token_id, budget))))
    return Selection(taken, len(documents) - len(taken) - without_tokens, cut, without_tokens)


def _cut(windows: Sequence[Window], end: int, budget: int) -> Iterator[Window]:
    """The first windows, the last one shortened, `budget` tokens in all."""
    for window in windows:
        if budget > SPECIAL_TOKENS:
            yield window if len(window) <= budget else (*window[: budget - 1], end)
        budget -= len(window)
