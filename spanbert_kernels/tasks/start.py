"""What a training begins with: a checkpoint, or a new model and a vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import PreTrainedTokenizerBase

from spanbert_kernels.models import SpanBERTConfig, SpanBERTTokenizer
from spanbert_kernels.models.checkpoints import what_would_work
from spanbert_kernels.models.damage import CannotLoad, loading

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES = {  # layers, hidden size, heads
    "tiny": (2, 128, 2),
    "small": (4, 256, 4),
    "base": (12, 768, 12),
}


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


def load_trained(kind: Any, folder: Path) -> Any:
    """The model of the class `kind` that a training wrote to the folder.

    Raises:
        ValueError: the folder's model has another head, so that this one's weights would be random, or lacks weights.
        CannotLoad: a file of it is damaged.
        OSError: there is no such folder, or no model in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    with loading(folder):
        model, found = kind.from_pretrained(folder, output_loading_info=True)
    written = model.config.architectures or ["a model without a head"]
    if written[0].removeprefix("Span") != kind.__name__.removeprefix("Span"):
        raise ValueError(f"{folder} holds {written[0]}, not {kind.__name__}: train it for this task first")
    if missing := sorted(found["missing_keys"]):
        raise CannotLoad(
            f"cannot load the model in {folder}: it lacks {len(missing):,} of its weights, such as {missing[0]}"
        )
    return model


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from, or the size of a new model.

    Attributes:
        model: a folder, a hub name, "spanbert-base" or "spanbert-large"; None for a new model.
        size: of a new model, one of `SIZES`.
        vocabulary: a vocab.txt for a new model; by default one of `vocabulary_size` entries is made of the texts.
    """

    model: str | None = None
    size: str = "small"
    vocabulary: Path | None = None
    vocabulary_size: int = 8000

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The checkpoint's, that of the vocabulary, or one made of the texts."""
        if self.vocabulary is not None:
            return SpanBERTTokenizer(vocab=self.vocabulary)
        if self.model is not None:
            self.layers()  # says what is wrong with a name; the tokenizer would ask for a vocabulary
            found: PreTrainedTokenizerBase = SpanBERTTokenizer.from_pretrained(self.model)
            return found
        return train_tokenizer(texts, self.vocabulary_size)

    def layers(self) -> int:
        """Of the encoder.

        Raises:
            OSError: nothing by the name of the checkpoint.
        """
        if self.model is None:
            return SIZES[self.size][0]
        try:
            return int(SpanBERTConfig.from_pretrained(self.model).num_hidden_layers)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or Path(self.model).is_dir():
                raise
            raise OSError(f"cannot load checkpoint {self.model!r} from the hub: give {what_would_work()}") from error

    def build(self, kind: Any, tokenizer: PreTrainedTokenizerBase, seed: int, **fields: Any) -> Any:
        """A model of the class `kind`; `fields` are of its configuration."""
        torch.manual_seed(seed)
        if self.model is not None:
            return kind.from_pretrained(self.model, **fields)
        layers, hidden, heads = SIZES[self.size]
        shape = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
        config = {**shape, "intermediate_size": 4 * hidden, "vocab_size": len(tokenizer), **fields}
        return kind(kind.config_class(**config))
