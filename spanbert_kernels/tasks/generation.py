"""What summarisation and translation share: examples, training, text and loss of an encoder-decoder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EncoderDecoderModel

from spanbert_kernels.data.counts import TRAINING, counting, cut, took
from spanbert_kernels.data.parallel import Pair
from spanbert_kernels.data.sources import Source
from spanbert_kernels.data.splitting import Located
from spanbert_kernels.models.generation import WindowedSpanBERTModel, encoder_decoder
from spanbert_kernels.models.tokenization import load_tokenizer
from spanbert_kernels.tasks.attribution import Claim, Explanation, Pass, Reading, reading_of_text
from spanbert_kernels.tasks.base import Scores, Task
from spanbert_kernels.tasks.batches import IGNORED, padded, without
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.progress import counted
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start, load_trained
from spanbert_kernels.tasks.training import Development, Training, TrainingOptions, fit, on_path
from spanbert_kernels.tasks.vocabulary import Tokenizer, rows_of

TARGET_LENGTH = 128  # tokens of a text to learn from, the one that ends it counted
DECODER_LAYERS = 6  # at most; never more than the encoder has
BEAMS = 4
BETWEEN_CHINESE = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef]) | (?=[\u3000-\u9fff\uff00-\uffef])")
Tokens = NDArray[np.int64]


@dataclass
class Generator:
    """A model with the vocabularies of its two sides."""

    model: EncoderDecoderModel
    tokenizer: Tokenizer
    target_tokenizer: Tokenizer

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def save(self, folder: Path) -> None:
        """Writes both vocabularies; `fit` has written the model."""
        self.tokenizer.save_pretrained(str(folder))
        self.target_tokenizer.save_pretrained(str(folder / "target"))

    @classmethod
    def load(cls, folder: Path) -> Generator:
        """What `train` wrote."""
        tokenizers = (load_tokenizer(each) for each in (folder, folder / "target"))
        return cls(load_trained(EncoderDecoderModel, folder), *tokenizers)

    @classmethod
    def build(
        cls, start: Start, tokenizer: Tokenizer, target: Tokenizer, seed: int, pairs: Sequence[Pair]
    ) -> Generator:
        """A new decoder behind the encoder that `start` says; windows see each other in its upper layers.

        It begins with what is known without reading a source, how often each token stands in the targets of `pairs`,
        and writes no text shorter than all of them.
        """
        layers = start.layers()
        fields = {"cross_document_queries": "tokens", "cross_document_keys": "tokens"}
        upper = list(range(layers // 2, layers))
        encoder = start.build(WindowedSpanBERTModel, tokenizer, seed, cross_document_layers=upper, **fields)
        shape = encoder.config
        shape.window_length = min(start.max_length or shape.window_length, shape.positions)
        built = cls(encoder_decoder(encoder, target, min(layers, DECODER_LAYERS), rows_of(target)), tokenizer, target)
        examples = encode(pairs, built)
        with torch.no_grad():
            frequencies = torch.from_numpy(log_frequencies(examples, rows_of(target)))
            built.model.decoder.get_output_embeddings().bias.copy_(frequencies)
        lengths = (len(each["labels"]) - 1 for each in examples)
        built.model.generation_config.min_new_tokens = min(lengths, default=0)
        return built


def encode(pairs: Sequence[Pair], generator: Generator) -> list[dict[str, Tokens]]:
    """The tokens of each source and of each of its targets, an example a target; a pair without one is an example."""
    found = []
    for pair in pairs:
        source = np.array(generator.tokenizer(pair.source, add_special_tokens=False)["input_ids"], dtype=np.int64)
        for target in pair.targets or ("",):
            ids = generator.target_tokenizer(target, add_special_tokens=False)["input_ids"][: TARGET_LENGTH - 1]
            labels = np.array([*ids, generator.target_tokenizer.sep_token_id], dtype=np.int64)
            found.append({"tokens": source, "labels": labels})
    return found


def count_pairs(pairs: Sequence[Pair], generator: Generator) -> int:
    """Counts the texts, and the targets that are cut; gives the number of texts."""
    took("text", len(pairs))
    long = [target for pair in pairs for target in pair.targets if len(target) >= TARGET_LENGTH]
    tokens = (
        generator.target_tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"] for target in long
    )
    cut("target", f"to its first {TARGET_LENGTH - 1} tokens", sum(len(own) >= TARGET_LENGTH for own in tokens))
    return len(pairs)


class Examples(Dataset[dict[str, Tokens]]):
    """Examples for the Trainer, whole, or with span training a part of each, which an epoch, seed and example decide.

    With crop "input" a span of the source is read; with "loss" all is, and a span of the target carries loss.
    """

    def __init__(self, examples: Sequence[dict[str, Tokens]], spans: SpanTraining | None, seed: int) -> None:
        self.examples, self.spans, self.seed, self.epoch = examples, spans, seed, 0

    def __len__(self) -> int:
        return len(self.examples)

    def set_epoch(self, epoch: int) -> None:
        """Of the training; it matters to span training."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example, or its span."""
        example = self.examples[index]
        if self.spans is None:
            return example
        name = "tokens" if self.spans.crop == "input" else "labels"
        room = len(example[name]) - self.spans.span_length
        if room <= 0:
            return example
        first = int(np.random.default_rng((self.seed, self.epoch, index)).integers(room + 1))
        span = slice(first, first + self.spans.span_length)
        if name == "tokens":
            return {**example, "tokens": example["tokens"][span]}
        return {**example, "carries_loss": span}


@dataclass(frozen=True)
class Collator:
    """Makes a batch: windows side by side, each but a single one filled up to the window's length.

    Attributes:
        window: columns of a window, the special tokens counted.
        first, last: the special tokens around a window.
        start: the token that the decoder begins with.
        padding: the target's token for columns beyond a text.
    """

    window: int
    first: int
    last: int
    start: int
    padding: int

    @classmethod
    def of(cls, generator: Generator) -> Collator:
        """For a model."""
        tokenizer, target = generator.tokenizer, generator.target_tokenizer
        window = generator.model.encoder.config.window_length
        return cls(window, tokenizer.cls_token_id, tokenizer.sep_token_id, target.cls_token_id, target.pad_token_id)

    def windows(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """The windows of a text, and which columns hold tokens."""
        room = self.window - 2
        parts = [tokens[i : i + room] for i in range(0, max(len(tokens), 1), room)]
        rows = [np.array([self.first, *part, self.last], dtype=np.int64) for part in parts]
        if len(rows) == 1:
            return rows[0], np.ones_like(rows[0])
        filled = np.zeros((len(rows), self.window), dtype=np.int64)
        mask = np.zeros_like(filled)
        for number, row in enumerate(rows):
            filled[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return filled.ravel(), mask.ravel()

    def columns(self, count: int) -> NDArray[np.int64]:
        """Where so many tokens of a text stand."""
        window, place = np.divmod(np.arange(count), self.window - 2)
        return window * self.window + 1 + place

    def sources(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask [B, S]`."""
        ids, masks = zip(*(self.windows(example["tokens"]) for example in examples), strict=True)
        found = [{"input_ids": row, "attention_mask": mask} for row, mask in zip(ids, masks, strict=True)]
        mask = padded([{"mask": each["attention_mask"]} for each in found], {"mask": 0})["mask"]
        return {"input_ids": padded(found, {"input_ids": 0})["input_ids"], "attention_mask": mask}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The same with `labels` and, one column later, `decoder_input_ids [B, T]`."""
        rows = []
        for example in examples:
            labels = example["labels"]
            scored = np.full_like(labels, IGNORED)
            span = example.get("carries_loss", slice(None))
            scored[span] = labels[span]
            rows.append({"labels": scored, "decoder_input_ids": np.concatenate([[self.start], labels[:-1]])})
        return {**self.sources(examples), **padded(rows, {"labels": IGNORED, "decoder_input_ids": self.padding})}


def train(
    generator: Generator,
    pairs: Sequence[Pair],
    options: TrainingOptions,
    spans: SpanTraining | None = None,
    label_smoothing: float = 0.0,
    development: Development | None = None,
) -> Training:
    """Trains the model and writes it to `options.output`.

    With `label_smoothing`, so much of each token's probability is spread over all others in what is learnt.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("there is no text to train on")
    with counting(TRAINING):
        count_pairs(pairs, generator)
    examples = Examples(encode(pairs, generator), spans, options.seed)
    with warnings.catch_warnings():  # that the loss is no longer the decoder's
        warnings.filterwarnings("ignore", message="Version v4.12.0", category=FutureWarning)
        collator = Collator.of(generator)
        return fit(
            *(generator.model, options, examples, collator),
            development=development,
            write_vocabulary=generator.save,
            label_smoothing_factor=label_smoothing,
        )


@torch.no_grad()
def write(
    generator: Generator, sources: Sequence[str], length: int = TARGET_LENGTH, backend: str = "auto", batch: int = 16
) -> list[str]:
    """A text of at most `length` tokens for each source, by beam search without repeating any three tokens."""
    collator = Collator.of(generator)
    examples = encode([Pair(source, (), Path(), 0) for source in sources], generator)
    order = sorted(range(len(sources)), key=lambda i: len(examples[i]["tokens"]))
    texts = [""] * len(sources)
    with on_path(generator.model.eval(), backend):
        for begin in counted(range(0, len(order), batch), "writing"):
            chosen = order[begin : begin + batch]
            inputs = collator.sources([examples[i] for i in chosen])
            found = generator.model.generate(
                **inputs,
                num_beams=BEAMS,
                no_repeat_ngram_size=3,
                min_new_tokens=min(generator.model.generation_config.min_new_tokens or 0, length),
                max_new_tokens=length,
                max_length=None,
            )
            for index, ids in zip(chosen, found, strict=True):
                text = generator.target_tokenizer.decode(ids, skip_special_tokens=True)
                texts[index] = BETWEEN_CHINESE.sub("", text)
    return texts


@torch.no_grad()
def loss(generator: Generator, pairs: Sequence[Pair], backend: str = "auto", batch: int = 16) -> float:
    """Negative log-likelihood of a target token, a mean over all of them."""
    collator, examples = Collator.of(generator), encode(pairs, generator)
    total, tokens = 0.0, 0
    with on_path(generator.model.eval(), backend):
        for begin in counted(range(0, len(examples), batch), "scoring"):
            inputs = collator(examples[begin : begin + batch])
            labels = inputs.pop("labels")
            logits = generator.model(**inputs).logits.float().flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum"))
            tokens += int((labels != IGNORED).sum())
    return total / max(tokens, 1)


def prediction(pair: Pair, **written: str) -> Prediction:
    """What was written for a text."""
    return Prediction(pair.path, pair.line, Located(pair.source, ()), found=written)


def log_frequencies(examples: Sequence[dict[str, Tokens]], size: int) -> NDArray[np.float64]:
    """The logarithm of each token's share in the targets, each counted once more than it stands there: `[size]`."""
    counts = sum(np.bincount(example["labels"], minlength=size) for example in examples) + np.ones(size)
    found: NDArray[np.float64] = np.log(counts / counts.sum())
    return found


def unigram_loss(train: Sequence[Pair], test: Sequence[Pair], generator: Generator) -> float:
    """The loss of a model that knows how often each token stands in the targets to train on, and no more."""
    labels = np.concatenate([example["labels"] for example in encode(test, generator)])
    return float(-log_frequencies(encode(train, generator), rows_of(generator.target_tokenizer))[labels].mean())


@dataclass(frozen=True, kw_only=True)
class Writing(Task[Pair, str]):
    """A task whose items are texts to write about, and whose model is a `Generator`.

    Attributes:
        length: tokens of what is written, at most.
        target: a tokenizer for what is written, where it is not that of the sources.
        label_smoothing: of the training.
    """

    noun: str = "text"
    lack: str = "there is no text"
    kind: Any = EncoderDecoderModel
    bare: Any = lambda pair: replace(pair, targets=())
    encode: Any = lambda generator, tokenizer, pairs: []  # which `write` and `explained` do in their own ways
    count: Any = lambda generator, tokenizer, pairs, examples: count_pairs(pairs, generator)
    collate: Any = None
    decode: Any = None
    claims: Any = lambda generator, tokenizer, pairs, passes: _claims(generator, pairs, passes)
    length: int = TARGET_LENGTH
    target: Callable[[Sequence[Pair], Start], Tokenizer] | None = None
    label_smoothing: float = 0.0

    def found(self, model: Any, items: Sequence[Pair], examples: list[Any], backend: str) -> list[str]:
        """Texts that are written."""
        return write(model, [pair.source for pair in items], self.length, backend)

    def network(self, model: Any) -> EncoderDecoderModel:
        """The module in a generator."""
        return model.model

    def batches(self, model: Any, answers: bool = True) -> Callable[[list[Any]], dict[str, Tensor]]:
        """What `Collator` makes; what is written is read by the decoder, too."""
        return without(Collator.of(model), () if answers else self.answers)

    def load(self, folder: Path) -> tuple[Generator, Tokenizer]:
        """The model, and the tokenizer of its sources."""
        generator = Generator.load(folder)
        return generator, generator.tokenizer

    def build(self, items: Sequence[Pair], data: Source, start: Start, seed: int) -> tuple[Generator, Tokenizer]:
        """The same for a new model."""
        tokenizer = start.tokenizer(text for item in items for text in self.texts(item))
        target = tokenizer if self.target is None else self.target(items, start)
        return Generator.build(start, tokenizer, target, seed, items), tokenizer

    def fit(
        self,
        model: Any,
        tokenizer: Tokenizer,
        items: Sequence[Pair],
        options: TrainingOptions,
        spans: SpanTraining | None = None,
        development: Sequence[Pair] = (),
    ) -> Training:
        """Trains a generator."""
        better = self.development(model, tokenizer, development, options.backend)
        return train(model, items, options, spans, self.label_smoothing, better)

    def scores(self, model: Any, items: Sequence[Pair], found: Sequence[str], backend: str) -> Scores:
        """With the model's loss a token."""
        return {**self.score(items, found), "loss": loss(model, items, backend)}

    def trivial(self, model: Any, train_on: Sequence[Pair], items: Sequence[Pair], found: Sequence[str]) -> Scores:
        """With the loss of a model that knows how often each token is written."""
        return {**self.baseline(train_on, items, found), "loss": unigram_loss(train_on, items, model)}

    def explainable(self, model: Any, tokenizer: Tokenizer, items: Sequence[Pair]) -> int:
        """A text is written for each."""
        return len(items)

    def explained(
        self, model: Any, tokenizer: Tokenizer, items: Sequence[Pair], limit: int | None = None, words: bool = True
    ) -> Iterator[tuple[Explanation, Claim, Pass]]:
        """Of texts that are written."""
        items = items[:limit]
        count_pairs([self.bare(item) for item in items], model)
        texts = self.found(model, items, [], "auto")
        written = [replace(item, targets=(text,)) for item, text in zip(items, texts, strict=True)]
        examples = [{**example, "item": number} for number, example in enumerate(encode(written, model))]
        yield from self.explained_examples(model, tokenizer, written, examples, limit, words)


def _claims(generator: Generator, pairs: Sequence[Pair], passes: list[Pass]) -> Iterator[Claim]:
    """The text that was written, token by token."""
    ((example, batch, _, _),) = passes
    pair, labels = pairs[example["item"]], torch.from_numpy(example["labels"])
    encoding = generator.tokenizer(pair.source, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    alone = reading_of_text(pair.source, encoding.word_ids(), encoding["offset_mapping"])
    word_of = np.full(tuple(batch["input_ids"].shape), -1)
    word_of[0, Collator.of(generator).columns(len(example["tokens"]))] = alone.word_of[0]

    def score(output: Any) -> Tensor:
        chances: Tensor = output.logits[0].float().log_softmax(-1).gather(1, labels[:, None])
        return chances.sum()

    yield Claim(*(0, pair.targets[0], score, Reading(alone.words, word_of)), document=pair.source, file=str(pair.path))
