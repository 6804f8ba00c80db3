"""A project that uses the package, as a strict type checker sees it: every public name, and what it gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup
from typing_extensions import assert_type

import spanbert_kernels as sk
from spanbert_kernels import host, models, nn, ops
from spanbert_kernels.acceleration import AccelerationReport, AccelerationWarning
from spanbert_kernels.integrations import decode_spans, select_starts_ends
from spanbert_kernels.ops.choices import Activation, Anchor, Backend, Normalization, Part, Role
from spanbert_kernels.ops.encoder_stack import Normalize

PARTS: list[Part] = ["start", "end", "attention", "width"]


def spans(hidden: Tensor, given: Tensor, cu_seqlens: Tensor, weight: Tensor, backend: Backend, which: Anchor) -> None:
    plan = ops.enumerate_spans(cu_seqlens, max_width=3)
    assert_type(plan, ops.SpanPlan)
    assert_type(ops.plan_spans(given, num_tokens=5), ops.SpanPlan)
    assert_type(plan.pairs(), Tensor)
    assert_type(ops.span_gather(hidden, given, padded=True, backend=backend), tuple[Tensor, Tensor])
    assert_type(ops.span_pool(hidden, plan, ["mean", "max"]), Tensor)
    assert_type(ops.span_linear(hidden, plan, PARTS, weight, activation="gelu"), Tensor)
    assert_type(ops.span_pool({"start": hidden, "end": hidden}, plan, ["start", "end"]), Tensor)
    assert_type(ops.spans_to_limits(given[:, 0], given[:, 1]), ops.SpanPlan)
    assert_type(ops.pair_pool(hidden, None, given, ["x", "x*y"]), Tensor)
    assert_type(ops.pair_linear(hidden, None, given, ["x", "y"], weight), Tensor)
    activation: Activation = "relu"
    assert_type(ops.span_score(hidden, plan, PARTS, weight, None, weight[0], activation=activation), Tensor)
    assert_type(ops.banded_span_scores(hidden, hidden, None, 3), Tensor)
    assert_type(ops.banded_span_scores(None, None, None, 3, start_scores=hidden[:, 0]), Tensor)
    assert_type(ops.top_spans(hidden, hidden, None, 3, k=2, per="start"), ops.TopSpans)
    indexes = [ops.bucketed_index(), ops.log_bucketed_index(256, 512), ops.clipped_index(8)]
    assert_type(indexes, list[Tensor])
    terms = ops.RelativeTerms(indexes[0], bias=weight)
    assert_type(ops.document_attention(hidden, hidden, hidden, cu_seqlens, window=2, relative=terms), Tensor)
    assert_type(ops.prune_spans(plan, hidden[:, 0], k=2), Tensor)
    assert_type(ops.anchor_indices(cu_seqlens, which), Tensor)
    stack = ops.EncoderStack([Normalize(weight[0], None, 1e-12)], hidden_size=3, precision="int8")
    assert_type(ops.encoder_stack(hidden, cu_seqlens, stack), Tensor)
    packed = ops.pack_weight(weight)
    assert_type(packed, ops.PackedWeight)
    assert_type(ops.packed_linear(hidden, packed), Tensor)
    ops.span_pool(hidden, plan, ["median"])  # type: ignore[list-item]
    ops.span_pool(hidden, plan, "mean")  # type: ignore[arg-type]
    ops.span_pool(hidden, plan, PARTS, backend="tpu")  # type: ignore[arg-type]
    ops.anchor_indices(cu_seqlens, "middle")  # type: ignore[arg-type]


def attention_over_ranks(q: Tensor, cu_seqlens: Tensor, clusters: Tensor, group: ProcessGroup) -> None:
    plan = ops.plan_attention(cu_seqlens, clusters, group=group)
    assert_type(plan, ops.DistributedPlan)
    assert_type(ops.cross_document_attention(q, q, q, plan), Tensor)
    assert_type(ops.cross_document_attention(q, q, q, cu_seqlens, clusters, group=group), Tensor)


def attention(q: Tensor, cu_seqlens: Tensor, clusters: Tensor, role: Role, kind: Normalization, asked: bool) -> None:
    assert_type(ops.document_attention(q, q, q, cu_seqlens, scale=1.0), Tensor)
    assert_type(ops.document_attention(q, q, q, cu_seqlens, return_lse=True), tuple[Tensor, Tensor])
    assert_type(ops.document_attention(q, q, q, cu_seqlens, return_lse=asked), Tensor | tuple[Tensor, Tensor])
    assert_type(ops.document_attention_qkv(q, cu_seqlens, scale=1.0), Tensor)
    assert_type(ops.document_attention_qkv(q, cu_seqlens, return_lse=True), tuple[Tensor, Tensor])
    plan = ops.plan_attention(cu_seqlens, clusters, role, keys="tokens")
    assert_type(plan, ops.AttentionPlan)
    assert_type(plan.queries, Role)
    cross = ops.cross_document_attention
    assert_type(cross(q, q, q, plan, normalize=kind), Tensor)
    assert_type(cross(q, q, q, plan, return_lse=True), tuple[Tensor, Tensor])
    assert_type(cross(q, q, q, plan, return_weights=True), tuple[Tensor, Tensor])
    assert_type(cross(q, q, q, plan, return_lse=True, return_weights=True), tuple[Tensor, Tensor, Tensor])
    assert_type(cross(q, q, q, plan, return_weights=asked), Tensor | tuple[Tensor, ...])
    cross(q, q, q, cu_seqlens, clusters, "everything")  # type: ignore[call-overload]
    cross(q, q, q, plan, normalise="joint")  # type: ignore[call-overload]


def backends() -> None:
    with ops.backends.use("eager"), ops.backends.record() as calls:
        assert_type(calls, list[tuple[str, Backend]])
    assert_type(ops.backends.refusal("cpu", "cpu", torch.float32), str | None)
    assert_type(ops.backends.refusals(), dict[Backend, dict[str, str | None]])


def modules(hidden: Tensor, cu_seqlens: Tensor, clusters: Tensor, role: Role, asked: bool) -> None:
    mixer = nn.CrossDocumentMixer(8, 2, queries=role, anchor="first", normalize="pairwise")
    assert_type(mixer.forward(hidden, cu_seqlens, clusters), Tensor)
    assert_type(mixer.forward(hidden, cu_seqlens, clusters, return_weights=True), tuple[Tensor, Tensor])
    assert_type(mixer.forward(hidden, cu_seqlens, clusters, return_weights=asked), Tensor | tuple[Tensor, Tensor])
    nn.CrossDocumentMixer(8, 2, queries="everything")  # type: ignore[arg-type]
    packing = nn.Packing.from_mask(hidden, 2, 3, hidden.device)
    assert_type(packing.pack(hidden), Tensor)
    assert_type(nn.Biaffine(8, 3).pairs(hidden, hidden), Tensor)
    extractors = [nn.EndpointSpanExtractor(8, "x,y"), nn.BidirectionalEndpointSpanExtractor(8)]
    pooling = [nn.SelfAttentiveSpanExtractor(8), nn.MaxPoolingSpanExtractor(8, 3, 2, bucket_widths=True)]
    assert_type([each.get_output_dim() for each in (*extractors, *pooling)], list[int])
    head: type[torch.nn.Module] = nn.SpanBoundaryHead
    assert issubclass(head, torch.nn.Module)


def acceleration(model: torch.nn.Module) -> None:
    report = sk.accelerate(model)
    assert_type(report, AccelerationReport)
    assert_type(report.calls["packed-inference"], int)
    assert_type(report.last_path, str | None)
    sk.restore(model)
    sk.register_attention("packed")
    assert issubclass(AccelerationWarning, UserWarning)


def host_work(starts: NDArray[Any], ends: NDArray[Any]) -> None:
    assert_type(host.load(), str | None)
    assert_type(host.prune_spans(starts, ends, starts, 2), NDArray[np.int64])
    starts, ends, _ = host.sort_spans(starts, ends, 3)
    assert_type(host.first_and_reach(starts, ends, 3), tuple[NDArray[np.int64], NDArray[np.int64]])
    pooled, backward = host.pool_spans(starts / 2, starts, ends, ["mean", "max"])
    assert_type(backward(pooled), NDArray[np.floating[Any]])
    output, gradients = host.span_linear(starts / 2, starts, ends, ["mean"], pooled)
    assert_type(gradients(output)[0], NDArray[np.floating[Any]])
    assert_type(decode_spans(pooled, pooled, 1, 3, starts)[2], NDArray[Any])
    assert_type(select_starts_ends(pooled, pooled, starts, None)[3], float)
    inputs, *_ = host.mask_spans(starts, ends, starts, seed=1, mask_token=2, random_tokens=starts)
    assert_type(inputs, NDArray[np.int64])


def reference_model(input_ids: Tensor) -> list[object]:
    config = sk.SpanBERTConfig(num_hidden_layers=4, cross_document_layers=[1])
    assert_type(config.cross_document_queries, Role)
    return [
        sk.SpanBERTModel(config)(input_ids, cluster_ids=torch.tensor([1, 1])),
        sk.SpanBERTTokenizer.from_pretrained("spanbert-base"),
        sk.SpanBERTForCoreference.from_pretrained("spanbert-base"),
        sk.SpanBERTForDependencyParsing(config),
        sk.SpanBERTForExtraction(config),
        sk.SpanBERTForMaskedLM(config),
        sk.SpanBERTForPreTraining(config),
        sk.SpanBERTForQuestionAnswering(config),
        sk.SpanBERTForRelations(config),
        sk.SpanBERTForSequenceClassification(config),
        sk.SpanBERTForSpanClassification(config),
        sk.SpanBERTForTokenClassification(config),
        models.WindowedSpanBERTModel(models.WindowedSpanBERTConfig(window_length=64)),
        models.WindowedSpanEncoderConfig(encoder_type="electra"),
        models.kind_for(sk.SpanBERTModel, "a/folder").from_pretrained("a/folder"),
        models.kind_on(sk.SpanBERTModel, "roberta")(models.SpanEncoderConfig(encoder_type="roberta")),
        models.load_released_heads,
    ]
