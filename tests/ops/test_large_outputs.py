"""Outputs of more than 2^31 elements on a GPU: the first rows and the last ones, where an offset of 32 bits wraps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import places
import pytest
import torch
from torch import Tensor

from spanbert_kernels.ops import SpanPlan, backends, enumerate_spans, plan_spans, span_gather, span_pool

COLUMNS = 1024
ROWS = 2**21 + 5
WIDTH = 64
TOKENS = 2**15 + WIDTH  # of which there are more than ROWS spans of up to WIDTH tokens
SEEN = 3  # rows compared at each end
GPU_BYTES = 6 * 2**30  # the output takes 4 GiB, hidden 64 MiB; the rest is for sorting the spans


def repeated() -> Tensor:
    """Single tokens, over and over: as many rows of the output, whatever is made of them."""
    token = torch.arange(ROWS, device=places.current.device) % TOKENS
    return torch.stack([token, token], 1)


def repeated_plan() -> SpanPlan:
    return plan_spans(repeated(), num_tokens=TOKENS)


def enumerated_plan() -> SpanPlan:
    return enumerate_spans(torch.tensor([0, TOKENS], device=places.current.device), WIDTH)


def gather(hidden: Tensor, spans: Tensor | SpanPlan, backend: str, padded: bool) -> Tensor:
    return span_gather(hidden, spans, padded=padded, backend=backend)[0].flatten(0, -2)


def pool(hidden: Tensor, spans: Tensor | SpanPlan, backend: str, part: str) -> Tensor:
    return span_pool(hidden, spans, [part], backend=backend)


CALLS: dict[str, tuple[str, Callable[..., Tensor], tuple[Callable[[], Tensor | SpanPlan], ...]]] = {
    "packed": ("span_gather", partial(gather, padded=False), (repeated, repeated_plan)),
    "padded": ("span_gather", partial(gather, padded=True), (repeated, repeated_plan)),
    **{
        part: ("span_pool", partial(pool, part=part), (repeated, repeated_plan, enumerated_plan))
        for part in ("end", "mean", "max")
    },
}
PARAMETERS = [
    pytest.param(call, make, place, id=f"{operation}-{name}-{make.__name__}-{place.backend}", marks=pytest.mark.gpu)
    for name, (operation, call, makers) in CALLS.items()
    for make in makers
    for place in places.PLACES
    if place.device == "cuda" and place.backend in backends._registry[operation] and place.backend != "eager"
]


@pytest.mark.parametrize(("call", "make", "backend"), PARAMETERS, indirect=["backend"])
def test_more_elements_than_32_bits_count(
    call: Callable[..., Tensor], make: Callable[[], Tensor | SpanPlan], backend: str
) -> None:
    if torch.cuda.mem_get_info()[0] < GPU_BYTES:
        pytest.skip(f"takes {GPU_BYTES // 2**30} GiB of GPU memory")
    device, spans = places.current.device, make()
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(TOKENS, COLUMNS, generator=generator, device=device, dtype=torch.bfloat16)
    output = call(hidden, spans, backend)
    assert output.numel() > 2**31
    pairs = spans.pairs() if isinstance(spans, SpanPlan) else spans
    for some in (slice(SEEN), slice(-SEEN, None)):
        torch.testing.assert_close(output[some], call(hidden, pairs[some], "eager"))
