"""The demo's work from documents to results: model, tokens, the three stages."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import spanbert_kernels
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.acceleration.packed import Weights
from spanbert_kernels.cli import environment, models
from spanbert_kernels.cli.clusters import assign_clusters
from spanbert_kernels.cli.collecting import Collection
from spanbert_kernels.cli.encoding import SPECIAL_TOKENS, select_documents, train_on
from spanbert_kernels.cli.measuring import Effort, PeakMemory
from spanbert_kernels.cli.results import DemoResult
from spanbert_kernels.cli.stages.cross_document import compare_cross_document
from spanbert_kernels.cli.stages.document_weights import weights_of_documents
from spanbert_kernels.cli.stages.encoder import compare_encoders, pad_batches, warm_up
from spanbert_kernels.cli.stages.spans import compare_span_pooling
from spanbert_kernels.tasks.progress import quiet_transformers

# Where the number of rounds is not given. The encoder's first round is always finished; on a slow machine that takes
# longer than it should, and the spans get less, but never less than their least.
ENCODER_SECONDS, SPAN_SECONDS, CROSS_DOCUMENT_SECONDS = 60.0, 25.0, 3.0
LEAST_SPAN_SECONDS = 8.0
PACKAGE = str(Path(spanbert_kernels.__file__).parent)
Advance = Callable[[float], None]  # hears the share done, 0 to 1
Begin = Callable[[str], Advance]  # opens a stage


def run(collection: Collection, begin: Begin, **settings: Any) -> DemoResult:
    """The three stages on the documents that fit. `begin(name)` opens a stage and gives where to report its share done.

    Args:
        collection: the documents.
        begin: see above.
        settings: the options of the command that bear its names.

    Raises:
        CannotLoad: the model or its tokenizer.
        ValueError: documents of control characters alone.
    """
    quiet_transformers()
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        result = _run(collection, begin, **settings)
    # What torch or transformers deprecate is not the user's business here; what this package fell back on is.
    own = (
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, AccelerationWarning) or warning.filename.startswith(PACKAGE)
    )
    result.warnings.extend(dict.fromkeys(own))
    return result


def _run(
    collection: Collection,
    begin: Begin,
    *,
    model: str | None,
    tokens: int,
    max_width: int,
    batch_size: int,
    dtype: str,
    weights: Weights | None,
    repeats: int | None,
    seed: int,
    quick: bool,
) -> DemoResult:
    advance = begin("Vocabulary and model")
    encoder, tokenizer, origins = _encoder_and_tokenizer(collection, model, getattr(torch, dtype), seed, quick)
    positions: int = encoder.config.max_position_embeddings
    if positions <= SPECIAL_TOKENS:
        raise models.CannotLoad(f"the model {model!r} has {positions} positions: no room for a token")
    selection = select_documents(collection.documents, tokenizer, positions, tokens)
    if not selection.documents:
        raise ValueError("the tokenizer makes no token of any document")
    labels, clustered_by = assign_clusters([encoded.document for encoded in selection.documents])
    batches = pad_batches(selection.windows, batch_size, tokenizer.pad_token_id)
    head = None
    if weights is not None and model is not None:
        head = models.load_head(model, encoder.config.architectures, encoder.dtype)
    encoders = models.prepare(encoder, origins[0], warm_up(batches), weights)
    advance(1.0)

    started = time.perf_counter()
    first, hidden = compare_encoders(encoders, batches, Effort(repeats, ENCODER_SECONDS, begin("Encoder")), head)
    acceleration = str(encoders.report).splitlines()
    lengths = [len(window) for window in selection.windows]
    late = max(0.0, time.perf_counter() - started - ENCODER_SECONDS)
    left = max(LEAST_SPAN_SECONDS, SPAN_SECONDS - late)
    spans = compare_span_pooling(hidden, lengths, max_width, Effort(repeats, left, begin("Spans")))
    effort = Effort(repeats, CROSS_DOCUMENT_SECONDS, begin("Cross-document attention"))
    heads: int = encoder.config.num_attention_heads
    across = compare_cross_document(hidden, selection, labels, heads, seed, effort)
    return DemoResult(
        collection=collection,
        selection=selection,
        cluster_labels=labels,
        clustered_by=clustered_by,
        stages=[first, spans, across],
        document_weights=weights_of_documents(encoder, selection, labels, tokenizer.pad_token_id),
        padded_tokens=sum(ids.numel() for ids, _ in batches),
        batch_size=batch_size,
        positions=positions,
        acceleration=acceleration,
        weights=weights,
        model=encoders.description,
        tokenizer=origins[1],
        memory_method=PeakMemory.method(),
        versions=environment.versions(),
        machine=environment.machine(),
        backends=environment.backends(),
    )


def _encoder_and_tokenizer(
    collection: Collection, name: str | None, dtype: torch.dtype, seed: int, quick: bool
) -> tuple[Any, Any, tuple[str, str]]:
    """The model, its tokenizer, and where the weights of the one and the entries of the other come from, in words."""
    if name is None:
        tokenizer = train_on(collection.documents)
        model = models.random_model(len(tokenizer), dtype, seed, quick)
        entries = f"cased WordPiece vocabulary of {len(tokenizer):,} entries, trained on the documents"
        return model, tokenizer, (f"random weights, seed {seed}", entries)
    model, tokenizer = models.load_model(name, dtype), models.load_tokenizer(name)
    size = len(tokenizer)
    if size > model.config.vocab_size:
        known = model.config.vocab_size
        raise models.CannotLoad(f"the tokenizer of {name!r} has {size} entries, but its model only {known}")
    return model, tokenizer, (f"weights of {name}", f"the tokenizer of {name}, {size:,} entries")
