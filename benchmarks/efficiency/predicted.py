"""Predicted times of BERT-base on one H200, from the record of what compiled kernels can reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from roof.rows import RoofRow

TOKENS, DOCUMENTS = 32_768, 256  # of a batch of the record's rows
PRODUCTS = ("addmm", "mm")
OPTIMIZER_BYTES = 28  # of AdamW a weight, in float32: weight, gradient, moments read; weight and moments written


@dataclass(frozen=True)
class EncoderShape:
    """What an encoder of BERT's shape is made of.

    Attributes:
        layers, hidden, inner, heads: of its layers.
        vocabulary, positions, types: rows of the tables of its embeddings.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int
    positions: int = 512
    types: int = 2

    @property
    def embeddings(self) -> tuple[int, ...]:
        """Weights in each parameter of the embeddings, in the order of the model."""
        return (
            *(self.vocabulary * self.hidden, self.positions * self.hidden, self.types * self.hidden),
            *(self.hidden, self.hidden),
        )

    @property
    def layer(self) -> tuple[int, ...]:
        """The same of a layer.

        Example:
            >>> sum(BERT_BASE.layer)
            7087872
        """
        square, h = self.hidden**2, self.hidden
        norm = (h, h)
        return (*(square, h) * 4, *norm, self.hidden * self.inner, self.inner, self.hidden * self.inner, h, *norm)

    @property
    def pooler(self) -> tuple[int, ...]:
        return self.hidden**2, self.hidden

    @property
    def weights(self) -> int:
        """In all.

        Example:
            >>> BERT_BASE.weights, MINILM.weights
            (109482240, 22713216)
        """
        return sum(self.embeddings) + self.layers * sum(self.layer) + sum(self.pooler)


BERT_BASE = EncoderShape(12, 768, 3072, 12, 30_522)
MINILM = EncoderShape(6, 384, 1536, 12, 30_522)


@dataclass(frozen=True)
class PredictedTimes:
    """Seconds on one GPU for a batch of `TOKENS` tokens, all predicted.

    Attributes:
        inference: the encoder.
        forward, backward: of a layer, in training with dropout.
        embedding_forward, embedding_backward: of the embeddings.
        launches: of inference, and of a training step.
        launch: the least that one takes.
        bandwidth: bytes a second of the memory, as they are reached.
        pair: of a pair of tokens of one layer's attention between documents, forward.
        anchors: of a sub-layer between anchors.
    """

    inference: float
    forward: float
    backward: float
    embedding_forward: float
    embedding_backward: float
    launches: tuple[int, int]
    launch: float
    bandwidth: float
    pair: float
    anchors: float

    def optimizer(self, weights: float) -> float:
        """Of a step of AdamW on so many weights."""
        return weights * OPTIMIZER_BYTES / self.bandwidth

    def encoding(self, tokens: float) -> float:
        """Of a forward over so many tokens, however few: launches take their time."""
        return max(self.inference * tokens / TOKENS, self.launches[0] * self.launch)


def predicted(rows: Mapping[str, RoofRow], card: Mapping[str, float], reached: Mapping[str, float]) -> PredictedTimes:
    """The times that a record of least times says.

    Raises:
        KeyError: it lacks a row.
    """
    encoder = rows["BERT-base 256 x 128, accelerated"]
    attention = [rows[f"attention 256 x 128 dropout {way}"] for way in ("forward", "backward")]
    norm = [rows[f"dropout_add_layer_norm dropout {way}"] for way in ("forward", "backward")]
    gelu = [rows[f"bias_gelu {way}"] for way in ("forward", "backward")]
    embedding = [rows["embedding_layer_norm forward"], rows["embedding_layer_norm dropout backward"]]
    products = [each for each in encoder.launches if each.name in PRODUCTS]
    of_layer = sum(each.predicted for each in products) / BERT_BASE.layers
    times = [
        (1 + way) * of_layer + attention[way].predicted + 2 * norm[way].predicted + gelu[way].predicted
        for way in (0, 1)  # a product has two in its backward
    ]
    across = rows["across 32 x 10 x 128 forward"]
    pairs = 32 * ((10 * 128) ** 2 - 10 * 128**2)
    backward = 2 * len(products) + BERT_BASE.layers * sum(
        len(each.launches) * count for each, count in ((attention[1], 1), (norm[1], 2), (gelu[1], 1))
    )
    launches = len(encoder.launches), len(encoder.launches) + backward + len(embedding[1].launches)
    return PredictedTimes(
        inference=encoder.predicted * 1e-6,
        forward=times[0] * 1e-6,
        backward=times[1] * 1e-6,
        embedding_forward=embedding[0].predicted * 1e-6,
        embedding_backward=embedding[1].predicted * 1e-6,
        launches=launches,
        launch=card["launch"],
        bandwidth=card["bandwidth"] * reached["of the memory's rate"],
        pair=across.predicted * 1e-6 / pairs,
        anchors=rows["anchors 64 x 10, the whole sub-layer"].predicted * 1e-6,
    )
