"""Rows further apart than 32-bit offsets reach, in little memory: a view over a file that is mostly holes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import places
import pytest
import torch
from op_checks import place_parameters
from pool_cases import ALL
from torch import Tensor

from spanbert_kernels.ops import backends, pair_pool, plan_spans, span_gather, span_pool

STRIDE = 2**30 + 16  # the third row begins beyond 2**31 elements
BEFORE = 2**31  # so that an offset that wraps finds zeros, not memory that is not there
DTYPE = torch.float16
SPANS = torch.tensor([[0, 1], [1, 0], [2, 2]])


def far_apart(rows: Tensor, path: Path) -> Tensor:
    """Equal to `rows`, but STRIDE elements from each row to the next."""
    size = BEFORE + (len(rows) - 1) * STRIDE + rows.shape[1]
    if rows.device.type == "cpu":
        storage = torch.from_file(str(path), shared=True, size=size, dtype=rows.dtype)
    else:
        storage = rows.new_empty(size)
    return storage.as_strided(rows.shape, (STRIDE, 1), BEFORE).copy_(rows)


def gather(hidden: Tensor, backend: str) -> Tensor:
    return span_gather(hidden, SPANS.to(hidden.device), backend=backend)[0]


def pool(hidden: Tensor, backend: str, planned: bool) -> Tensor:
    scores, table = hidden.new_tensor([0.5, -1.0, 2.0]), hidden.new_ones(2, 3)
    spans = SPANS.to(hidden.device)
    work = plan_spans(spans, num_tokens=len(hidden)) if planned else spans
    return span_pool(hidden, work, ALL, scores=scores, width_embedding=table, backend=backend)


def pool_pairs(hidden: Tensor, backend: str) -> Tensor:
    pairs = torch.tensor([[2, 0], [1, 2], [0, 0]], device=hidden.device)
    return pair_pool(hidden, None, pairs, ["x*y", "y"], backend=backend)


CALLS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "pair_pool": ("pair_pool", pool_pairs),
    "span_gather": ("span_gather", gather),
    "span_pool": ("span_pool", partial(pool, planned=False)),
    "span_pool, plan": ("span_pool", partial(pool, planned=True)),
}
PARAMETERS = [
    pytest.param(call, *place.values, id=f"{name}-{place.id}", marks=place.marks)
    for name, (operation, call) in CALLS.items()
    for place in place_parameters(backends._registry[operation])
]


@pytest.mark.parametrize(("call", "backend"), PARAMETERS, indirect=["backend"])
def test_rows_far_apart(call: Callable[..., Tensor], backend: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    near = torch.randn(3, 5, generator=generator).to(places.current.device, DTYPE).requires_grad_()
    expected = call(near, backend)
    assert len(expected) == 3
    incoming = torch.randn(expected.shape, generator=generator).to(expected)
    (expected_grad,) = torch.autograd.grad(expected, near, incoming)

    far = far_apart(near.detach(), tmp_path / "hidden").requires_grad_()
    found = call(far, backend)
    (found_grad,) = torch.autograd.grad(found, far, far_apart(incoming, tmp_path / "grad"))
    assert torch.equal(found, expected)
    assert torch.equal(found_grad, expected_grad)
