"""top_spans: the best by a loop, gradients of the chosen alone, bands that come in blocks, and the edges."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from top_cases import by_loop, call
from torch import Tensor

from spanbert_kernels import host, ops
from spanbert_kernels.ops import backends, banded_span_scores, top_spans

MODULE = import_module("spanbert_kernels.ops.top_spans")
NAMES = ("cpu", "eager")
LEFT_OUT = ((), ("weight",), ("bias", "end_scores"), ("start_scores",), ("start", "end", "weight"))


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and host.load() is not None:
        pytest.skip(str(host.load()))
    return str(request.param)


def drawn(tokens: int, columns: int = 3, left_out: tuple[str, ...] = (), seed: int = 0, whole: bool = False) -> Any:
    """Tensors of every term but some."""
    shapes = {"start": (tokens, columns), "end": (tokens, columns + 1), "weight": (columns, columns + 1)}
    shapes |= {"start_scores": (tokens,), "end_scores": (tokens,), "bias": (1,)}
    if "weight" in left_out:
        shapes["end"] = shapes["start"]
    generator = torch.Generator().manual_seed(seed)
    found = {n: torch.randn(s, generator=generator).double() for n, s in shapes.items() if n not in left_out}
    return {n: (2 * t).round() for n, t in found.items()} if whole else found


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=4),
    max_width=st.integers(1, 14),
    k=st.integers(0, 9),
    per=st.sampled_from(["document", "start"]),
    left_out=st.sampled_from(LEFT_OUT),
    seed=st.integers(0, 2**32),
    block=st.sampled_from([1, 7, 40, 2**18]),
)
def test_against_the_loop(
    lengths: list[int], max_width: int, k: int, per: Any, left_out: tuple[str, ...], seed: int, block: int
) -> None:
    """Whole numbers: many spans have equal scores, and the earlier is better, whatever block it comes in."""
    tensors = drawn(sum(lengths), left_out=left_out, seed=seed, whole=True)
    options = {"max_width": max_width, "k": k, "per": per, "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0)}
    expected = by_loop(**tensors, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "BLOCK", block)
        for name in NAMES if host.load() is None else NAMES[1:]:
            with backends.record() as calls:
                found = call(**tensors, **options, backend=name)
            assert calls == [("top_spans", name)]
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_gradients_reach_the_tokens_of_the_chosen(left_out: tuple[str, ...]) -> None:
    """Behind the choice the backends are one."""
    tensors = {name: tensor.requires_grad_() for name, tensor in drawn(9, left_out=left_out).items()}
    options: Any = {"max_width": 4, "k": torch.tensor([5, 2]), "cu_seqlens": torch.tensor([0, 6, 9])}

    def scores(*values: Tensor) -> Tensor:
        return call(**dict(zip(tensors, values, strict=True)), **options)[0]

    values = tuple(tensors.values())
    grad = torch.randn(7, dtype=torch.float64)
    expected = torch.autograd.grad(by_loop(**tensors, **options)[0], values, grad)
    for found, wanted in zip(torch.autograd.grad(scores(*values), values, grad), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(scores, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(scores, values, fast_mode=True)


@pytest.mark.parametrize("frozen", ["start", "end", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    tensors = {n: t.requires_grad_(n != frozen) for n, t in drawn(9).items()}
    scores, _, _ = call(**tensors, max_width=4, k=3)
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
    once = torch.autograd.grad(scores.sum(), leaves, retain_graph=True)
    for a, b in zip(once, torch.autograd.grad(scores.sum(), leaves, create_graph=True), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_in_float32_and_autocast_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype).requires_grad_() for name, tensor in drawn(12, 64).items()}
    scores, spans, _ = call(**tensors, max_width=5, k=4, backend=backend)
    assert scores.dtype == dtype
    band = banded_span_scores(max_width=5, **{n: t.float() for n, t in tensors.items()})
    assert (
        sorted(band[spans[:, 0], spans[:, 1] - spans[:, 0]].tolist()) == band.flatten().topk(4).values.flip(0).tolist()
    )
    torch.testing.assert_close(scores, band[spans[:, 0], spans[:, 1] - spans[:, 0]].to(dtype))
    expected = torch.autograd.grad(scores.sum(), list(tensors.values()))
    with torch.autocast("cpu", torch.bfloat16):
        again = call(**tensors, max_width=5, k=4, backend=backend)[0]
        found = torch.autograd.grad(again.sum(), list(tensors.values()))
    assert torch.equal(again, scores)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_strides_int32_and_inputs_left_alone(backend: str) -> None:
    tensors = drawn(8)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    spaced = {name: torch.stack([tensor, tensor * torch.nan], -1)[..., 0] for name, tensor in tensors.items()}
    offsets, k = torch.tensor([0, 3, 8], dtype=torch.int32), torch.tensor([2, 1], dtype=torch.int32)
    for a, b in zip(
        call(**tensors, max_width=3, k=k.long(), cu_seqlens=offsets.long(), backend=backend),
        call(**spaced, max_width=3, k=k, cu_seqlens=offsets, backend=backend),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert all(torch.equal(tensors[name], copies[name]) for name in tensors)


def test_nan_is_the_best_and_minus_infinity_the_worst(backend: str) -> None:
    numbers = torch.tensor([1.0, torch.nan, -torch.inf, 2.0])
    best = top_spans(None, None, None, 1, 3, start_scores=numbers, backend=backend)
    assert best.spans.tolist() == [[0, 0], [1, 1], [3, 3]]
    worst = top_spans(None, None, None, 1, 9, start_scores=numbers, backend=backend)
    assert worst.spans[:, 0].tolist() == [0, 1, 2, 3]


def test_no_tokens_and_none_asked_for(backend: str) -> None:
    start = torch.zeros(0, 3, requires_grad=True)
    best = top_spans(start, start, None, 4, 5, torch.tensor([0, 0]), backend=backend)
    assert (best.spans.shape, best.scores.shape, best.offsets.tolist()) == ((0, 2), (0,), [0, 0])
    (gradient,) = torch.autograd.grad(best.scores.sum(), start)
    assert gradient.shape == (0, 3)
    start = torch.ones(4, 3, requires_grad=True)
    none = top_spans(start, start, None, 4, 0, per="start", backend=backend)
    assert none.offsets.tolist() == [0] * 5
    (gradient,) = torch.autograd.grad(none.scores.sum(), start)
    assert gradient.abs().sum() == 0


def test_memory_is_that_of_a_block() -> None:
    """Of a band as wide as the document no tensor of a call, forward or backward, comes near tokens x width."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for result in out if isinstance(out, tuple | list) else (out,):
                if isinstance(result, Tensor):
                    largest = max(largest, result.untyped_storage().nbytes() // result.element_size())
            return out

    tokens = 600
    start, end = (torch.randn(tokens, 2, requires_grad=True) for _ in range(2))
    with Watch(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "BLOCK", 2**13)
        top_spans(start, end, None, tokens, k=100, per="document").scores.sum().backward()
    assert largest <= 4 * 2**13 < tokens**2 / 8


@pytest.mark.slow
def test_a_compiled_model_may_call_it() -> None:
    def best_scores(start: Tensor) -> Tensor:
        return top_spans(start * 2, start, None, 2, 1).scores + 1

    compiled = torch.compile(best_scores, backend="aot_eager")
    assert compiled(torch.tensor([[1.0], [3.0], [2.0]])).tolist() == [19.0]


ONE = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (ValueError, "per must be .*got 'sentence'", {"per": "sentence"}),
        (ValueError, "k must be at least 0, got -1", {"k": -1}),
        (ValueError, "k as a tensor .* needs cu_seqlens", {"k": torch.tensor([1])}),
        (
            ValueError,
            "k as a tensor .* no per='start'",
            {"k": torch.tensor([1, 1, 1]), "per": "start", "cu_seqlens": torch.tensor([0, 1, 2, 3])},
        ),
        (
            ValueError,
            r"k must hold a number for each of 1 documents, got \[2\]",
            {"k": torch.tensor([1, 2]), "cu_seqlens": torch.tensor([0, 3])},
        ),
        (ValueError, "k must be at least 0, got -2", {"k": torch.tensor([-2]), "cu_seqlens": torch.tensor([0, 3])}),
        (ValueError, "has no backend 'triton'; it has cpu, eager", {"backend": "triton"}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        top_spans(**{"start": ONE, "end": ONE, "weight": None, "max_width": 2, "k": 1, **arguments})


def test_the_public_name() -> None:
    assert isinstance(top_spans(ONE, ONE, None, 1, 1), ops.TopSpans)
