"""From documents to token ids: the tokenizer, the windows of long documents, and how many fit the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from spanbert_kernels.data.documents import Document

VOCABULARY_SIZE = 28996  # that of the published cased models
TRAINING_CHARACTERS = 4_000_000
SPECIAL_TOKENS = 2  # [CLS] and [SEP] around every window
SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHUNK = 64


@dataclass(frozen=True)
class WordPieces:
    """A tokenizer reduced to what the demo needs; `encode` adds no special tokens."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    cls: int
    sep: int
    pad: int
    size: int
    origin: str


@dataclass(frozen=True)
class EncodedDocument:
    """A document's windows of token ids, special tokens included, each within the model's positions."""

    document: Document
    windows: tuple[tuple[int, ...], ...]

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
    def windows(self) -> list[tuple[int, ...]]:
        return [window for document in self.documents for window in document.windows]

    @property
    def tokens(self) -> int:
        return sum(document.tokens for document in self.documents)

    @property
    def split(self) -> list[EncodedDocument]:
        return [document for document in self.documents if len(document.windows) > 1]


def train_word_pieces(documents: Sequence[Document], size: int = VOCABULARY_SIZE) -> WordPieces:
    """A cased WordPiece vocabulary trained on the documents themselves (on their first four million characters)."""
    from tokenizers import BertWordPieceTokenizer

    texts, characters = [], 0
    for document in documents:
        texts.append(document.text[: TRAINING_CHARACTERS - characters])
        characters += len(texts[-1])
        if characters >= TRAINING_CHARACTERS:
            break
    # Without the pieces of one letter at hand the trainer numbers them in the order of a hash table that is seeded by
    # chance, and breaks ties between merges by these numbers: another vocabulary in every process.
    letters = [f"##{letter}" for letter in sorted(set("".join(texts))) if not letter.isspace()]
    trainer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trainer.train_from_iterator(
        texts,
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*SPECIAL_PIECES, *letters],
    )
    tokenizer = BertWordPieceTokenizer(trainer.get_vocab(), lowercase=False, strip_accents=False)

    def encode(batch: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch(list(batch), add_special_tokens=False)]

    entries = tokenizer.get_vocab_size()
    return WordPieces(
        encode,
        cls=tokenizer.token_to_id("[CLS]"),
        sep=tokenizer.token_to_id("[SEP]"),
        pad=tokenizer.token_to_id("[PAD]"),
        size=entries,
        origin=f"cased WordPiece vocabulary of {entries:,} entries, trained on the documents",
    )


def wrap_tokenizer(tokenizer: Any, name: str) -> WordPieces:
    """A transformers tokenizer as `WordPieces`.

    Raises:
        ValueError: it has no [CLS], [SEP] or [PAD], which a BERT needs.
    """
    special = {key: getattr(tokenizer, f"{key}_token_id") for key in ("cls", "sep", "pad")}
    missing = [f"[{key.upper()}]" for key, index in special.items() if index is None]
    if missing:
        raise ValueError(f"the tokenizer of {name} has no {', '.join(missing)}")

    def encode(batch: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(list(batch), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    origin = f"the tokenizer of {name}, {len(tokenizer):,} entries"
    return WordPieces(encode, **special, size=len(tokenizer), origin=origin)


def split_windows(ids: Sequence[int], pieces: WordPieces, positions: int) -> tuple[tuple[int, ...], ...]:
    """Cut a document's ids into as few windows as `positions` allows, of equal size give or take one.

    Example:
        >>> pieces = WordPieces(encode=lambda batch: [], cls=101, sep=102, pad=0, size=200, origin="")
        >>> split_windows([7, 8, 9], pieces, positions=4)
        ((101, 7, 8, 102), (101, 9, 102))
    """
    room = positions - SPECIAL_TOKENS
    count = -(-len(ids) // room)
    size, longer = divmod(len(ids), count)
    windows, start = [], 0
    for number in range(count):
        end = start + size + (number < longer)
        windows.append((pieces.cls, *ids[start:end], pieces.sep))
        start = end
    return tuple(windows)


def select_documents(documents: Sequence[Document], pieces: WordPieces, positions: int, budget: int) -> Selection:
    """Take documents in order, each if it still fits `budget` tokens; count the others.

    Where not even one fits, the first is cut to the budget.
    """
    taken: list[EncodedDocument] = []
    first: EncodedDocument | None = None
    total, without_tokens = 0, 0
    remaining = iter(documents)
    while budget - total > SPECIAL_TOKENS and (chunk := list(islice(remaining, _CHUNK))):
        for document, ids in zip(chunk, pieces.encode([document.text for document in chunk]), strict=True):
            if not ids:
                without_tokens += 1
                continue
            encoded = EncodedDocument(document, split_windows(ids, pieces, positions))
            first = first or encoded
            if total + encoded.tokens <= budget:
                taken.append(encoded)
                total += encoded.tokens
    cut = not taken and first is not None
    if first is not None and cut:
        taken.append(_cut(first, pieces, budget))
    return Selection(taken, len(documents) - len(taken) - without_tokens, cut, without_tokens)


def _cut(encoded: EncodedDocument, pieces: WordPieces, budget: int) -> EncodedDocument:
    """The document's first windows, the last one shortened, `budget` tokens in all."""
    windows: list[tuple[int, ...]] = []
    for window in encoded.windows:
        room = budget - sum(map(len, windows))
        if room <= SPECIAL_TOKENS:
            break
        windows.append(window if len(window) <= room else (*window[: room - 1], pieces.sep))
    return EncodedDocument(encoded.document, tuple(windows))
