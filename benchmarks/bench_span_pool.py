"""span_pool against everything that users take instead: H = 768.

All spans of up to 30 tokens of a document of 512 (14,925), 100,000 random spans of up to 64 tokens in documents, and
curves over tokens, widths and spans.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from baselines import (
    RaggedTokens,
    all_spans,
    dense_attention,
    dense_mean,
    endpoints_and_attention,
    gather_and_attend,
    gather_and_max,
    gather_and_mean,
    mask_and_max,
)
from goals import ZEN, Goal, PeakGoal
from registry import BACKWARD, BOTH, Inputs, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

HIDDEN = 768
EAGER, BAG, FLOOR = "gather and reduce", "embedding_bag", "copy one row to all"
PARTS = {"coreference": ["start", "end", "attention", "width"]}
MOST_GATHERED = 2**31  # bytes that eager gathers at a time


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    """Hidden states, scores, a table of widths; the spans as a tensor and as what ours is given."""
    options = workload.options
    documents, length, max_width = options.get("documents", 1), options.get("length", 512), options.get("width", 30)
    generator = torch.Generator().manual_seed(0)
    tokens, count = documents * length, options.get("random", 0)
    if count:
        width = torch.randint(1, max_width + 1, (count,), generator=generator)
        within = (torch.rand(count, generator=generator) * (length - width + 1)).long()
        start = torch.randint(documents, (count,), generator=generator) * length + within
        spans = torch.stack((start, start + width - 1), 1)
    else:
        spans = all_spans(length, max_width)
    kind = options.get("kind", "plan" if count else "all up to a width")
    work: Any = spans
    if kind == "plan":
        work = ops.plan_spans(spans, num_tokens=tokens)
    elif kind != "tensor":
        work = ops.enumerate_spans(torch.tensor([0, length]), max_width)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    leaves = (randn(tokens, HIDDEN), randn(tokens), randn(max_width, 20))
    return Inputs(leaves, {"spans": spans, "work": work, "length": length, "width": max_width})


def work(workload: Workload, inputs: Inputs) -> Work:
    """Every input read and every output written once; a multiplication and an addition for a weighed number."""
    spans, (hidden, _, table) = inputs.given["spans"], inputs.leaves
    coreference = workload.options["pooled"] == "coreference"
    columns = 3 * HIDDEN + table.shape[1] if coreference else HIDDEN
    passes = 2 if workload.direction == BOTH else 1  # a backward reads what the forward wrote, and the reverse
    numbers = passes * (hidden.numel() + len(spans) * columns)
    axes = {
        "tokens": len(hidden),
        "spans": len(spans),
        "width": inputs.given["width"],
        "documents": workload.options.get("documents", 1),
    }
    return Work(axes, numbers * hidden.element_size(), 2 * passes * len(spans) * HIDDEN)


def ours(workload: Workload, inputs: Inputs) -> Way:
    parts = PARTS.get(workload.options["pooled"], [workload.options["pooled"]])

    def way(hidden: Tensor, scores: Tensor, table: Tensor) -> Tensor:
        return ops.span_pool(
            hidden,
            inputs.given["work"],
            parts,
            scores=scores if "attention" in parts else None,
            width_embedding=table if "width" in parts else None,
        )

    return way


def coreference(pooled: Callable[[Tensor, Tensor], Tensor], spans: Tensor) -> Way:
    def way(hidden: Tensor, scores: Tensor, table: Tensor) -> Tensor:
        width = table[spans[:, 1] - spans[:, 0]]
        return torch.cat((hidden[spans[:, 0]], hidden[spans[:, 1]], pooled(hidden, scores), width), 1)

    return way


def in_chunks(way: Callable[..., Tensor], spans: Tensor, rows: int, hidden: Tensor, *rest: Tensor) -> Tensor:
    """In chunks of spans whose tokens fit into memory."""
    return torch.cat([way(hidden, chunk, *rest) for chunk in spans.split(rows)])


def eager(workload: Workload, inputs: Inputs) -> Way:
    spans, pooled, hidden = inputs.given["spans"], workload.options["pooled"], inputs.leaves[0]
    if pooled == "coreference":
        return lambda h, s, t: endpoints_and_attention(h, spans, s, t)
    rows = MOST_GATHERED // (inputs.given["width"] * HIDDEN * hidden.element_size())
    if workload.options.get("random"):
        rows = min(rows, 2000)
    if pooled == "attention":
        return lambda h, s, t: gather_and_attend(h, spans, s)
    return lambda h, s, t: in_chunks({"max": gather_and_max, "mean": gather_and_mean}[pooled], spans, rows, h)


def dense(workload: Workload, inputs: Inputs) -> Way:
    """Products with a dense matrix `[N, T]`; one a document."""
    spans, pooled, length = inputs.given["spans"], workload.options["pooled"], inputs.given["length"]
    if pooled == "coreference":
        return coreference(lambda h, s: dense_attention(h, spans, s), spans)
    if pooled == "attention":
        return lambda h, s, t: dense_attention(h, spans, s)
    document = spans[:, 0] // length

    def per_document(hidden: Tensor, scores: Tensor, table: Tensor) -> Tensor:
        if len(hidden) == length:
            return dense_mean(hidden, spans)
        output = hidden.new_empty(len(spans), HIDDEN)
        for d in range(len(hidden) // length):
            rows = (document == d).nonzero()[:, 0]
            output[rows] = dense_mean(hidden[d * length : (d + 1) * length], spans[rows] - d * length)
        return output

    return per_document


def bag(workload: Workload, inputs: Inputs) -> Way:
    spans, pooled = inputs.given["spans"], workload.options["pooled"]
    ragged = RaggedTokens(spans)
    if pooled == "coreference":
        return coreference(ragged.bag_weighted, spans)
    return lambda h, s, t: ragged.bag_weighted(h, s) if pooled == "attention" else ragged.bag(h, pooled)


def segments(workload: Workload, inputs: Inputs) -> Way:
    ragged = RaggedTokens(inputs.given["spans"])
    return lambda h, s, t: ragged.reduce(h, workload.options["pooled"])


def compiled(ways: dict[str, Callable[..., Tensor]], workload: Workload, inputs: Inputs) -> Way:
    spans, pooled = inputs.given["spans"], workload.options["pooled"]
    way = torch.compile(ways[pooled], dynamic=False)
    return lambda h, s, t: way(h, spans, s) if pooled == "attention" else way(h, spans)


def copied(workload: Workload, inputs: Inputs) -> Way:
    spans = inputs.given["spans"]
    return lambda h, s, t: h[0].expand(len(spans), HIDDEN).contiguous()


def exact(workload: Workload, inputs: Inputs) -> Way:
    """A way that fits into memory in float64."""
    spans = inputs.given["spans"]
    if workload.options["pooled"] == "max":
        return lambda h, s, t: in_chunks(gather_and_max, spans, 2000, h)
    return bag(workload, inputs)


GATHERS = {"max": gather_and_max, "mean": gather_and_mean, "attention": gather_and_attend}
PROVIDERS = {
    "ours": Provider(ours, "ours"),
    EAGER: Provider(eager, "eager"),
    "mask and max": Provider(lambda w, i: lambda h, s, t: mask_and_max(h, i.given["spans"])),
    "dense product": Provider(dense),
    "compiled dense product": Provider(partial(compiled, {"attention": dense_attention}), compiles=True),
    BAG: Provider(bag),
    "segment_reduce": Provider(segments),
    "compiled gather": Provider(partial(compiled, GATHERS), compiles=True),
    FLOOR: Provider(copied, "floor"),
    "in float64": Provider(exact),
}
MAX = ("ours", EAGER, "mask and max", BAG, "segment_reduce", "compiled gather", FLOOR)
MEAN = ("ours", EAGER, "dense product", BAG, "segment_reduce", "compiled gather", FLOOR)
ATTENTION = ("ours", EAGER, "dense product", "compiled dense product", BAG, "compiled gather", FLOOR)
COREFERENCE = RANDOM = ("ours", EAGER, "dense product", BAG)
CURVE = ("ours", EAGER, "dense product", BAG)
ALL = "all spans up to 30 of 512"
WRITTEN = Goal(at_most=2.5, against=FLOOR)
PEAKS = ("ours", EAGER)


def row(name: str, providers: tuple[str, ...], *goals: Goal, **fields: Any) -> Workload:
    pooled = name.split(",")[0]
    fields["options"] = {"pooled": pooled, "providers": providers, **fields.get("options", {})}
    return Workload(name, goals=goals, **fields)


def point(axis: str, value: int, **options: int) -> Workload:
    """Of a curve: the mean of all spans of one document, or of random ones."""
    names = {"tokens": "length", "spans": "random"}
    options = {"documents": 1, "length": 512, "width": 30, **options, names.get(axis, axis): value}
    curve = f"mean over {axis}"
    return row(f"mean, {value:,} {axis}", CURVE, options=options, seconds=0.8, curve=curve, scaling=axis)


def asked(eager: float, best: float) -> tuple[Goal, Goal]:
    """Against eager and against the best that users take instead."""
    return Goal(eager, against=EAGER, on=ZEN), Goal(best, on=ZEN)


SPARE = PeakGoal(spare=0.1)
SUITE = register(
    Suite(
        "span_pool",
        (
            row(f"max, {ALL}", MAX, *asked(180, 30), WRITTEN, peak_goal=SPARE, peaks=PEAKS),
            row(f"mean, {ALL}", MEAN, *asked(180, 3.5), WRITTEN, peak_goal=SPARE, peaks=PEAKS, quick=True),
            row(f"attention, {ALL}", ATTENTION, *asked(95, 2.5), WRITTEN, peak_goal=SPARE, peaks=PEAKS),
            row(f"coreference, {ALL}", COREFERENCE, Goal(80, against=EAGER), Goal(4), direction=BOTH,
                peak_goal=PeakGoal(spare=0.25), peaks=PEAKS),
            row("mean, 100,000 random spans up to 64 of 64 x 512", RANDOM, Goal(100, against=EAGER), Goal(4),
                options={"documents": 64, "random": 100_000, "width": 64}, peak_goal=SPARE, peaks=PEAKS),
            row(f"mean, {ALL}", ("ours", EAGER, BAG), direction=BACKWARD, seconds=3.0),
            row(f"mean, {ALL}, planned", ("ours", EAGER, BAG), options={"kind": "plan"}, seconds=2.0),
            row(f"mean, {ALL}, a tensor", ("ours", EAGER, BAG), options={"kind": "tensor"}, seconds=2.0, quick=True),
            *(point("tokens", tokens) for tokens in (128, 512, 1024)),
            *(point("width", width) for width in (2, 8, 32, 96)),
            *(point("spans", count, documents=16) for count in (100, 1_000, 10_000)),
        ),
        PROVIDERS,
        inputs,
        work,
        reference="in float64",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
