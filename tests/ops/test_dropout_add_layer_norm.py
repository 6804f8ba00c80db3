"""dropout_add_layer_norm: the shared checks, what is dropped, what is kept for the backward, what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from norm_cases import Conditions, norm_by_formula, norm_inputs
from op_checks import Case, OpChecks, every_backend
from torch import Tensor

from spanbert_kernels.ops import dropout_add_layer_norm, library, philox
from spanbert_kernels.ops.backends import BackendUnavailable
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.philox import Dropout

EPS = 1e-3  # rows of one number, which some layouts make, are divided by its root


def row(
    name: str, *, dropout_p: float = 0.0, large: bool = False, compiled: tuple[str, ...] = (), **shapes: Any
) -> Case:
    options, conditions = {"dropout_p": dropout_p, "eps": EPS}, Conditions(dropout_p, EPS)
    return Case(
        name,
        partial(norm_inputs, **shapes),
        partial(dropout_add_layer_norm, **options),
        partial(norm_by_formula, **options),
        twice=("eager",),
        terms=conditions.terms,
        logits=conditions.logits,
        compiled=compiled,
        large=large,
    )


class TestShared(OpChecks):
    operation = "dropout_add_layer_norm"
    emulated = ("plain", "dropout", "no bias", "no rows", "no columns", "chunks")
    cases = (
        row("plain"),
        row("dropout", dropout_p=0.4, seed=-(2**62) - 3, compiled=("cpu",)),
        row("no bias", bias=False, dropout_p=0.1, seed=5),
        row("no rows", rows=0, dropout_p=0.1, seed=5),
        row("no columns", columns=0),
        row("one column", columns=1),
        # More rows than a task has, more columns than a vector of words, with rests.
        row("large", rows=71, columns=149, dropout_p=0.3, seed=7, large=True),
        # More columns than a chunk of Triton's has, with a rest of one, and rows that leave one in a program.
        row("chunks", rows=5, columns=513, dropout_p=0.3, seed=7, large=True),
    )


@every_backend("dropout_add_layer_norm")
@pytest.mark.parametrize("columns", [3, 150])
def test_what_is_dropped(backend: str, columns: int) -> None:
    """By (seed, 0, row, column); what is left is divided by its share."""
    rows, p, seed = 8, 0.25, torch.tensor([11])
    x = torch.ones(rows, columns, requires_grad=True)
    residual = torch.zeros_like(x)
    weight = torch.arange(1.0, columns + 1)
    output = dropout_add_layer_norm(x, residual, weight, dropout_p=p, eps=1e-3, seed=seed, backend=backend)  # type: ignore[arg-type]
    index = torch.arange(columns)
    kept = philox.keep(seed, p, torch.tensor(0), torch.arange(rows)[:, None], index)
    expected = F.layer_norm(kept / (1 - p), (columns,), weight, eps=1e-3)
    torch.testing.assert_close(output, expected)
    (grad,) = torch.autograd.grad(output.square().sum(), x)
    assert not grad[~kept].any()
    assert grad[kept].count_nonzero() > 0.9 * int(kept.sum()) or columns == 3


@every_backend("dropout_add_layer_norm")
def test_every_call_drops_anew_and_the_generator_s_seed_decides(backend: Any) -> None:
    x, weight = torch.randn(6, 30), torch.ones(30)
    call = partial(dropout_add_layer_norm, x, x, weight, dropout_p=0.5, backend=backend)
    torch.manual_seed(1)
    first, second = call(), call()
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(call(), first)
    state = torch.get_rng_state()
    dropout_add_layer_norm(x, x, weight, backend=backend)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_neither_the_sum_nor_a_mask_is_kept(dropout_p: float) -> None:
    x, residual, weight, bias = (torch.randn(size).requires_grad_() for size in ((50, 64), (50, 64), (64,), (64,)))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        dropout_add_layer_norm(x, residual, weight, bias, dropout_p=dropout_p)
    given = {each.untyped_storage().data_ptr() for each in (x, residual, weight)}
    own = [each for each in kept if each.untyped_storage().data_ptr() not in given]
    assert sum(each.numel() for each in own) == 2 * 50 + (dropout_p > 0)


@every_backend("dropout_add_layer_norm")
def test_what_is_not_a_number_stays_in_its_row(backend: Any) -> None:
    x = torch.randn(6, 17)
    x[2, 3] = torch.nan
    x[4, 16] = torch.inf
    output = dropout_add_layer_norm(x, torch.randn(6, 17), torch.ones(17), eps=1e-5, backend=backend)
    assert output.isnan().all(1).tolist() == [False, False, True, False, True, False]
    assert output.isfinite().all(1).tolist() == [True, True, False, True, False, True]


def test_programs_with_several_tiles_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows' gradients are the same bits, and those of weight and bias the same sums, however few programs there are."""
    if not library.interpreted():
        pytest.skip("Triton is not in its interpreter")
    from spanbert_kernels.ops import triton_norm
    from spanbert_kernels.ops.dropout_add_layer_norm import triton as kernels

    generator, width = torch.Generator().manual_seed(3), triton_norm.WIDEST_OF_A_WARP + 1  # of two warps a row
    x, residual, grad = (torch.randn(5, width, generator=generator) for _ in range(3))
    weight, dropout = torch.rand(width, generator=generator), Dropout(0.1, torch.tensor([5]))
    _, mean, rstd = kernels.forward(x, residual, weight, None, dropout, 1e-5)
    results = []
    for programs in (triton_norm.PROGRAMS, 2):  # three tiles of rows: the second of the last program is beyond them
        monkeypatch.setattr(triton_norm, "PROGRAMS", programs)
        results.append(kernels.backward(grad, x, residual, weight, mean, rstd, dropout))
    (of_residual, of_x, sums), (again, of_x_again, sums_again) = results
    assert torch.equal(of_residual, again)
    assert torch.equal(of_x, of_x_again)
    torch.testing.assert_close(sums, sums_again)


def test_rows_that_are_too_wide_for_triton_are_refused() -> None:
    x = torch.zeros(1, LARGEST_ROW + 1)
    with pytest.raises(BackendUnavailable, match=r"at most 6144 columns|on cuda, not on cpu"):
        dropout_add_layer_norm(x, x, x[0], backend="triton")


def good_call() -> dict[str, Any]:
    """What the test of wrong kinds of arguments begins from."""
    seeded = {"dropout_p": 0.5, "seed": torch.tensor([1])}
    return {
        "x": torch.ones(6, 4),
        "residual": torch.ones(6, 4),
        "weight": torch.ones(4),
        "bias": torch.ones(4),
        **seeded,
    }


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, r"x must have shape \[T, H\], got \[4\]", x=torch.zeros(4)),
        bad(ValueError, r"residual must be \[6, 4\], got \[1, 4\]", residual=torch.zeros(1, 4)),
        bad(ValueError, r"weight must be \[4\], got \[5\]", weight=torch.zeros(5)),
        bad(ValueError, r"bias must be \[4\], got \[1\]", bias=torch.zeros(1)),
        bad(TypeError, "residual is torch.float16, but x is torch.float32", residual=torch.zeros(6, 4).half()),
        bad(TypeError, "weight is on meta, but x is on cpu", weight=torch.zeros(4, device="meta")),
        bad(ValueError, "eps must not be negative, got -1.0", eps=-1.0),
        bad(ValueError, r"dropout_p must be in \[0, 1\), got 1.0", dropout_p=1.0),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        dropout_add_layer_norm(**{**good_call(), **changes})
