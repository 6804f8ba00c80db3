"""AllenNLP's extractors over the operations, against plain definitions of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from originals import allennlp
from torch import Tensor, nn

from spanbert_kernels.nn import (
    BidirectionalEndpointSpanExtractor,
    EndpointSpanExtractor,
    MaxPoolingSpanExtractor,
    SelfAttentiveSpanExtractor,
)
from spanbert_kernels.nn.span_extractors import width_bucket

SIZE, WIDTHS = 6, (5, 3)
SPANS = torch.tensor([[[0, 0], [1, 3], [0, 4], [2, 4]], [[0, 1], [2, 2], [0, 2], [1, 2]]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
KEPT = torch.tensor([[True, True, False, True], [False, True, True, True]])


def endpoint(combination: str, exclusive: bool = False, bucketed: bool = False) -> tuple[nn.Module, nn.Module]:
    return (
        allennlp.Endpoint(SIZE, combination, *WIDTHS, bucketed, exclusive=exclusive),
        EndpointSpanExtractor(SIZE, combination, *WIDTHS, bucketed, exclusive),
    )


def bidirectional(*combinations: str, sentinels: bool = True) -> tuple[nn.Module, nn.Module]:
    return (
        allennlp.BidirectionalEndpoint(SIZE, *combinations, *WIDTHS, sentinels=sentinels),
        BidirectionalEndpointSpanExtractor(SIZE, *combinations, *WIDTHS, use_sentinels=sentinels),
    )


PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "endpoint": lambda: endpoint("x,y"),
    "endpoint, every combination": lambda: endpoint("x*y,y,x+y,x-y,1/2,y-x,x*x"),
    "endpoint, exclusive": lambda: endpoint("y-x,x", exclusive=True, bucketed=True),
    "bidirectional": lambda: bidirectional("y-x", "x-y"),
    "bidirectional, every combination": lambda: bidirectional("x,y,x*y", "y/x,x+y"),
    "bidirectional, no sentinels": lambda: bidirectional("x,y", "x", sentinels=False),
    "self-attentive": lambda: (allennlp.SelfAttentive(SIZE, *WIDTHS), SelfAttentiveSpanExtractor(SIZE, *WIDTHS)),
    "max": lambda: (allennlp.MaxPooling(SIZE, *WIDTHS), MaxPoolingSpanExtractor(SIZE, *WIDTHS)),
    "max, buckets": lambda: (allennlp.MaxPooling(SIZE, *WIDTHS, True), MaxPoolingSpanExtractor(SIZE, *WIDTHS, True)),
}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor]:
    """Both modules with the same parameters, and a sequence whose numbers are not near 0."""
    torch.manual_seed(1)
    original, ours = PAIRS[name]()
    ours.load_state_dict(original.state_dict())
    sequence = torch.randn(2, 5, SIZE, dtype=torch.float64)
    return original.to(dtype), ours.to(dtype), (sequence + sequence.sign()).to(dtype)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("masks", [(None, None), (MASK, KEPT)], ids=["no mask", "masks"])
def test_values_gradients_and_parameters(name: str, masks: tuple[Tensor | None, Tensor | None]) -> None:
    original, ours, sequence = made(name)
    assert list(ours.state_dict()) == list(original.state_dict())
    results = []
    for module in (original, ours):
        leaf = sequence.clone().requires_grad_()
        output = module(leaf, SPANS, *masks)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
        results.append((output, *torch.autograd.grad(output, [leaf, *module.parameters()], grad)))
    assert ours.get_output_dim() == results[1][0].shape[-1]
    assert ours.get_input_dim() == SIZE
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["endpoint, every combination", "bidirectional", "self-attentive", "max"])
def test_in_16_bits(name: str) -> None:
    original, ours, sequence = made(name, torch.bfloat16)
    exact = original.double()(sequence.double(), SPANS, MASK, KEPT)
    torch.testing.assert_close(ours(sequence, SPANS, MASK, KEPT).double(), exact, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("name", ["bidirectional", pytest.param("max", marks=pytest.mark.slow)])
def test_compiled(name: str) -> None:
    _, ours, sequence = made(name, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    assert torch.equal(compiled(sequence, SPANS, MASK, KEPT), ours(sequence, SPANS, MASK, KEPT))


def test_scores_far_below_zero_are_scores() -> None:
    """The original counts a logit of 0 for every token that its padded span lacks, and loses such spans."""
    original, ours, sequence = made("self-attentive", torch.float32)
    with torch.no_grad():
        for module in (original, ours):
            module.get_parameter("_global_attention._module.bias").fill_(-200)
        assert not original(sequence, SPANS)[0, 0, :SIZE].any()
        assert torch.equal(ours(sequence, SPANS)[0, 0, :SIZE], sequence[0, 0])


def test_tokens_outside_count_for_nothing_in_self_attention() -> None:
    original, ours, sequence = made("self-attentive")
    spans = torch.tensor([[[-2, 1], [3, 5]], [[4, 6], [0, 0]]])
    torch.testing.assert_close(ours(sequence, spans), original(sequence, spans))
    outside = ours(sequence, torch.tensor([[[5, 6]], [[-3, -1]]]))
    assert not outside.any()


def test_wide_spans_share_buckets_by_powers_of_two() -> None:
    """AllenNLP's ten are 0, 1, 2, 3, 4, 5-7, 8-15, 16-31, 32-63 and all above."""
    rows = width_bucket(torch.arange(200), 10).tolist()
    assert [rows.index(bucket) for bucket in range(10)] == [0, 1, 2, 3, 4, 5, 8, 16, 32, 64]
    assert rows == sorted(rows)
    assert set(width_bucket(torch.arange(200), 6).tolist()) == set(range(6))


def test_no_spans_and_no_sequences() -> None:
    for name in PAIRS:
        _, ours, sequence = made(name)
        assert ours(sequence, SPANS[:, :0]).shape == (2, 0, ours.get_output_dim())
        assert ours(sequence[:0], SPANS[:0]).shape == (0, 4, ours.get_output_dim())


def span(start: int, end: int) -> Tensor:
    return torch.tensor([[[0, 0], [start, end]]])


@pytest.mark.parametrize(
    ("make", "error", "text", "spans", "mask"),
    [
        (EndpointSpanExtractor, ValueError, r"All elements in indices should be in range \(0, 4\)", span(0, 5), None),
        (EndpointSpanExtractor, ValueError, "All elements in indices should be in range", span(-1, 0), None),
        (
            lambda size: EndpointSpanExtractor(size, use_exclusive_start_indices=True),
            ValueError,
            "Adjusted span indices must lie inside the the sequence tensor, but found: exclusive_span_starts",
            span(-1, 2),
            None,
        ),
        (
            BidirectionalEndpointSpanExtractor,
            ValueError,
            "Adjusted span indices must lie inside the length of the sequence tensor, but found",
            span(-1, 2),
            None,
        ),
        (
            BidirectionalEndpointSpanExtractor,
            ValueError,
            "All elements in indices should be in range",
            span(0, 9),
            None,
        ),
        (
            MaxPoolingSpanExtractor,
            IndexError,
            r"Span index out of range, max index \(5\) or min index \(0\) not valid for sequence of length \(5\)",
            span(2, 5),
            None,
        ),
        (MaxPoolingSpanExtractor, IndexError, "Span start above span end", span(3, 2), None),
        (
            MaxPoolingSpanExtractor,
            IndexError,
            "Span indices were masked out entirely by sequence mask",
            span(3, 4),
            MASK[1:],
        ),
        (lambda size: MaxPoolingSpanExtractor(size, 2, 3), IndexError, "index out of range in self", span(0, 2), None),
        (lambda size: SelfAttentiveSpanExtractor(size, 2, 3), IndexError, "index out of range", span(2, 1), None),
        (
            lambda size: MaxPoolingSpanExtractor(size + 1),
            ValueError,
            r"expected \(6\) received \(7\)",
            span(0, 0),
            None,
        ),
    ],
)
def test_errors_of_calls(
    make: Callable[..., nn.Module], error: type[Exception], text: str, spans: Tensor, mask: Tensor | None
) -> None:
    with pytest.raises(error, match=text):
        make(SIZE)(torch.randn(1, 5, SIZE), spans, mask)


@pytest.mark.parametrize(
    ("make", "arguments", "text"),
    [
        (BidirectionalEndpointSpanExtractor, {"input_dim": 7}, "The input dimension is not divisible by 2"),
        (MaxPoolingSpanExtractor, {"num_width_embeddings": 3}, "specify both num_width_embeddings and span_width"),
        (EndpointSpanExtractor, {"combination": "x,yx"}, "combination: Invalid combination: yx"),
        (EndpointSpanExtractor, {"combination": "x^y"}, r"Invalid operation: \^"),
    ],
)
def test_errors_of_constructors(make: Callable[..., nn.Module], arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**{"input_dim": SIZE, **arguments})
