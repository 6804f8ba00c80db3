"""The workloads whose least times are kept, and what was asked of them; one row each.

A row's call makes its inputs and whatever stands before what is asked about (plans, the forward of a backward), and
returns the rest. All in bfloat16 with 12 heads of 64 unless it says otherwise. Nothing is computed, so sizes are real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from spanbert_kernels import accelerate, ops
from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.ops.choices import Backend, Part

from . import cuda_kernels
from .cuda_kernels import CudaLaunch

HEADS, HEAD_DIM = 12, 64
BF16 = torch.bfloat16


@dataclass(frozen=True)
class PreparedCall:
    """What a row is about.

    Attributes:
        run: the launches of this call count.
        moved: bytes that any way must move: inputs read and results written once.
        launches: those that cannot be recorded.
    """

    run: Callable[[], object]
    moved: int
    launches: tuple[CudaLaunch, ...] = ()


@dataclass(frozen=True)
class Roofed:
    """A row of the table.

    Attributes:
        prepare: makes the inputs and whatever stands before.
        goal: microseconds asked for, if any.
        most_launches: launches asked for at most, if so many are.
        headline: every test run compiles it.
        nvcc: it needs the CUDA compiler.
        on_gpu: prepares the same where there is a GPU, if `prepare` cannot launch it.
    """

    prepare: Callable[[], PreparedCall]
    goal: float | None = None
    most_launches: int | None = None
    headline: bool = False
    nvcc: bool = False
    on_gpu: Callable[[], PreparedCall] | None = None


def offsets(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0)


def gradients(output: Tensor, leaves: Any) -> Callable[[], object]:
    """The backward of a call, which can be had again."""
    return partial(torch.autograd.grad, output, leaves, torch.empty_like(output), retain_graph=True)


def log_normal(documents: int) -> tuple[int, ...]:
    """The lengths of the GPU suite's batch."""
    drawn = numpy.random.default_rng(0).lognormal(4.6, 0.6, documents).round().clip(8, 512)
    return tuple(int(length) for length in drawn)


def attention(
    lengths: tuple[int, ...],
    *,
    backward: bool = False,
    gradient: bool = False,
    dropout: float = 0.0,
    cluster: int = 0,
    fused: bool = False,
    dtype: torch.dtype = BF16,
) -> PreparedCall:
    """Attention of documents, or with `cluster` of so many to each other and not to themselves.

    With `gradient` a forward is one that a backward follows; with `fused` that is of q, k and v in one tensor.
    """
    tokens = sum(lengths)
    qkv = torch.empty(tokens, 3, HEADS, HEAD_DIM, dtype=dtype, requires_grad=True)
    leaves = [qkv] if fused else [each.detach().requires_grad_(backward or gradient) for each in qkv.unbind(1)]
    clusters = torch.arange(0, len(lengths) + 1, cluster) if cluster else None
    plan = ops.plan_attention(offsets(lengths), clusters, "tokens", "tokens")
    seed = torch.zeros(1, dtype=torch.long)
    attend: Any = ops.cross_document_attention if cluster else ops.document_attention
    attend = ops.document_attention_qkv if fused else attend

    def forward() -> Tensor:
        output: Tensor = attend(*leaves, plan, dropout_p=dropout, seed=seed if dropout else None, backend="triton")
        return output

    output = forward()
    size = output.numel() * output.element_size()
    if not backward:
        return PreparedCall(forward, 4 * size)
    return PreparedCall(gradients(output, leaves), 8 * size)


def offsets_alone() -> PreparedCall:
    """Attention of documents whose offsets are given, and no plan."""
    q = torch.empty(sum(SHORT), HEADS, HEAD_DIM, dtype=BF16)
    cu_seqlens = offsets(SHORT)
    return PreparedCall(lambda: ops.document_attention(q, q, q, cu_seqlens, backend="triton"), 8 * q.numel())


def anchors(clusters: int, documents: int) -> PreparedCall:
    """The whole sub-layer that lets the anchors of clusters of documents see each other, H = 768, without gradients."""
    size = HEADS * HEAD_DIM
    count = clusters * documents
    mixer = CrossDocumentMixer(size, HEADS).eval().to(BF16)
    hidden = torch.empty(128 * count, size, dtype=BF16)
    plan = ops.plan_attention(offsets((128,) * count), torch.arange(0, count + 1, documents))

    def run() -> Tensor:
        with torch.no_grad(), ops.backends.use("triton"):
            return mixer(hidden, plan, inplace=True)

    run()
    return PreparedCall(run, 2 * (4 * size * size + 3 * count * size))


def between_anchors(clusters: int, documents: int) -> PreparedCall:
    """The gradients of attention between the anchors of clusters of documents."""
    count = clusters * documents
    q, k, v = leaves = [torch.empty(count, HEADS, HEAD_DIM, dtype=BF16, requires_grad=True) for _ in range(3)]
    plan = ops.plan_attention(offsets((128,) * count), torch.arange(0, count + 1, documents))
    output: Any = ops.cross_document_attention(q, k, v, plan, backend="triton")
    return PreparedCall(gradients(output, leaves), 8 * 2 * q.numel())


def end_of_sublayer(*, dropout: float = 0.0, backward: bool = False) -> PreparedCall:
    """What stands at the end of a transformer's sub-layers, for 32,768 tokens and H = 768."""
    size = HEADS * HEAD_DIM
    x, residual, weight, bias = leaves = [
        torch.empty(shape, dtype=BF16, requires_grad=backward)
        for shape in ((sum(SHORT), size), (sum(SHORT), size), (size,), (size,))
    ]
    seed = torch.zeros(1, dtype=torch.long) if dropout else None

    def forward() -> Tensor:
        return ops.dropout_add_layer_norm(x, residual, weight, bias, dropout_p=dropout, seed=seed, backend="triton")

    output = forward()
    if not backward:
        return PreparedCall(forward, 3 * 2 * x.numel())
    return PreparedCall(gradients(output, leaves), (5 if dropout else 4) * 2 * x.numel())


def embeddings(*, dropout: float = 0.0, backward: bool = False) -> PreparedCall:
    """What stands before BERT-base's layers, for 32,768 tokens."""
    tokens, size = sum(SHORT), HEADS * HEAD_DIM
    shapes = ((30522, size), (512, size), (2, size), (size,), (size,))
    leaves = [torch.empty(shape, dtype=BF16, requires_grad=backward) for shape in shapes]
    token_table, position_table, type_table, weight, bias = leaves
    ids, positions = torch.arange(tokens) * 7919 % len(token_table), torch.arange(tokens) % SHORT[0]
    types = torch.zeros_like(ids)
    more: dict[str, Any] = {"position_table": position_table, "type_table": type_table, "dropout_p": dropout}
    more |= {"position_ids": positions, "type_ids": types, "seed": types[:1] if dropout else None, "backend": "triton"}
    forward = partial(ops.embedding_layer_norm, ids, token_table, weight, bias, **more)
    output = forward()
    row = 2 * output.numel()
    if not backward:
        return PreparedCall(forward, 2 * row + 3 * 8 * tokens)
    return PreparedCall(gradients(output, leaves), 3 * row + 2 * token_table.numel())


def wide_activation(*, backward: bool = False) -> PreparedCall:
    """What stands between the products of a feed-forward block, for 32,768 tokens and I = 3072."""
    x = torch.empty(sum(SHORT), 4 * HEADS * HEAD_DIM, dtype=BF16, requires_grad=backward)
    bias = torch.empty(x.shape[1], dtype=BF16, requires_grad=backward)
    forward = partial(ops.bias_gelu, x, bias, backend="triton")
    output = forward()
    if not backward:
        return PreparedCall(forward, 2 * 2 * x.numel())
    return PreparedCall(gradients(output, (x, bias)), 3 * 2 * x.numel())


def encoder(documents: int, length: int) -> PreparedCall:
    """BERT-base, accelerated, on documents of one length."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(), add_pooling_layer=False).eval().to(BF16)
    model = model.to_empty(device="cuda")
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    accelerate(model)
    ids = torch.arange(documents * length).view(documents, length) % model.config.vocab_size
    mask = torch.ones_like(ids)

    def run() -> Tensor:
        with torch.no_grad(), ops.backends.use("triton"):
            states: Tensor = model(ids, mask).last_hidden_state
            return states

    run()
    layers = sum(weight.numel() for weight in model.encoder.parameters())
    return PreparedCall(run, 2 * (layers + 2 * documents * length * HEADS * HEAD_DIM))


def random_spans(tokens: int, length: int, count: int, widest: int) -> Tensor:
    """Spans of documents of one length, of any width up to the widest."""
    generator = numpy.random.default_rng(0)
    width = generator.integers(1, widest + 1, count)
    within = (generator.random(count) * (length - width + 1)).astype(int)
    start = generator.integers(0, tokens // length, count) * length + within
    return torch.tensor(numpy.stack((start, start + width - 1), 1))


RANDOM = partial(random_spans, 64 * 512, 512, 100_000, 64)


def pooling(
    part: Part, *, enumerated: bool = False, backward: bool = False, gradient: bool = False, backend: Backend = "triton"
) -> PreparedCall:
    """100,000 random spans of 64 x 512 tokens and H = 768, or all up to 30 of 16 x 512 and H = 1024."""
    tokens, columns = (16 * 512, 1024) if enumerated else (64 * 512, 768)
    every = partial(ops.enumerate_spans, offsets((512,) * 16), 30)
    plan = every() if enumerated else ops.plan_spans(RANDOM(), num_tokens=tokens)
    hidden = torch.empty(tokens, columns, dtype=BF16, requires_grad=backward or gradient)
    scores = torch.empty(tokens) if part == "attention" else None

    def forward() -> Tensor:
        return ops.span_pool(hidden, plan, [part], scores=scores, backend=backend)

    output = forward()
    moved = (hidden.numel() + output.numel()) * 2
    if not backward:
        return PreparedCall(forward, moved)
    return PreparedCall(gradients(output, hidden), moved)


def pooling_in_cuda(
    part: Part, *, enumerated: bool = False, backward: bool = False, keep: bool = False
) -> PreparedCall:
    """The same through the CUDA C++ kernels."""
    tokens, columns = (16 * 512, 1024) if enumerated else (64 * 512, 768)
    every = partial(ops.enumerate_spans, offsets((512,) * 16), 30)
    plan = every() if enumerated else ops.plan_spans(RANDOM(), num_tokens=tokens)
    moved = (tokens + len(plan)) * columns * 2
    if part == "max":
        launch = cuda_kernels.maxima(plan, columns, keep, moved + keep * len(plan) * columns)
    elif enumerated:
        launch = cuda_kernels.enumerated(plan, columns, moved)
    else:
        launch = (cuda_kernels.sums_backward if backward else cuda_kernels.sums_forward)(plan, columns, moved)
    return PreparedCall(lambda: None, moved, (launch,))


def coreference(*, score: bool, documents: int, columns: int, backward: bool = False) -> PreparedCall:
    """All spans of up to 30 of documents of 512 tokens, `[start; end; attention; width]`, 3000 units."""
    tokens, units, widths = 512 * documents, 3000, 20
    plan = ops.enumerate_spans(offsets((512,) * documents), 30)
    parts: list[Part] = ["start", "end", "attention", "width"]
    hidden = torch.empty(tokens, columns, dtype=BF16, requires_grad=backward)
    weight = torch.empty(units, 3 * columns + widths, dtype=BF16, requires_grad=backward)
    scores, bias = torch.empty(tokens), torch.empty(units, dtype=BF16)
    table, out_weight = torch.empty(30, widths, dtype=BF16), torch.empty(1, units, dtype=BF16)

    more: dict[str, Any] = {"scores": scores, "width_embedding": table, "activation": "relu", "backend": "triton"}

    def run() -> Tensor:
        if score:
            return ops.span_score(hidden, plan, parts, weight, bias, out_weight, **more)
        return ops.span_linear(hidden, plan, parts, weight, bias, **more)

    output = run()
    read = sum(each.numel() for each in (hidden, weight, bias, out_weight))
    if backward:
        return PreparedCall(gradients(output, (hidden, weight)), 2 * (2 * read + output.numel()))
    return PreparedCall(run, 2 * (read + output.numel()))


EVEN, SHORT, MIXED = (512,) * 64, (128,) * 256, log_normal(256)
ACROSS = (128,) * 320

WORKLOADS: dict[str, Roofed] = {
    "attention 64 x 512 forward": Roofed(partial(attention, EVEN), 150),
    "attention 64 x 512 backward": Roofed(partial(attention, EVEN, backward=True), 400, headline=True),
    "attention 256 x 128 forward": Roofed(partial(attention, SHORT), 65),
    "attention 256 x 128 backward": Roofed(partial(attention, SHORT, backward=True), 140, headline=True),
    "attention 1024 x 32 forward": Roofed(partial(attention, (32,) * 1024), 65),
    "attention 1024 x 32 backward": Roofed(partial(attention, (32,) * 1024, backward=True), 130),
    "attention log-normal forward": Roofed(partial(attention, MIXED), 70),
    "attention log-normal backward": Roofed(partial(attention, MIXED, backward=True), 200),
    "attention 64 x 512 dropout forward": Roofed(partial(attention, EVEN, dropout=0.1), 300),
    "attention 64 x 512 dropout forward for a gradient": Roofed(
        partial(attention, EVEN, dropout=0.1, gradient=True), 300
    ),
    "attention 64 x 512 dropout backward": Roofed(partial(attention, EVEN, dropout=0.1, backward=True), 550),
    "attention 256 x 128 dropout forward": Roofed(partial(attention, SHORT, dropout=0.1), 100),
    "attention 256 x 128 dropout backward": Roofed(partial(attention, SHORT, dropout=0.1, backward=True)),
    "attention 256 x 128 backward of fused q, k, v": Roofed(partial(attention, SHORT, backward=True, fused=True)),
    "attention 64 x 512 float32 forward": Roofed(partial(attention, EVEN, dtype=torch.float32)),
    "attention 64 x 512 float32 backward": Roofed(partial(attention, EVEN, dtype=torch.float32, backward=True)),
    "across 32 x 10 x 128 forward": Roofed(partial(attention, ACROSS, cluster=10), 400),
    "across 32 x 10 x 128 backward": Roofed(partial(attention, ACROSS, cluster=10, backward=True), 1100),
    "anchors 64 x 10, the whole sub-layer": Roofed(partial(anchors, 64, 10), 20),
    "anchors 64 x 10, attention backward": Roofed(partial(between_anchors, 64, 10)),
    "attention 256 x 128 forward of raw offsets": Roofed(offsets_alone, most_launches=2),
    "dropout_add_layer_norm forward": Roofed(end_of_sublayer, 44),
    "dropout_add_layer_norm dropout forward": Roofed(partial(end_of_sublayer, dropout=0.1), 44),
    "dropout_add_layer_norm backward": Roofed(partial(end_of_sublayer, backward=True), 60),
    "dropout_add_layer_norm dropout backward": Roofed(partial(end_of_sublayer, dropout=0.1, backward=True), 75),
    "embedding_layer_norm forward": Roofed(embeddings),
    "embedding_layer_norm dropout backward": Roofed(partial(embeddings, dropout=0.1, backward=True)),
    "bias_gelu forward": Roofed(wide_activation, 118),
    "bias_gelu backward": Roofed(partial(wide_activation, backward=True), 180),
    "BERT-base 256 x 128, accelerated": Roofed(partial(encoder, 256, 128), 256e6 / 28_000),
    "span_pool mean random forward": Roofed(partial(pooling, "mean"), headline=True),
    "span_pool mean random backward": Roofed(partial(pooling, "mean", backward=True)),
    "span_pool max random forward": Roofed(partial(pooling, "max")),
    "span_pool max random forward for a gradient": Roofed(partial(pooling, "max", gradient=True)),
    "span_pool max random backward": Roofed(partial(pooling, "max", backward=True)),
    "span_pool attention random forward": Roofed(partial(pooling, "attention")),
    "span_pool mean enumerated coreference": Roofed(partial(pooling, "mean", enumerated=True)),
    "span_pool mean random forward, CUDA C++": Roofed(
        partial(pooling_in_cuda, "mean"), 75, nvcc=True, on_gpu=partial(pooling, "mean", backend="cuda")
    ),
    "span_pool mean random backward, CUDA C++": Roofed(
        partial(pooling_in_cuda, "mean", backward=True),
        90,
        nvcc=True,
        on_gpu=partial(pooling, "mean", backward=True, backend="cuda"),
    ),
    "span_pool max random forward, CUDA C++": Roofed(
        partial(pooling_in_cuda, "max"), 120, nvcc=True, on_gpu=partial(pooling, "max", backend="cuda")
    ),
    "span_pool max random forward for a gradient, CUDA C++": Roofed(
        partial(pooling_in_cuda, "max", keep=True),
        170,
        nvcc=True,
        on_gpu=partial(pooling, "max", gradient=True, backend="cuda"),
    ),
    "span_pool mean enumerated coreference, CUDA C++": Roofed(
        partial(pooling_in_cuda, "mean", enumerated=True),
        155,
        nvcc=True,
        on_gpu=partial(pooling, "mean", enumerated=True, backend="cuda"),
    ),
    "span_score coreference": Roofed(partial(coreference, score=True, documents=16, columns=1024), 250),
    "span_linear coreference": Roofed(partial(coreference, score=False, documents=16, columns=1024), 250),
    "span_linear coreference backward": Roofed(
        partial(coreference, score=False, documents=16, columns=1024, backward=True)
    ),
}
