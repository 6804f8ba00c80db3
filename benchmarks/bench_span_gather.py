"""span_gather, packed: 5,000 overlapping spans of up to 10 tokens out of 4096, H = 768."""

from __future__ import annotations

from collections.abc import Callable

import torch
from goals import Goal
from registry import BOTH, Inputs, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

TOKENS, SPANS, MAX_WIDTH, HIDDEN = 4096, 5000, 10, 768
FLOOR, SLICES = "copy as many numbers", "slices and cat"


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
    start = torch.randint(0, TOKENS - MAX_WIDTH, (SPANS,), generator=generator)
    spans = torch.stack([start, start + torch.randint(0, MAX_WIDTH, (SPANS,), generator=generator)], 1)
    plan = ops.plan_spans(spans, num_tokens=TOKENS)
    return Inputs((hidden,), {"spans": spans, "plan": spans if workload.options.get("tensor") else plan})


def rows_of(inputs: Inputs) -> int:
    spans = inputs.given["spans"]
    return int((spans[:, 1] + 1 - spans[:, 0]).sum())


def work(workload: Workload, inputs: Inputs) -> Work:
    """Gathered rows are read and written; the gradient likewise, and added up."""
    moved = 2 * rows_of(inputs) * HIDDEN * (2 if workload.direction == BOTH else 1)
    return Work({"tokens": TOKENS, "spans": SPANS, "width": MAX_WIDTH}, moved * inputs.leaves[0].element_size())


def token_of_row(spans: Tensor) -> Tensor:
    widths = spans[:, 1] + 1 - spans[:, 0]
    first_row = widths.cumsum(0) - widths
    span = torch.repeat_interleave(widths)
    return torch.arange(len(span)) - first_row[span] + spans[span, 0]


def ours(workload: Workload, inputs: Inputs) -> Way:
    return lambda hidden: ops.span_gather(hidden, inputs.given["plan"])[0]


def selected(workload: Workload, inputs: Inputs) -> Way:
    return lambda hidden: hidden.index_select(0, token_of_row(inputs.given["spans"]))


def indexed(workload: Workload, inputs: Inputs) -> Way:
    return lambda hidden: hidden[token_of_row(inputs.given["spans"])]


def sliced(workload: Workload, inputs: Inputs) -> Way:
    spans = inputs.given["spans"].tolist()
    return lambda hidden: torch.cat([hidden[start : last + 1] for start, last in spans])


def copied(workload: Workload, inputs: Inputs) -> Way:
    source = inputs.leaves[0].new_ones(rows_of(inputs), HIDDEN)
    return lambda hidden: source.clone()


SUITE = register(
    Suite(
        "span_gather",
        (
            Workload("planned", goals=(Goal(at_most=1.5, against=FLOOR),), quick=True),
            Workload("a tensor", options={"tensor": True}, goals=(Goal(at_most=1.5, against=FLOOR),)),
            Workload("planned", BOTH),
        ),
        {
            "ours": Provider(ours, "ours"),
            "index_select": Provider(selected, "eager"),
            "indexing": Provider(indexed),
            # The gradient of each slice is as large as hidden: minutes in all.
            SLICES: Provider(sliced, backward=False),
            FLOOR: Provider(copied, "floor"),
        },
        inputs,
        work,
        reference="index_select",
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
