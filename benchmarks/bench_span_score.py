"""The mention scorer of coreference models against everything that users take instead.

All spans of up to 30 tokens of a document of 512 (14,925), `[start; end; attention; width]` of H = 768 and 20 columns
for the width, 3000 hidden units, relu, one score.

And the scores of named entities as GLiNER has them: all spans of up to 12 words of 8 texts of 128 (11,760),
`[start; end]` of 512 columns each from tokens of their own, 2048 hidden units, relu, and 25 classes, whose weights are
each text's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from baselines import RaggedTokens, all_spans, dense_attention, endpoints_and_attention
from goals import Goal, PeakGoal
from registry import BOTH, FORWARD, Inputs, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

LENGTH, MAX_WIDTH, HIDDEN, UNITS, WIDTH_COLUMNS = 512, 30, 768, 3000, 20
PARTS = ["start", "end", "attention", "width"]
EAGER = "pool, then two layers"
# The best that users take; projecting first is this package's own way, in plain PyTorch, and stands beside it.
BEST = "dense product, two layers"
CHUNKS = "project, add in chunks"

TEXTS, WORDS, WIDTH, COLUMNS, BETWEEN, CLASSES = 8, 128, 12, 512, 2048, 25
OFFSETS = torch.arange(TEXTS + 1) * WORDS


def layer_inputs(dtype: torch.dtype, length: int = LENGTH) -> tuple[Tensor, ...]:
    """Hidden states, scores, a table of widths, the first layer's weight and bias, the second's weight."""
    generator = torch.Generator().manual_seed(0)
    columns = 3 * HIDDEN + WIDTH_COLUMNS
    shapes = ((length, HIDDEN), (length,), (MAX_WIDTH, WIDTH_COLUMNS), (UNITS, columns), (UNITS,), (1, UNITS))
    scales = (1.0, 1.0, 1.0, columns**-0.5, 0.1, UNITS**-0.5)
    made = (scale * torch.randn(shape, generator=generator) for shape, scale in zip(shapes, scales, strict=True))
    return tuple(tensor.to(dtype) for tensor in made)


def class_inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tokens as starts and as ends, the first layer's weight and bias, the second's weights."""
    generator, words = torch.Generator().manual_seed(0), TEXTS * WORDS
    shapes = ((words, COLUMNS), (words, COLUMNS), (BETWEEN, 2 * COLUMNS), (BETWEEN,), (TEXTS, CLASSES, BETWEEN))
    scales = (1.0, 1.0, (2 * COLUMNS) ** -0.5, 0.1, BETWEEN**-0.5)
    made = (scale * torch.randn(shape, generator=generator) for shape, scale in zip(shapes, scales, strict=True))
    return tuple(tensor.to(dtype) for tensor in made)


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    if "texts" in workload.options:
        spans = ops.enumerate_spans(OFFSETS, WIDTH).pairs()
        return Inputs(class_inputs(dtype), {"spans": spans}, steady_classes(workload.dtype))
    length = workload.options.get("length", LENGTH)
    steady = None if workload.direction == FORWARD else steady_spans(length, workload.dtype)
    return Inputs(layer_inputs(dtype, length), {"spans": all_spans(length, MAX_WIDTH)}, steady)


@cache
def steady_spans(length: int, dtype: torch.dtype) -> Tensor:
    """1 for spans that keep away from relu's kink with all units, by more than sums of that dtype are off; `[S, 1]`."""
    leaves = (leaf.double() for leaf in layer_inputs(dtype, length)[:-1])
    nearest = [inner.abs().amin(1, keepdim=True) for inner in projected_layer(all_spans(length, MAX_WIDTH), *leaves)]
    return (torch.cat(nearest) > 100 * torch.finfo(dtype).eps).to(dtype)


@cache
def steady_classes(dtype: torch.dtype) -> Tensor:
    """The same of the classes' spans."""
    start, end, weight, bias, _ = (leaf.double() for leaf in class_inputs(dtype))
    spans = ops.enumerate_spans(OFFSETS, WIDTH).pairs()
    nearest = [inner.abs().amin(1, keepdim=True) for inner in projected_bounds(spans, start, end, weight, bias)]
    return (torch.cat(nearest) > 100 * torch.finfo(dtype).eps).to(dtype)


def work(workload: Workload, inputs: Inputs) -> Work:
    """The fewest operations known: tokens projected once, three rows added for a span, the second layer."""
    spans, passes = len(inputs.given["spans"]), 3 if workload.direction == BOTH else 1
    length = len(inputs.leaves[0])
    products = 2 * 3 * length * HIDDEN * UNITS + 2 * spans * UNITS
    axes = {"tokens": length, "spans": spans, "width": MAX_WIDTH, "units": UNITS}
    if "texts" in workload.options:
        products = 2 * 2 * length * COLUMNS * BETWEEN + 2 * spans * BETWEEN * CLASSES
        axes = {"tokens": length, "spans": spans, "width": WIDTH, "units": BETWEEN}
    read = sum(leaf.numel() for leaf in inputs.leaves)
    return Work(axes, passes * read * inputs.leaves[0].element_size(), passes * products)


def two_layers(pooled: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(pooled, weight, bias)), out_weight)


def ours(workload: Workload, inputs: Inputs) -> Way:
    if "texts" in workload.options:
        every = ops.enumerate_spans(OFFSETS, WIDTH)
        return lambda start, end, weight, bias, classes: ops.span_score(
            {"start": start, "end": end}, every, ["start", "end"], weight, bias, classes, cu_seqlens=OFFSETS
        )
    plan = ops.enumerate_spans(torch.tensor([0, len(inputs.leaves[0])]), MAX_WIDTH)

    def way(hidden: Tensor, scores: Tensor, table: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
        return ops.span_score(hidden, plan, PARTS, weight, bias, out_weight, None, scores, table)

    return way


def eager(workload: Workload, inputs: Inputs) -> Way:
    spans = inputs.given["spans"]
    if "texts" in workload.options:
        return lambda start, end, weight, bias, classes: of_classes(
            F.relu(F.linear(torch.cat([start[spans[:, 0]], end[spans[:, 1]]], 1), weight, bias)), classes
        )
    return lambda h, s, t, *layers: two_layers(endpoints_and_attention(h, spans, s, t), *layers)


def of_classes(inner: Tensor, classes: Tensor) -> Tensor:
    """Every text has as many spans."""
    return torch.einsum("tnd,tcd->tnc", inner.view(TEXTS, -1, BETWEEN), classes).flatten(0, 1)


def dense(workload: Workload, inputs: Inputs) -> Way:
    first, last = inputs.given["spans"].unbind(1)

    def way(hidden: Tensor, scores: Tensor, table: Tensor, *layers: Tensor) -> Tensor:
        pooled = dense_attention(hidden, inputs.given["spans"], scores)
        return two_layers(torch.cat((hidden[first], hidden[last], pooled, table[last - first]), 1), *layers)

    return way


def projected_layer(
    all_of_them: Tensor, hidden: Tensor, scores: Tensor, table: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[Tensor]:
    """The first layer in plain PyTorch: tokens projected first, then projected rows added for a chunk of spans."""
    blocks = weight.split([HIDDEN] * 3 + [WIDTH_COLUMNS], 1)
    start, end, attention = (hidden @ block.T for block in blocks[:3])
    width = table @ blocks[3].T + bias
    for spans in all_of_them.split(512):
        first, last = spans.unbind(1)
        yield start[first] + end[last] + width[last - first] + RaggedTokens(spans).bag_weighted(attention, scores)


def projected_bounds(all_of_them: Tensor, start: Tensor, end: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    """The same of the classes' spans, a text at a time."""
    first, second = weight.split(COLUMNS, 1)
    starts, ends = start @ first.T + bias, end @ second.T
    for spans in all_of_them.chunk(TEXTS):
        yield starts[spans[:, 0]] + ends[spans[:, 1]]


def projected(workload: Workload, inputs: Inputs) -> Way:
    spans = inputs.given["spans"]
    if "texts" in workload.options:
        return lambda start, end, weight, bias, classes: torch.cat(
            [
                F.relu(inner) @ own.T
                for inner, own in zip(projected_bounds(spans, start, end, weight, bias), classes, strict=True)
            ]
        )

    def way(hidden: Tensor, scores: Tensor, table: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
        found = projected_layer(spans, hidden, scores, table, weight, bias)
        return torch.cat([F.relu(inner) @ out_weight.T for inner in found])

    return way


SMALL = PeakGoal(fraction=0.1)
SUITE = register(
    Suite(
        "span_score",
        (
            Workload("3000 units", goals=(Goal(35, against=EAGER), Goal(12, against=BEST)), peak_goal=SMALL,
                     peaks=("ours", EAGER)),
            Workload("3000 units", BOTH, goals=(Goal(20, against=EAGER), Goal(8, against=BEST)), peak_goal=SMALL,
                     peaks=("ours", EAGER)),
            Workload("25 classes of 8 texts", BOTH, options={"texts": TEXTS, "providers": ("ours", EAGER, CHUNKS)},
                     goals=(Goal(3, against=EAGER),), peaks=("ours", EAGER)),
            Workload("64 tokens", options={"length": 64}, seconds=3.0, quick=True),
        ),
        {
            "ours": Provider(ours, "ours"),
            EAGER: Provider(eager, "eager"),
            BEST: Provider(dense),
            CHUNKS: Provider(projected),
        },
        inputs,
        work,
        reference=CHUNKS,
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
