"""The batches that the figures are asked for: made, the same for everyone, or of real lengths."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from registry import Unavailable
from torch import Tensor

from spanbert_kernels.cli.clusters import assign_clusters
from spanbert_kernels.cli.collecting import collect, default_documents

VOCABULARY = 28996  # of BERT's cased vocabulary
DATA = "SPANBERT_KERNELS_DATA"


def document_lengths(documents: int = 16, sigma: float = 0.7) -> Tensor:
    """Log-normal lengths (mu 4.2), cut to 8 .. 384; of the 16 with sigma 0.7 about 39 % of the padded batch is real."""
    drawn = numpy.random.default_rng(0).lognormal(4.2, sigma, documents).round().astype(int)
    return torch.from_numpy(drawn.clip(8, 384))


def real_lengths(source: str, per_cluster: int) -> tuple[Tensor, Tensor]:
    """Lengths in words of a corpus' documents, the first of each of its clusters, and how many each cluster has.

    "package" stands for the documents that come with the package; any other source is a folder of the data folder.
    """
    if source == "package":
        documents = default_documents().documents
    elif folder := os.environ.get(DATA):
        documents = collect([Path(folder) / source]).documents
    else:
        raise Unavailable(f"{source} is looked for in the folder named by {DATA}, which is not set")
    clusters: dict[str, list[int]] = {}
    for document, label in zip(documents, assign_clusters(documents)[0], strict=True):
        clusters.setdefault(label, []).append(len(document.text.split()))
    kept = [lengths[:per_cluster] for lengths in clusters.values()]
    return torch.tensor([n for lengths in kept for n in lengths]), torch.tensor([len(lengths) for lengths in kept])


def offsets_of(lengths: Tensor) -> Tensor:
    """`cu_seqlens` of some lengths, int32."""
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def padding_share(lengths: Tensor) -> float:
    """The part of the padded batch that is padding."""
    return 1 - float(lengths.sum()) / float(len(lengths) * lengths.max())


def padded_batch(lengths: Tensor) -> dict[str, Tensor]:
    """Random ids and their mask, `[B, L]`."""
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1000, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * mask, "attention_mask": mask.long()}
