"""Documents of wanted lengths, made from the texts at hand by a rule, one after the other, however many are wanted.

The texts are all English sentences of the CoNLL-U files below a folder, file after file by name. A document begins at a
drawn word and holds as many of the words that follow as its drawn length in tokens has room for; or it is a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.data.conllu import read_sentences

MOST = 128  # tokens of a document, special ones counted
SPECIAL = 2
LONGEST = 12  # tokens of a word; longer ones, addresses mostly, are left out
AROUND, SPREAD = 48, 0.6  # of the log-normal lengths
TOGETHER = 4096  # documents that are drawn at once
FILES = ("ewt/en_*.conllu", "gum/dep/*/*.conllu", "pud/en_*.conllu")  # below the folder of the data
Draw = Callable[[np.random.Generator, int], NDArray[np.int64]]


def fixed(length: int) -> Draw:
    """All of one length."""
    return lambda rng, count: np.full(count, length)


def log_normal(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Many short, few long."""
    return np.clip(np.rint(rng.lognormal(np.log(AROUND), SPREAD, count)), 8, MOST).astype(np.int64)


# Tokens of documents, special ones counted; None: sentences, as the texts have them, cut at MOST.
MIXES: dict[str, Draw | None] = {
    "log-normal": log_normal,
    "sentences as they are": None,
    "all of 16": fixed(16),
    "all of 128": fixed(MOST),
}


@dataclass(frozen=True)
class Texts:
    """Words that follow each other, and what each costs.

    Attributes:
        words: of all sentences.
        ends: int64 `[words + 1]`, tokens of all words before.
        sentences: int64, the first word of each sentence, and the number of words.
    """

    words: Sequence[str]
    ends: NDArray[np.int64]
    sentences: NDArray[np.int64]

    @classmethod
    def of(cls, sentences: Sequence[str], pieces: Callable[[Sequence[str]], Sequence[int]]) -> Texts:
        """Of sentences, and a function that says how many tokens each of some words is.

        Example:
            >>> texts = Texts.of(["It rains.", "We go home"], lambda words: [1 + word.endswith(".") for word in words])
            >>> texts.words, texts.ends.tolist(), texts.sentences.tolist()
            (['It', 'rains.', 'We', 'go', 'home'], [0, 1, 3, 4, 5, 6], [0, 2, 5])
        """
        split = [sentence.split() for sentence in sentences]
        words = [word for own in split for word in own]
        costs = np.array(pieces(words), dtype=np.int64)
        short = costs <= LONGEST
        before = np.concatenate([[0], np.cumsum(short)])  # words that are kept before each
        firsts = before[np.concatenate([[0], np.cumsum([len(own) for own in split])])]
        kept = [word for word, keep in zip(words, short.tolist(), strict=True) if keep]
        return cls(kept, np.concatenate([[0], np.cumsum(costs[short])]), np.unique(firsts))

    def documents(self, mix: str, count: int, seed: int = 0) -> Iterator[str]:
        """So many documents of a mix; the same ones for the same seed.

        Example:
            >>> texts = Texts.of(["one two three four"] * 99, lambda words: [1] * len(words))
            >>> [len(text.split()) for text in texts.documents("all of 16", 3)]
            [14, 14, 14]
            >>> list(texts.documents("sentences as they are", 1))
            ['one two three four']
        """
        draw = MIXES[mix]
        for begin in range(0, count, TOGETHER):
            rng = np.random.default_rng([seed, begin])
            number = min(TOGETHER, count - begin)
            if draw is None:
                place = rng.integers(len(self.sentences) - 1, size=number)
                first, stop = self.sentences[place], self.sentences[place + 1]
                room = np.full(number, MOST - SPECIAL)
            else:
                room = draw(rng, number) - SPECIAL
                first, stop = rng.integers(len(self.words) - MOST, size=number), np.full(number, len(self.words))
            last = np.searchsorted(self.ends, self.ends[first] + room, side="right") - 1
            last = np.maximum(np.minimum(last, stop), first + 1)
            yield from (" ".join(self.words[a:b]) for a, b in zip(first.tolist(), last.tolist(), strict=True))


def read_texts(data: Path, tokenizer: str) -> Texts:
    """The texts below a folder, with the tokens that words are to a fast tokenizer (its JSON).

    Raises:
        FileNotFoundError: there are none.
    """
    from tokenizers import Tokenizer

    files = sorted(path for pattern in FILES for path in data.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{data} holds none of {', '.join(FILES)}")
    made = Tokenizer.from_str(tokenizer)
    made.no_truncation()
    made.no_padding()

    def pieces(words: Sequence[str]) -> list[int]:
        known = sorted(set(words))
        found = made.encode_batch_fast(known, add_special_tokens=False)
        counts = dict(zip(known, (len(each.ids) for each in found), strict=True))
        return [counts[word] for word in words]

    return Texts.of([each.text() for path in files for each in read_sentences(path)], pieces)


def write_corpus(path: Path, texts: Texts, mix: str, count: int) -> None:
    """A file of JSON lines, written as the documents come."""
    with path.open("w", encoding="utf-8") as stream:
        for number, text in enumerate(texts.documents(mix, count)):
            stream.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
