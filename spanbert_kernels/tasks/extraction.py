"""Extractive summaries: the sentences of a document that say most of it, as they stand there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanbert_kernels.data.counts import cut as cut_short
from spanbert_kernels.data.counts import left_out, took
from spanbert_kernels.data.parallel import Pair
from spanbert_kernels.data.splitting import Located, Place, sentences_in
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.models import SpanBERTForExtraction
from spanbert_kernels.tasks import summarisation
from spanbert_kernels.tasks.attribution import Claim, Pass, reading_of_words
from spanbert_kernels.tasks.base import Batches, Scores, Task
from spanbert_kernels.tasks.batches import Example, joined, padded
from spanbert_kernels.tasks.formats import SUMMARISED
from spanbert_kernels.tasks.means import Batch, Mean
from spanbert_kernels.tasks.predictions import Mark, Prediction
from spanbert_kernels.tasks.progress import counted
from spanbert_kernels.tasks.span_training import cut
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import count_cut_words, encoded, pieces_of, text_length
from spanbert_kernels.tasks.windows import cut as cut_windows

ASKED = 1000  # documents that say how many sentences a summary has
NO_PART = -1.0  # the gain of a sentence that has no part in the loss


def sentences_of(pair: Pair) -> list[list[Place]]:
    """The places of the words of each sentence in the source: as its file has them, or as plain text is split.

    Example:
        >>> from pathlib import Path
        >>> sentences_of(Pair("It rains. So be it.", (), Path("a"), 1, ("It rains. So", "be it.")))[1]
        [(13, 15), (16, 18), (18, 19)]
    """
    if not pair.sentences:
        return list(sentences_in(pair.source))
    found, start = [], 0
    for text in pair.sentences:
        words = [place for own in sentences_in(text) for place in own]
        found.append([(start + begin, start + end) for begin, end in words])
        start += len(text) + 1
    return [own for own in found if own]


def gain(pair: Pair, text: str) -> float:
    """What a text is worth as the summary: the mean of its ROUGE-1, -2 and -L, each the best over those wanted."""
    return mean(summarisation.rouge(pair.targets, text).values())


def text_of(pair: Pair, places: Sequence[Place]) -> str:
    """Sentences of the source as one text."""
    return " ".join(pair.source[start:end] for start, end in places)


def greedily(pair: Pair) -> list[Place]:
    """The sentences that summarise a document best, each of them the one that brings most to those before it.

    Source: Nallapati et al. 2017, SummaRuNNer, whose labels are made so.
    """
    left = [(own[0][0], own[-1][1]) for own in sentences_of(pair)]
    chosen: list[Place] = []
    best = 0.0
    while left:
        values = [gain(pair, text_of(pair, sorted([*chosen, place]))) for place in left]
        if max(values) <= best:
            break
        best = max(values)
        chosen.append(left.pop(values.index(best)))
    return sorted(chosen)


def commonest_count(pairs: Sequence[Pair]) -> int:
    """How many sentences summarise most of the documents best, 1 at least."""
    counts = Counter(max(len(greedily(pair)), 1) for pair in counted(pairs[:ASKED], "counting sentences"))
    return max(counts, key=lambda count: (counts[count], -count))


def encode(pairs: Sequence[Pair], tokenizer: Tokenizer, length: int) -> list[Example]:
    """An example a document: its tokens, its words, the first and last of each sentence, and what each is worth.

    A sentence ends before the word with which it would not fit in a window of `length` tokens. Without a summary, as
    where it is to be predicted, no sentence has a part in the loss.
    """
    found = []
    for index, pair in enumerate(counted(pairs, "reading sentences")):
        if sentences := sentences_of(pair):
            found.append({"item": index, **_encoded(pair, sentences, tokenizer, length)})
        else:
            left_out("document", "without words")
    return found


def _encoded(pair: Pair, sentences: Sequence[Sequence[Place]], tokenizer: Tokenizer, length: int) -> Example:
    words = [pair.source[start:end] for own in sentences for start, end in own]
    pieces = pieces_of(words, tokenizer, length - 2)
    lengths = np.array([len(own) for own in sentences])
    sentence = np.repeat(np.arange(len(sentences)), lengths)
    ends = np.cumsum([len(own) for own in pieces])
    begins = np.append(0, ends[lengths.cumsum() - 1])[:-1]  # in pieces, of sentences
    fits = ends - begins[sentence] <= length - 2
    kept = np.bincount(sentence[fits], minlength=len(sentences))
    ids, word_starts = encoded([own for own, there in zip(pieces, fits, strict=True) if there], tokenizer)
    places = [(own[0][0], own[-1][1]) for own in sentences]
    worth = [gain(pair, text_of(pair, [place])) if pair.targets else NO_PART for place in places]
    return {
        "input_ids": ids,
        "word_starts": word_starts,
        "sentences": np.stack((kept.cumsum() - kept, kept.cumsum() - 1), 1),
        "gains": np.array(worth, dtype=np.float32),
        "length": length,
        "words": tuple(word for word, there in zip(words, fits, strict=True) if there),
        "cut": int((kept < lengths).sum()),
        "places": places,
    }


def windows_of(example: Example) -> tuple[list[Example], NDArray[np.int64]]:
    """Windows of whole sentences, and `[S, 3]`: the row, first and last word there of each sentence."""
    ids, sentences = example["input_ids"], example["sentences"]
    starts = np.append(example["word_starts"], len(ids) - 1)
    sizes = (starts[sentences[:, 1] + 1] - starts[sentences[:, 0]]).tolist()
    rows: list[Example] = []
    bounds = []
    for first, last in cut_windows(("",) * len(sizes), sizes, example["length"] - 2, ()):
        begin, end = sentences[first, 0], sentences[last - 1, 1] + 1
        bounds.append(np.insert(sentences[first:last] - begin, 0, len(rows), axis=1))
        columns = slice(starts[begin], starts[end])
        rows.append({"input_ids": cut(ids, columns), "word_starts": starts[begin:end] - columns.start + 1})
    return rows, np.concatenate(bounds)


def show(example: Example, span: slice, crop: str) -> Example:
    """Span training: the words of which a piece lies in the span; sentences without one carry no loss."""
    starts, sentences = np.append(example["word_starts"], len(example["input_ids"]) - 1), example["sentences"]
    first = max(int(np.searchsorted(starts, span.start, side="right")) - 1, 0)
    last = int(np.searchsorted(starts[:-1], span.stop))
    inside = (sentences[:, 1] >= first) & (sentences[:, 0] < last)
    if crop == "loss":
        return {**example, "gains": np.where(inside, example["gains"], np.float32(NO_PART))}
    return {
        "input_ids": cut(example["input_ids"], slice(starts[first], starts[last])),
        "word_starts": starts[first:last] - starts[first] + 1,
        "sentences": sentences[inside].clip(first, last - 1) - first,
        "gains": example["gains"][inside],
        "length": example["length"],
    }


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A padded batch of windows; `sentences [S, 3]`, `gains [S]`, `cu_sentences [D + 1]`."""
    rows, sentences = zip(*map(windows_of, examples), strict=True)
    ends = np.cumsum([0, *map(len, sentences)])
    return {
        **padded([row for own in rows for row in own], {"input_ids": 0, "word_starts": -1}),
        "sentences": joined(sentences, list(map(len, rows)), column=0),
        "gains": torch.from_numpy(np.concatenate([example["gains"] for example in examples])),
        "cu_sentences": torch.from_numpy(ends),
    }


def _documents(batch: Batch, config: Any) -> int:
    return len(batch["cu_sentences"]) - 1


def _count(model: Any, tokenizer: Tokenizer, pairs: Sequence[Pair], examples: Sequence[Example]) -> int:
    """Counts documents and sentences; gives how many documents have a choice."""
    room = text_length(model) - 2
    took("document", len(examples))
    took("sentence", sum(len(example["sentences"]) for example in examples))
    count_cut_words((example["words"] for example in examples), tokenizer, room)
    cut_short("sentence", f"to the words that fit in {room} pieces", sum(example["cut"] for example in examples))
    return sum(len(example["sentences"]) > 1 for example in examples)


def _picked(model: Any, logits: Tensor) -> list[int]:
    """The sentences with the best scores, in their order."""
    count = min(model.config.picked_sentences, len(logits))
    return sorted(logits.sort(descending=True, stable=True).indices[:count].tolist())


def _decode(model: Any, pairs: Sequence[Pair], batches: Batches) -> list[tuple[Place, ...]]:
    """The sentences that are picked of each document, in the characters of its source."""
    found: list[tuple[Place, ...]] = [()] * len(pairs)
    for examples, output in batches:
        parts = output.logits.split([len(example["places"]) for example in examples])
        for example, logits in zip(examples, parts, strict=True):
            found[example["item"]] = tuple(example["places"][i] for i in _picked(model, logits))
    return found


def score(pairs: Sequence[Pair], found: Sequence[Sequence[Place]]) -> Scores:
    """ROUGE of the sentences as one text."""
    return summarisation.score(pairs, [text_of(pair, places) for pair, places in zip(pairs, found, strict=True)])


def _predictions(pair: Pair, places: Sequence[Place]) -> Iterator[Prediction]:
    marks = tuple(Mark(start, end) for start, end in places)
    summary = {"summary": text_of(pair, places)}
    yield Prediction(pair.path, pair.line, Located(pair.source, ()), marks, "sentences", found=summary)


def _claims(model: Any, tokenizer: Tokenizer, pairs: Sequence[Pair], passes: list[Pass]) -> Iterator[Claim]:
    """Each sentence that is picked, by its share of the document's softmax."""
    ((example, batch, output, _),) = passes
    pair = pairs[example["item"]]
    rows, _ = windows_of(example)
    reading = reading_of_words(example["words"], 0, rows, batch["input_ids"].shape[1])
    for number in _picked(model, output.logits):
        (start, end), (first, last) = example["places"][number], example["sentences"][number].tolist()

        def score(output: Any, number: int = number) -> Tensor:
            chance: Tensor = output.logits.log_softmax(-1)[number]
            return chance

        yield Claim(
            *(0, pair.source[start:end], score, reading, tuple(range(first, last + 1))),
            document=pair.source,
            file=str(pair.path),
            probability=float(score(output).exp()),
        )


TASK = Task(
    noun="document",
    lack="no document has two sentences",
    kind=SpanBERTForExtraction,
    read=read_summarised,
    read_plain=partial(read_summarised, targets=False),
    texts=lambda pair: [pair.source],
    fields=lambda pairs, start, data: {"picked_sentences": commonest_count(pairs)},
    bare=lambda pair: replace(pair, targets=()),
    encode=lambda model, tokenizer, pairs: encode(pairs, tokenizer, text_length(model)),
    count=_count,
    show=show,
    collate=collate,
    answers=("gains",),
    means=(Mean(_documents),),
    decode=_decode,
    score=score,
    measure="ROUGE-L",
    baseline=lambda train_on, pairs, found: summarisation.lead(pairs),
    predictions=_predictions,
    columns=SUMMARISED,
    claims=_claims,
)
train, evaluate, load, extract = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
