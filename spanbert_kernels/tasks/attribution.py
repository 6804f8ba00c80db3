"""How much each word counts for a prediction: integrated gradients from an input whose words are masked."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.tasks.vocabulary import Tokenizer

STEPS = 8  # gradients between the masked input and the input as it is
Shares = NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """The words that a model read, where the first stands in its document, and of each token its word, -1 for none."""

    words: tuple[str, ...]
    word_of: NDArray[np.int64]  # [rows, columns] of the batch
    place: int = 0


class Pass(NamedTuple):
    """An example, its batch of one, what the model made of it, and the weights of `document_weights`."""

    example: Any
    batch: dict[str, Tensor]
    output: Any
    weights: list[Tensor]


@dataclass(frozen=True)
class Claim:
    """What a model predicts of an example, to be explained.

    Attributes:
        example: its number among those of an item.
        label: in words.
        score: of the model's output on it, differentiable: the logarithm of the probability, or what grows with it.
        reading: the words whose shares are wanted.
        about: the places of those that the claim is about; empty where it is about all.
        other: of those that it relates these with.
        document: the name of what holds them.
        file: where that comes from.
        probability: of the claim, where the model says so.
        seen: see `Explanation`.
        entity: the number of the entity that it is about a mention of, as `predict` has it; "" for other claims.
    """

    example: int
    label: str
    score: Callable[[Any], Tensor]
    reading: Reading
    about: tuple[int, ...] = ()
    other: tuple[int, ...] = ()
    document: str = ""
    file: str = ""
    probability: float | None = None
    seen: dict[str, float] = field(default_factory=dict)
    entity: str = ""


@dataclass(frozen=True)
class Explanation:
    """A prediction, the words that the model read, and how much each of them counted.

    Attributes:
        document: the name of the document or of the text.
        label: what is predicted, in words: a type, an entity, a relation, an answer.
        words: W words, those of the prediction and what stands around them.
        shares: float32 `[W]`: the share of each word in what speaks for the prediction, 0 for what speaks against it;
            they sum to 1, or are 0 where nothing speaks for it or nobody asked.
        place: of the first word in the document.
        about: the places among `words` of those that the prediction is about; empty where it is about all.
        other: of those that it relates these with: an antecedent, a head, the other entity.
        probability: of the prediction, None where the model says none.
        seen: the share of each document of the cluster in what the words that it is about looked at in the
            cross-document layers, a mean over tokens, layers and heads; empty where documents do not see each other.
        file: the file that the document comes from.
        entity: the number of the entity that it is about a mention of, as `predict` has it; "" for other predictions.

    Example:
        >>> shares = np.array([0.25, 0.75, 0.0], dtype=np.float32)
        >>> found = Explanation("news/1", "person", ("the", "mayor", "spoke"), shares, about=(0, 1))
        >>> found.words[found.shares.argmax()], [found.words[i] for i in found.about]
        ('mayor', ['the', 'mayor'])
    """

    document: str
    label: str
    words: tuple[str, ...]
    shares: Shares
    place: int = 0
    about: tuple[int, ...] = ()
    other: tuple[int, ...] = ()
    probability: float | None = None
    seen: dict[str, float] = field(default_factory=dict)
    file: str = ""
    entity: str = ""


def explanation_of(claim: Claim, parts: NDArray[np.float64]) -> Explanation:
    """A claim with the shares of its words."""
    each = claim
    return Explanation(
        *(each.document, each.label, each.reading.words, shares_of(parts), each.reading.place, each.about),
        *(each.other, each.probability, each.seen, each.file, each.entity),
    )


def reading_of_words(words: Sequence[str], begin: int, windows: Iterable[Mapping[str, Any]], columns: int) -> Reading:
    """Of the words from place `begin` on that windows hold, `input_ids` and `word_starts` of which are given."""
    rows, number = [], 0
    for window in windows:
        starts, length = window["word_starts"], len(window["input_ids"])
        row = np.full(columns, -1)
        if len(starts):
            inside = np.arange(starts[0], length - 1)  # a special token is the last
            row[inside] = number + np.searchsorted(starts, inside, side="right") - 1
        rows.append(row)
        number += len(starts)
    return Reading(tuple(words[begin : begin + number]), np.stack(rows), begin)


def reading_of_text(text: str, word_ids: Sequence[int | None], offsets: Iterable[Sequence[int]]) -> Reading:
    """Of a text: its words with what follows each; of what the model did not see, in the end, no token is."""
    word_of = np.full(len(word_ids), -1)
    numbers: dict[int, int] = {}
    starts: list[int] = []
    end = 0
    for column, (word, (start, stop)) in enumerate(zip(word_ids, offsets, strict=True)):
        if word is None:
            continue
        if word not in numbers:
            numbers[word] = len(numbers)
            starts.append(start)
        word_of[column] = numbers[word]
        end = stop
    bounds = [0, *starts[1:], end] if starts else []
    words = [text[first:last] for first, last in pairwise(bounds)]
    return Reading((*words, *([text[end:]] if text[end:] else [])), word_of[None])


@contextlib.contextmanager
def document_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """While it lasts, every cross-document layer adds its weights `[query rows, heads, documents]` to the list.

    The layers compute what they always do.

    Args:
        model: a model, or any module that holds cross-document layers; without any the list stays empty.

    Returns:
        A list that fills: of each call of each layer, float32 `[query rows, heads, documents of the largest cluster]`,
        as `cross_document_attention` returns them.

    Example:
        >>> mixer = CrossDocumentMixer(hidden_size=8, num_heads=2)
        >>> with document_weights(mixer) as found:
        ...     _ = mixer(torch.randn(5, 8), torch.tensor([0, 3, 5]), torch.tensor([0, 2]))
        >>> found[0][:, 0].tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    found: list[Tensor] = []
    mixers = [module for module in model.modules() if isinstance(module, CrossDocumentMixer)]
    before = [mixer.watcher for mixer in mixers]
    for mixer in mixers:
        mixer.watcher = found.append
    try:
        yield found
    finally:
        for mixer, watcher in zip(mixers, before, strict=True):
            mixer.watcher = watcher


@torch.no_grad()
def run(model: nn.Module, example: Any, batch: dict[str, Tensor]) -> Pass:
    """The model over a batch of one example."""
    with document_weights(model) as weights:
        return Pass(example, batch, model.eval()(**batch), weights)


def masking_token(tokenizer: Tokenizer) -> int:
    """What stands for a word that is taken away."""
    named = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    return next(int(token) for token in named if token is not None)


def masked(ids: Tensor, reading: Reading, words: Iterable[int], token: int) -> Tensor:
    """Token ids with `token` in the place of those of some words."""
    return ids.masked_fill(torch.from_numpy(np.isin(reading.word_of, list(words))).to(ids.device), token)


def parts_of_words(
    model: nn.Module, batch: dict[str, Tensor], claims: Sequence[Claim], token: int, steps: int = STEPS
) -> list[NDArray[np.float64]]:
    """The part of each word in the score of each claim; with many steps they sum to what all words bring to it.

    On the line from the input whose words are all masked to the input as it is, gradients with respect to the
    embeddings are averaged; what lies between the two embeddings of a word's tokens, times them, is the word's part.

    Args:
        model: any encoder with a head; an accelerated one takes its original path.
        batch: its input, with `input_ids`.
        claims: of the model on it.
        token: what masks.
        steps: gradients; 1 is the one at the input as it is, and without any all parts are 0.

    Source: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks.
    """
    parts = [np.zeros(len(claim.reading.words)) for claim in claims]
    readings = {id(claim.reading): claim.reading for claim in claims}
    for step in range(1, steps + 1):
        for reading in readings.values():
            own = [number for number, each in enumerate(claims) if each.reading is reading]
            with _embeddings(model, batch["input_ids"], reading, token, step / steps) as kept:
                output = model(**batch)
                point, way = kept[0]
                for place, number in enumerate(own):
                    score = claims[number].score(output)
                    if not score.requires_grad:  # no token of the reading can change it
                        continue
                    (gradient,) = torch.autograd.grad(score, point, retain_graph=place + 1 < len(own))
                    of_token = (gradient * way).sum(-1).double().view(reading.word_of.shape).cpu().numpy()
                    there = reading.word_of >= 0
                    np.add.at(parts[number], reading.word_of[there], of_token[there] / steps)
    return parts


def shares_of(parts: NDArray[np.float64]) -> Shares:
    """Of words in what speaks for a claim.

    Example:
        >>> shares_of(np.array([1.0, -2.0, 3.0])).tolist()
        [0.25, 0.0, 0.75]
    """
    found = parts.clip(min=0)
    return (found / max(float(found.sum()), 1e-30)).astype(np.float32)


@contextlib.contextmanager
def _embeddings(
    model: nn.Module, ids: Tensor, reading: Reading, token: int, share: float
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While it lasts, the embeddings of `ids` are `share` of the way from their masked ones to their own.

    Gives that point, whose gradient is wanted, and the whole way.
    """
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    kept: list[tuple[Tensor, Tensor]] = []
    from_masked = masked(ids, reading, range(len(reading.words)), token).flatten()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if kept or not torch.equal(inputs[0].flatten(), ids.flatten()):
            return None
        start = module.forward(from_masked.view_as(inputs[0]))
        way = (output - start).detach()
        point = (output.detach() - (1 - share) * way).requires_grad_()
        kept.append((point, way))
        return point

    parameters = [each for each in model.parameters() if each.requires_grad]
    handle = table.register_forward_hook(hook)
    try:
        for each in parameters:
            each.requires_grad_(False)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", AccelerationWarning)  # that the original path runs
            yield kept
    finally:
        handle.remove()
        for each in parameters:
            each.requires_grad_()
