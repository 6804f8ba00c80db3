"""Small tokenizers of each kind: lower-cased WordPiece, byte-level BPE, SentencePiece's Unigram."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from transformers import BertTokenizer, PreTrainedTokenizerBase, RobertaTokenizer, XLMRobertaTokenizer

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_piece(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """Every letter is an entry, alone and inside a word, and the commonest words are."""
    letters = sorted(set("".join(texts).lower()) - {" "})
    words = sorted({word for text in texts for word in text.lower().split() if len(word) > 1})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, do_lower_case=True)


def byte_pairs(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts, 300, special_tokens=SPECIAL, show_progress=False)
    model = json.loads(trainer.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def unigram(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    trainer = SentencePieceUnigramTokenizer()
    trainer.train_from_iterator(texts, 60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return XLMRobertaTokenizer(vocab=[tuple(entry) for entry in json.loads(trainer.to_str())["model"]["vocab"]])


KINDS: dict[str, Callable[[Sequence[str]], PreTrainedTokenizerBase]] = {
    "word pieces": word_piece,
    "byte pairs": byte_pairs,
    "unigrams": unigram,
}
