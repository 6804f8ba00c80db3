"""Modules over the operations."""

from spanbert_kernels.nn.biaffine import Biaffine
from spanbert_kernels.nn.cross_document_mixer import CrossDocumentMixer
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.nn.span_boundary_head import SpanBoundaryHead
from spanbert_kernels.nn.span_extractors import (
    BidirectionalEndpointSpanExtractor,
    EndpointSpanExtractor,
    MaxPoolingSpanExtractor,
    SelfAttentiveSpanExtractor,
)

__all__ = [
    "Biaffine",
    "BidirectionalEndpointSpanExtractor",
    "CrossDocumentMixer",
    "EndpointSpanExtractor",
    "MaxPoolingSpanExtractor",
    "Packing",
    "SelfAttentiveSpanExtractor",
    "SpanBoundaryHead",
]
