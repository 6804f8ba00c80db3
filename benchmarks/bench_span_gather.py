"""span_gather, packed: 5 000 overlapping spans of up to 10 tokens out of 4096, H = 768, float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Goal, assert_agrees
from torch import Tensor

from spanbert_kernels import ops

TOKENS, SPANS, MAX_WIDTH, HIDDEN = 4096, 5000, 10, 768
FLOOR = "copy as many numbers"


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    start = torch.randint(0, TOKENS - MAX_WIDTH, (SPANS,), generator=generator)
    width = torch.randint(0, MAX_WIDTH, (SPANS,), generator=generator)
    return hidden, torch.stack([start, start + width], 1)


def token_of_row(spans: Tensor) -> Tensor:
    widths = spans[:, 1] + 1 - spans[:, 0]
    first_row = widths.cumsum(0) - widths
    span = torch.repeat_interleave(widths)
    return torch.arange(len(span)) - first_row[span] + spans[span, 0]


def slices(hidden: Tensor, spans: Tensor) -> Tensor:
    return torch.cat([hidden[start : last + 1] for start, last in spans.tolist()])


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda hidden, spans: hidden.index_select(0, token_of_row(spans)),
    "indexing": lambda hidden, spans: hidden[token_of_row(spans)],
    "slices and cat": slices,
}


@pytest.mark.parametrize("kind", ["plan", "tensor"])
@torch.inference_mode()
def test_forward(compare: Callable[..., None], kind: str) -> None:
    hidden, spans = inputs()
    work = spans if kind == "tensor" else ops.plan_spans(spans, num_tokens=TOKENS)
    expected = slices(hidden, spans)
    assert torch.equal(ops.span_gather(hidden, work)[0], expected)
    baselines = {name: lambda way=way: way(hidden, spans) for name, way in WAYS.items()}
    compare(
        lambda: ops.span_gather(hidden, work),
        baselines,
        error=0.0,
        floors={FLOOR: expected.clone},
        goals=[Goal(at_most=1.5, against=FLOOR)],
    )


def test_forward_and_backward(compare: Callable[..., None]) -> None:
    hidden, spans = inputs()
    plan = ops.plan_spans(spans, num_tokens=TOKENS)
    grad = torch.randn(plan.total_width, HIDDEN, generator=torch.Generator().manual_seed(1))

    def gradient(way: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        leaf = hidden.to(dtype, copy=True).requires_grad_()
        way(leaf, spans).backward(grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    def ours(hidden: Tensor, spans: Tensor) -> Tensor:
        return ops.span_gather(hidden, plan)[0]

    error = assert_agrees(gradient(ours), gradient(WAYS["index_select"]), gradient(WAYS["index_select"], torch.float64))
    # Without the slices: the gradient of each is as large as hidden, minutes in all.
    baselines = {name: lambda way=way: gradient(way) for name, way in WAYS.items() if way is not slices}
    compare(
        lambda: gradient(ours),
        baselines,
        error=error,
        floors={"copy the gradient twice": lambda: (grad.clone(), grad.clone())},
    )
