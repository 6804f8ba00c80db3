"""Vocabularies: made of texts, or read from a vocab.txt as other programs write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from tokenizers import BertWordPieceTokenizer
from transformers import PreTrainedTokenizerBase

from spanbert_kernels.data.text import lines_of, read_text
from spanbert_kernels.models import SpanBERTTokenizer

Tokenizer: TypeAlias = PreTrainedTokenizerBase
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SpanBERTTokenizer:
    """A cased WordPiece tokenizer made from texts, for those who have no vocabulary; the same texts give the same.

    Left alone, the trainer numbers letters in the order of a hash table and breaks ties by these numbers, so that each
    run gives another vocabulary (tokenizers issue 1794); here they are numbered beforehand.
    """
    texts = list(texts)
    trainer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    letters: Counter[str] = Counter()
    inside: set[str] = set()
    for text in texts:
        for word, _ in trainer.pre_tokenizer.pre_tokenize_str(trainer.normalizer.normalize_str(text)):
            letters.update(word)
            inside.update(word[1:])
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[: vocab_size // 2]
    known = [*SPECIAL, *(f"##{letter}" for letter in alphabet if letter in inside)]
    trainer.train_from_iterator(
        texts, vocab_size, initial_alphabet=alphabet, limit_alphabet=len(alphabet), special_tokens=known,
        show_progress=False,
    )  # fmt: skip
    return SpanBERTTokenizer(vocab=trainer.get_vocab())


def read_tokenizer(path: Path) -> SpanBERTTokenizer:
    """The tokenizer of a vocab.txt, an entry a line: the number of a line is its entry's, the last one's if it repeats.

    Special tokens that are not there get numbers after the last line.

    Raises:
        ValueError: there is no entry, or no [UNK] among them, or the file is not text.
        OSError: the file cannot be read.
    """
    numbers = {entry: number for number, entry in enumerate(lines_of(read_text(path))) if entry}
    if "[UNK]" not in numbers:
        raise ValueError(f"{path}: a vocabulary has an entry a line and [UNK] among them, this one has {len(numbers)}")
    return SpanBERTTokenizer(vocab=numbers)


def rows_of(tokenizer: Tokenizer) -> int:
    """The rows that an embedding needs: the largest number and 1, which is more than entries where one repeats.

    Example:
        >>> rows_of(SpanBERTTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "Anna": 9}))
        10
    """
    return int(max(tokenizer.get_vocab().values())) + 1
