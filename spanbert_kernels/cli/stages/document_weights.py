"""Which document looked at which, in a model whose documents see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.cli.encoding import EncodedDocument, Selection
from spanbert_kernels.cli.stages.encoder import pad_batches
from spanbert_kernels.tasks.explanation import document_weights


@dataclass(frozen=True)
class SeenCluster:
    """The documents of a cluster, and how much each saw of each: `weights [D, D]`, a row per query."""

    label: str
    documents: list[EncodedDocument]
    weights: list[list[float]]


def weights_of_documents(
    model: Any, selection: Selection, labels: Sequence[str], padding: int
) -> list[SeenCluster] | None:
    """What the documents of each cluster of two or more saw of each other, a mean over layers and heads.

    Args:
        model: an encoder.
        selection: D documents.
        labels: the cluster of each.
        padding: the token that fills rows up.

    Returns:
        None of a model without cross-document layers.
    """
    if not getattr(model.config, "cross_document_layers", None):
        return None
    clusters: dict[str, list[EncodedDocument]] = {}
    for label, document in zip(labels, selection.documents, strict=True):
        clusters.setdefault(label, []).append(document)
    return [
        SeenCluster(label, own, _of_cluster(model, own, padding).tolist())
        for label, own in clusters.items()
        if len(own) > 1
    ]


def _of_cluster(model: Any, documents: Sequence[EncodedDocument], padding: int) -> Tensor:
    """`[D, D]`; what a document's windows saw is a mean, what was seen of a document's windows a sum."""
    windows = [window for document in documents for window in document.windows]
    ((ids, mask),) = pad_batches(windows, len(windows), padding)
    with document_weights(model) as found:
        model(input_ids=ids, attention_mask=mask, cluster_ids=torch.zeros(len(windows), dtype=torch.long))
    of_rows = torch.stack([each.float().mean(1) for each in found]).mean(0)[:, : len(windows)]
    queries = [1] * len(windows) if len(of_rows) == len(windows) else list(map(len, windows))
    by_window = torch.stack([rows.mean(0) for rows in of_rows.split(queries)])
    sizes = [len(document.windows) for document in documents]
    by_query = torch.stack([rows.mean(0) for rows in by_window.split(sizes)])
    return torch.stack([columns.sum(1) for columns in by_query.split(sizes, dim=1)], dim=1)
