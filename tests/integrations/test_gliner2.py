"""GLiNER2's span layer: scores of queries, vectors, gradients and behaviour on bad input as the package's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from originals.gliner import spans_of
from originals.gliner2 import QueryMarker
from torch import Tensor

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning

SIZE, WIDTHS, LENGTHS = 8, 3, torch.tensor([5, 2])


def layers(dropout: float = 0.0) -> tuple[Any, Any, Any]:
    """The same layer twice, the second accelerated, with its report."""
    plain, fused = (seeded(lambda: QueryMarker(SIZE, WIDTHS, dropout)) for _ in range(2))
    return plain, fused, sk.accelerate(fused)


def given(dtype: torch.dtype = torch.float32, count: int = 5) -> tuple[Tensor, Tensor]:
    """Words and queries."""
    generator = torch.Generator().manual_seed(3)
    made = (torch.randn(2, n, SIZE, generator=generator, dtype=torch.float64) for n in (count, 4))
    words, queries = (each.to(dtype).requires_grad_() for each in made)
    return words, queries


def gradients(layer: Any, scores: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(0.5, 1.5, scores.numel(), dtype=scores.dtype).view_as(scores)
    return torch.autograd.grad((scores * weights).sum(), (*inputs, *layer.parameters()))


@pytest.mark.parametrize(
    ("count", "text_lengths", "mask_invalid"),
    [(5, LENGTHS, False), (5, LENGTHS, True), (5, torch.tensor([4, 0]), True), (24, None, True)],
)
def test_scores_and_gradients(count: int, text_lengths: Tensor | None, mask_invalid: bool) -> None:
    """Spans that leave the text have the scores that the package gives them, or -inf; a text may be empty."""
    plain, fused, report = layers()
    words, queries = given(torch.float64, count)
    scores = [
        layer.double().score_queries(words, queries, text_lengths, mask_invalid=mask_invalid)
        for layer in (fused, plain)
    ]
    torch.testing.assert_close(*scores)
    assert scores[0].is_contiguous()
    both = [
        gradients(layer, each.clamp(min=-1e30), words, queries)
        for layer, each in zip((fused, plain), scores, strict=True)
    ]
    for mine, theirs in zip(*both, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert [dict(each.calls) for each in report.span_layers] == [{"fused": 1}, {}]


def test_vectors() -> None:
    plain, fused, report = layers()
    words, _ = given(torch.float64)
    spans, _ = spans_of(LENGTHS, WIDTHS)
    found, expected = (layer.double()(words, spans) for layer in (fused, plain))
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(gradients(fused, found, words), gradients(plain, expected, words), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert [dict(each.calls) for each in report.span_layers] == [{}, {"fused": 1}]


def test_sixteen_bits_and_compiled() -> None:
    from spanbert_kernels.testing import assert_as_exact_as_eager

    words, queries = given()
    with torch.no_grad():
        exact = layers()[0].double().score_queries(words.double(), queries.double(), mask_invalid=False)
    plain, fused, _ = layers()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = (layer.score_queries(words, queries, mask_invalid=False) for layer in (fused, plain))
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_as_exact_as_eager(found, exact, expected)
    compiled = torch.compile(lambda *given: fused.score_queries(*given) * 2, backend="eager")
    torch.testing.assert_close(compiled(words, queries), plain.score_queries(words, queries) * 2)


@pytest.mark.parametrize("queries", [torch.ones(3, 4, SIZE), torch.ones(2, SIZE), torch.ones(2, 4, SIZE - 1)])
def test_what_raises_raises_the_same(queries: Tensor) -> None:
    _, fused, _ = layers()
    with pytest.raises(ValueError, match="queries must have shape"):
        fused.score_queries(given()[0], queries)


def test_no_queries_are_left_to_the_package() -> None:
    plain, fused, _ = layers()
    words, _ = given()
    with pytest.warns(AccelerationWarning, match="are not those of a batch"):
        found = fused.score_queries(words, words[:, :0])
    assert found.shape == plain.score_queries(words, words[:, :0]).shape == (2, 0, 5, WIDTHS)


def test_dropout_between_the_layers() -> None:
    """The layer between is all ones, and the query counts what is left of it."""
    _, fused, _ = layers(dropout=0.5)
    first, _, _, last = fused.out_project
    with torch.no_grad():
        for parameter, value in ((first.weight, 0), (first.bias, 1), (last.weight, 1), (last.bias, 0)):
            parameter.fill_(value)
    query = torch.eye(SIZE)[:1].expand(2, 1, SIZE)
    kept = fused.train().score_queries(given()[0], query, mask_invalid=False) / 2
    assert torch.equal(kept, kept.round())
    assert kept.unique().numel() > 4


def test_a_version_that_computes_something_else_stays() -> None:
    class Halved(QueryMarker):
        __module__, __qualname__ = "gliner2.layers", "SpanMarkerV0"

        def score_queries(self, *given: Any, **options: Any) -> Tensor:
            return super().score_queries(*given, **options) / 2

    report = sk.accelerate(seeded(lambda: Halved(SIZE, WIDTHS)))
    assert [each.forward.replacement.method for each in report.span_layers] == ["forward"]
