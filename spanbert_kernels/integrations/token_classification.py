"""Entities of a token classification pipeline, as transformers groups them, without work for tokens outside of them.

transformers makes a dictionary of each token, group by group. Here labels, scores and the bounds of groups are found
for all tokens at once, and words are written out for the entities that are returned alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement

Array = NDArray[Any]
_BY_WORD = ("first", "average", "max")


@dataclass
class Units:
    """Tokens, or words of several tokens, that a label is given to.

    Attributes:
        labels: the index of each one's label.
        scores: the score of that label.
        first, last: their tokens, as indices of the tokens that are no special ones.
        word: writes one out.
    """

    labels: Array
    scores: Array
    first: Array
    last: Array
    word: Callable[[int], str]


class TokenScores:
    """The tokens of one forward pass that are no special ones: their places, scores, and what they stand for."""

    def __init__(self, pipeline: Any, first: dict[str, Any], output: dict[str, Any]) -> None:
        logits = output["logits"][0]
        values = (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits).numpy()
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        self.tokenizer = pipeline.tokenizer
        self.sentence: str = first["sentence"]
        self.places = np.flatnonzero(output["special_tokens_mask"][0].numpy() == 0)
        self.scores = (powers / powers.sum(axis=-1, keepdims=True))[self.places]
        if np.isnan(self.scores).any():
            raise OriginalPath("scores that are NaN")
        ids = output["input_ids"][0].tolist()
        self.ids: list[int] = [ids[place] for place in self.places.tolist()]
        self.bounds = self._bounds(output, first.get("word_to_chars_map"))

    def _bounds(self, output: dict[str, Any], word_starts: Sequence[tuple[int, int]] | None) -> list[Any] | None:
        """The characters that each token stands for, in the text; None where the tokenizer does not say."""
        given = output["offset_mapping"]
        if given is None:
            return None
        offsets = given[0].tolist() if isinstance(given, torch.Tensor) else given[0]
        words = output.get("word_ids")
        if words is None or word_starts is None:
            return [offsets[place] for place in self.places.tolist()]
        found = []
        for place in self.places.tolist():
            begin = 0 if words[place] is None else word_starts[words[place]][0]
            found.append((offsets[place][0] + begin, offsets[place][1] + begin))
        return found

    def text(self, index: int) -> str:
        """A token as the tokenizer writes it; one that it does not know, as it stands in the text."""
        if self.bounds is not None and self.ids[index] == self.tokenizer.unk_token_id:
            start, end = self.bounds[index]
            return self.sentence[start:end]
        token: str = self.tokenizer.convert_ids_to_tokens(self.ids[index])
        return token

    def written(self, tokens: list[str]) -> str:
        text: str = self.tokenizer.convert_tokens_to_string(tokens)
        return text

    def begin_words(self) -> Array:
        """Which tokens begin a word."""
        count = len(self.ids)
        if self.bounds is None:
            return np.ones(count, dtype=bool)
        backend = getattr(self.tokenizer, "_tokenizer", None)
        if backend and getattr(backend.model, "continuing_subword_prefix", None):
            tokens = self.tokenizer.convert_ids_to_tokens(self.ids)
            begins = [
                len(token) == len(self.sentence[start:end])
                for token, (start, end) in zip(tokens, self.bounds, strict=True)
            ]
        else:
            warnings.warn("Tokenizer does not support real words, using fallback heuristic", UserWarning, stacklevel=2)
            begins = [not start > 0 or " " in self.sentence[start - 1 : start + 1] for start, _ in self.bounds]
        return np.array(begins, dtype=bool) | (np.array(self.ids) == self.tokenizer.unk_token_id)

    def as_units(self) -> Units:
        labels, places = self.scores.argmax(-1), np.arange(len(self.ids))
        return Units(labels, self.scores[places, labels], places, places, self.text)

    def as_words(self, strategy: str) -> Units:
        """Words, each with one label."""
        begins = self.begin_words()
        begins[:1] = True
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(begins)) - 1

        def word(index: int) -> str:
            return self.written([self.text(token) for token in range(first[index], last[index] + 1)])

        if len(first) == 0:
            return Units(first, np.zeros(0, self.scores.dtype), first, last, word)
        if strategy == "average":
            scores = self._averages(first, last)
        else:
            said = first if strategy == "first" else self._surest(first, last)
            scores = self.scores[said]
        labels = scores.argmax(-1)
        return Units(labels, scores[np.arange(len(first)), labels], first, last, word)

    def _averages(self, first: Array, last: Array) -> Array:
        """The mean of each word's scores as numpy's nanmean rounds it: a sum in order, over a count of integers."""
        counts = last - first + 1
        totals = np.add.reduceat(self.scores, first, axis=0)
        for index in np.flatnonzero(counts > 2).tolist():  # of two numbers there is one order
            totals[index] = self.scores[first[index] : last[index] + 1].sum(axis=0)
        averages: Array = (totals / counts[:, None]).astype(totals.dtype)
        return averages

    def _surest(self, first: Array, last: Array) -> Array:
        """Of each word the first token with its highest score."""
        said, highest = first.copy(), self.scores.max(-1)
        for index in np.flatnonzero(last > first).tolist():
            said[index] += highest[first[index] : last[index] + 1].argmax()
        return said

    def span(self, units: Units, first: int, last: int) -> dict[str, int | None]:
        """The characters from one unit to another."""
        if self.bounds is None:
            return {"start": None, "end": None}
        return {"start": self.bounds[units.first[first]][0], "end": self.bounds[units.last[last]][1]}


def make_entities(pipeline: Any) -> Callable[..., list[dict[str, Any]]]:
    """What stands for `postprocess` of transformers' `TokenClassificationPipeline`."""

    def postprocess(
        all_outputs: list[dict[str, Any]], aggregation_strategy: Any = "none", ignore_labels: Any = None
    ) -> list[dict[str, Any]]:
        ignored = ["O"] if ignore_labels is None else ignore_labels
        strategy = str(getattr(aggregation_strategy, "value", aggregation_strategy))
        if not isinstance(ignored, list | tuple | set) or None in ignored:
            raise OriginalPath(f"ignore_labels of {ignored!r}")
        if strategy not in ("none", "simple", *_BY_WORD):
            raise OriginalPath(f"an aggregation_strategy of {strategy!r}")
        found = []
        for output in all_outputs:
            tokens = TokenScores(pipeline, all_outputs[0], output)
            if strategy == "none":
                found += _labelled(pipeline, tokens, ignored)
            else:
                units = tokens.as_words(strategy) if strategy in _BY_WORD else tokens.as_units()
                found += _grouped(pipeline, tokens, units, ignored)
        if len(all_outputs) > 1:
            whole: list[dict[str, Any]] = pipeline.aggregate_overlapping_entities(found)
            return whole
        return found

    return postprocess


def _labelled(pipeline: Any, tokens: TokenScores, ignored: Any) -> list[dict[str, Any]]:
    names, units = pipeline.model.config.id2label, tokens.as_units()
    kept = {label for label in np.unique(units.labels).tolist() if names[label] not in ignored}
    return [
        {
            "entity": names[label],
            "score": score,
            "index": int(tokens.places[index]),
            "word": tokens.text(index),
            **tokens.span(units, index, index),
        }
        for index, (label, score) in enumerate(zip(units.labels.tolist(), units.scores, strict=True))
        if label in kept
    ]


def _grouped(pipeline: Any, tokens: TokenScores, units: Units, ignored: Any) -> list[dict[str, Any]]:
    """Neighbours with the same tag together; one with B- begins a group."""
    if len(units.labels) == 0:
        return []
    names = pipeline.model.config.id2label
    present, places = np.unique(units.labels, return_inverse=True)
    said = [pipeline.get_tag(names[label]) for label in present.tolist()]
    kinds = {tag: kind for kind, tag in enumerate(dict.fromkeys(tag for _, tag in said))}
    tags = np.array([kinds[tag] for _, tag in said])[places]
    opens = np.array([prefix == "B" for prefix, _ in said])[places]
    opens[1:] |= tags[1:] != tags[:-1]
    opens[0] = True
    first = np.flatnonzero(opens)
    last = np.append(first[1:], len(tags)) - 1
    found = []
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        name = names[int(units.labels[begin])].split("-", 1)[-1]
        if name not in ignored:
            group = range(begin, end + 1)
            found.append(
                {
                    "entity_group": name,
                    "score": np.mean(np.nanmean(units.scores[begin : end + 1])),
                    "word": tokens.written([units.word(index) for index in group]),
                    **tokens.span(units, begin, end),
                }
            )
    return found


REPLACEMENTS = (
    Replacement(
        "transformers.pipelines.token_classification.TokenClassificationPipeline",
        "entities from all tokens at once",
        make_entities,
        method="postprocess",
        covers=(
            "gather_pre_entities",
            "aggregate",
            "aggregate_word",
            "aggregate_words",
            "group_entities",
            "group_sub_entities",
        ),
    ),
)
