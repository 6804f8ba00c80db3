"""The operations. Each is one name: a function here, a folder of the same name below, a kernel per backend."""

from spanbert_kernels.ops import backends
from spanbert_kernels.ops.attention.relative import RelativeTerms, bucketed_index, clipped_index, log_bucketed_index
from spanbert_kernels.ops.attention_plans import AttentionPlan, plan_attention
from spanbert_kernels.ops.banded_span_scores import banded_span_scores
from spanbert_kernels.ops.bias_gelu import bias_gelu
from spanbert_kernels.ops.cross_document_attention import cross_document_attention
from spanbert_kernels.ops.distributed_plans import DistributedPlan
from spanbert_kernels.ops.document_attention import document_attention, document_attention_qkv
from spanbert_kernels.ops.documents import anchor_indices
from spanbert_kernels.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_kernels.ops.embedding_layer_norm import embedding_layer_norm
from spanbert_kernels.ops.encoder_stack import EncoderStack, encoder_stack
from spanbert_kernels.ops.packed_linear import PackedWeight, pack_weight, packed_linear
from spanbert_kernels.ops.pair_linear import pair_linear
from spanbert_kernels.ops.pair_pool import pair_pool
from spanbert_kernels.ops.plans import SpanPlan, enumerate_spans, plan_spans, spans_to_limits
from spanbert_kernels.ops.prune_spans import prune_spans
from spanbert_kernels.ops.span_gather import span_gather
from spanbert_kernels.ops.span_linear import span_linear
from spanbert_kernels.ops.span_pool import span_pool
from spanbert_kernels.ops.span_score import span_score
from spanbert_kernels.ops.top_spans import TopSpans, top_spans

__all__ = [
    "AttentionPlan",
    "DistributedPlan",
    "EncoderStack",
    "PackedWeight",
    "RelativeTerms",
    "SpanPlan",
    "TopSpans",
    "anchor_indices",
    "backends",
    "banded_span_scores",
    "bias_gelu",
    "bucketed_index",
    "clipped_index",
    "cross_document_attention",
    "document_attention",
    "document_attention_qkv",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "encoder_stack",
    "enumerate_spans",
    "log_bucketed_index",
    "pack_weight",
    "packed_linear",
    "pair_linear",
    "pair_pool",
    "plan_attention",
    "plan_spans",
    "prune_spans",
    "span_gather",
    "span_linear",
    "span_pool",
    "span_score",
    "spans_to_limits",
    "top_spans",
]
