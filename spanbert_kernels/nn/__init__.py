"""Modules over the operations."""

from spanbert_kernels.nn.cross_document_mixer import CrossDocumentMixer
from spanbert_kernels.nn.packing import Packing

__all__ = ["CrossDocumentMixer", "Packing"]
