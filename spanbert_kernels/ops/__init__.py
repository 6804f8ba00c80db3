"""The operations. Each is one name: a function here, a folder of the same name below, a kernel per backend."""

from spanbert_kernels.ops import backends
from spanbert_kernels.ops.cross_document_attention import cross_document_attention
from spanbert_kernels.ops.document_attention import document_attention
from spanbert_kernels.ops.documents import anchor_indices
from spanbert_kernels.ops.packed_linear import PackedWeight, pack_weight, packed_linear
from spanbert_kernels.ops.plans import SpanPlan, enumerate_spans, plan_spans
from spanbert_kernels.ops.span_gather import span_gather
from spanbert_kernels.ops.span_pool import span_pool

__all__ = [
    "PackedWeight",
    "SpanPlan",
    "anchor_indices",
    "backends",
    "cross_document_attention",
    "document_attention",
    "enumerate_spans",
    "pack_weight",
    "packed_linear",
    "plan_spans",
    "span_gather",
    "span_pool",
]
