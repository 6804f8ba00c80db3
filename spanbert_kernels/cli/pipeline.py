"""The demo's work from documents to results: model, tokens, the three stages."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import spanbert_kernels
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.cli import environment, models
from spanbert_kernels.cli.clusters import assign_clusters
from spanbert_kernels.cli.collecting import Collection
from spanbert_kernels.cli.encoding import SPECIAL_TOKENS, WordPieces, select_documents, train_word_pieces
from spanbert_kernels.cli.measuring import Effort, PeakMemory
from spanbert_kernels.cli.results import DemoResult
from spanbert_kernels.cli.stages.cross_document import compare_cross_document
from spanbert_kernels.cli.stages.encoder import compare_encoders, pad_batches
from spanbert_kernels.cli.stages.spans import compare_span_pooling
from spanbert_kernels.tasks.progress import quiet_transformers

# Where the number of rounds is not given. The encoder's first round is always finished; on a slow machine that takes
# longer than it should, and the spans get less, but never less than their least.
ENCODER_SECONDS, SPAN_SECONDS, CROSS_DOCUMENT_SECONDS = 60.0, 25.0, 3.0
LEAST_SPAN_SECONDS = 8.0
PACKAGE = str(Path(spanbert_kernels.__file__).parent)
Advance = Callable[[float], None]  # hears the share done, 0 to 1
Begin = Callable[[str], Advance]  # opens a stage


@dataclass(frozen=True)
class Settings:
    """What the user asked for."""

    model: str | None
    tokens: int
    max_width: int
    batch_size: int
    dtype: str
    repeats: int | None
    seed: int
    quick: bool


class NoTokens(ValueError):
    """The tokenizer makes no token of any document."""


def run(collection: Collection, settings: Settings, begin: Begin) -> DemoResult:
    """The three stages on the documents that fit. `begin(name)` opens a stage and gives where to report its share done.

    Raises:
        CannotLoad: the model or its tokenizer.
        NoTokens: documents of control characters alone.
    """
    quiet_transformers()
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        result = _run(collection, settings, begin)
    # What torch or transformers deprecate is not the user's business here; what this package fell back on is.
    own = (
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, AccelerationWarning) or warning.filename.startswith(PACKAGE)
    )
    result.warnings.extend(dict.fromkeys(own))
    return result


def _run(collection: Collection, settings: Settings, begin: Begin) -> DemoResult:
    advance = begin("Vocabulary and model")
    model, pieces, origin = _model_and_pieces(collection, settings)
    positions: int = model.config.max_position_embeddings
    if positions <= SPECIAL_TOKENS:
        raise models.CannotLoad(f"the model {settings.model!r} has {positions} positions: no room for a token")
    heads: int = model.config.num_attention_heads
    selection = select_documents(collection.documents, pieces, positions, settings.tokens)
    if not selection.documents:
        raise NoTokens("the tokenizer makes no token of any document")
    labels, clustered_by = assign_clusters([encoded.document for encoded in selection.documents])
    encoders = models.prepare(model, origin)
    advance(1.0)

    def effort(stage: str, seconds: float) -> Effort:
        return Effort(settings.repeats, seconds, begin(stage))

    batches = pad_batches(selection.windows, settings.batch_size, pieces.pad)
    started = time.perf_counter()
    encoder, hidden = compare_encoders(encoders, batches, effort("Encoder", ENCODER_SECONDS))
    lengths = [len(window) for window in selection.windows]
    late = max(0.0, time.perf_counter() - started - ENCODER_SECONDS)
    span_seconds = max(LEAST_SPAN_SECONDS, SPAN_SECONDS - late)
    spans = compare_span_pooling(hidden, lengths, settings.max_width, effort("Spans", span_seconds))
    across, document_weights = compare_cross_document(
        hidden, selection, labels, heads, settings.seed, effort("Cross-document attention", CROSS_DOCUMENT_SECONDS)
    )
    return DemoResult(
        collection=collection,
        selection=selection,
        cluster_labels=labels,
        clustered_by=clustered_by,
        stages=[encoder, spans, across],
        document_weights=document_weights,
        padded_tokens=sum(ids.numel() for ids, _ in batches),
        batch_size=settings.batch_size,
        positions=positions,
        repacked_bytes=encoders.repacked_bytes,
        model=encoders.description,
        tokenizer=pieces.origin,
        memory_method=PeakMemory.method(),
        versions=environment.versions(),
        machine=environment.machine(),
        backends=environment.backends(),
    )


def _model_and_pieces(collection: Collection, settings: Settings) -> tuple[Any, WordPieces, str]:
    """The model, its tokenizer, and where its weights come from, in words."""
    dtype: torch.dtype = getattr(torch, settings.dtype)
    name = settings.model
    if name is None:
        pieces = train_word_pieces(collection.documents)
        model = models.random_model(pieces.size, dtype, settings.seed, settings.quick)
        return model, pieces, f"random weights, seed {settings.seed}"
    model = models.load_model(name, dtype)
    pieces = models.load_tokenizer(name)
    if pieces.size > model.config.vocab_size:
        raise models.CannotLoad(
            f"the tokenizer of {name!r} has {pieces.size} entries, but its model only {model.config.vocab_size}"
        )
    return model, pieces, f"weights of {name}"
