"""GLiNER's span layer in every mode: scores of labels, gradients and behaviour on bad input as the package's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from originals.gliner import MODES, SpanMarkerV0, SpanRepLayer, label_scores, spans_of
from torch import Tensor, nn

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.integrations.unformed import Unformed

SIZE, WIDTHS, LABELS = 8, 3, 2
LENGTHS = torch.tensor([5, 2])
FUSED = [mode for mode in MODES if mode not in ("query", "mlp")]


def layers(mode: str, dropout: float = 0.0) -> tuple[Any, Any, Any]:
    """The same layer twice, the second accelerated, with its report."""
    plain, fused = (seeded(lambda: SpanRepLayer(SIZE, WIDTHS, mode, dropout)) for _ in range(2))
    return plain, fused, sk.accelerate(fused)


def given(dtype: torch.dtype = torch.float32, lengths: Tensor = LENGTHS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words, spans, labels, and which words are there."""
    generator = torch.Generator().manual_seed(3)
    words, labels = (
        torch.randn(2, n, SIZE, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (int(lengths.max()), LABELS)
    )
    spans, _ = spans_of(lengths, WIDTHS)
    return words, spans, labels, torch.arange(int(lengths.max())) < lengths[:, None]


def equation_of(mode: str) -> str:
    return "BND,BCD->BNC" if mode == "token_level" else "BLKD,BCD->BLKC"


def step(layer: Any, mode: str, dtype: torch.dtype = torch.float32, lengths: Tensor = LENGTHS) -> list[Tensor | None]:
    words, spans, labels, mask = given(dtype, lengths)
    layer.zero_grad()
    scores = torch.einsum(equation_of(mode), layer(words, spans, mask), labels)
    (scores * torch.linspace(0.5, 1.5, scores.numel(), dtype=dtype).view_as(scores)).sum().backward()
    return [scores.detach(), words.grad, labels.grad, *(p.grad for p in layer.parameters())]


def assert_same(found: list[Tensor | None], expected: list[Tensor | None], **tolerance: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("mode", FUSED)
def test_scores_and_gradients(mode: str) -> None:
    """Of all spans, the real ones and those that became (0, 0); parameters that get no gradient get none here."""
    plain, fused, report = layers(mode)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert_same(step(fused.double(), mode, torch.float64), step(plain.double(), mode, torch.float64))
    assert dict(report.span_layers[0].calls) == {"fused": 1}


def test_texts_of_one_length() -> None:
    """Without padding all words are projected, and every span is scored in its own place."""
    plain, fused, _ = layers("markerV0")
    lengths = torch.tensor([24, 24])
    found, expected = (step(layer.double(), "markerV0", torch.float64, lengths) for layer in (fused, plain))
    assert_same(found, expected)


@pytest.mark.parametrize("mode", FUSED)
def test_vectors_that_are_read(mode: str) -> None:
    """Nothing says that a model only multiplies them: they have a shape, can be indexed, and pass gradients on."""
    plain, fused, _ = layers(mode)
    words, spans, labels, mask = given()
    vectors, expected = fused(words, spans, mask), plain(words, spans, mask)
    assert isinstance(vectors, Unformed)
    assert (vectors.shape, vectors.dtype, vectors.device) == (expected.shape, expected.dtype, expected.device)
    assert vectors.formed is None
    gradients = [
        torch.autograd.grad(each[1].square().sum() + each.view(2, -1, SIZE)[0, 3].sum(), words)
        for each in (vectors, expected)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors + 0, expected)
    # Once they are formed the product is the ordinary one.
    scores = torch.einsum(equation_of(mode), vectors, labels)
    torch.testing.assert_close(scores, torch.einsum(equation_of(mode), vectors.formed, labels), rtol=0, atol=0)


def test_only_the_product_with_labels_is_answered_without_vectors() -> None:
    plain, fused, _ = layers("markerV0")
    words, spans, labels, _ = given()
    expected = plain(words, spans)
    for equation, forms in {
        "blkd, bcd -> blkc": False,
        "xyzd,xqd->xyzq": False,
        "BLKD,BCD->BCLK": True,
        "BLKD,BLD->BLK": True,
        "BLKD,BCE->BLKC": True,
        "...D,BCD->...C": True,
    }.items():
        other = labels if equation != "BLKD,BLD->BLK" else words
        vectors = fused(words, spans)
        try:
            right = torch.einsum(equation, expected, other)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=re.escape(str(error)[:30])):
                torch.einsum(equation, vectors, other)
        else:
            torch.testing.assert_close(torch.einsum(equation, vectors, other), right)
        assert (vectors.formed is not None) is forms, equation


@pytest.mark.parametrize("mode", FUSED)
def test_sixteen_bits(mode: str) -> None:
    """As exact as the original's, by the rule that kernels are held to, in bfloat16 and under autocast."""
    from spanbert_kernels.testing import assert_as_exact_as_eager

    exact = step(layers(mode)[0].double(), mode, torch.float64)[0]
    plain, fused, _ = layers(mode)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (step(each, mode)[0] for each in (fused, plain))
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_as_exact_as_eager(found, exact, expected)
    rounded = [step(each.bfloat16(), mode, torch.bfloat16)[0] for each in (fused, plain)]
    assert rounded[0].dtype == torch.bfloat16
    assert_as_exact_as_eager(rounded[0], exact, rounded[1])


@pytest.mark.filterwarnings("ignore:SpanRepLayer.forward")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled(fullgraph: bool) -> None:
    """The graph breaks at the layer; where it must not, the package's own code is traced."""
    plain, fused, report = layers("markerV0")
    words, spans, labels, _ = given()
    torch.compiler.reset()
    compiled = torch.compile(label_scores, backend="eager", fullgraph=fullgraph)
    torch.testing.assert_close(compiled(fused, words, spans, labels), label_scores(plain, words, spans, labels))
    assert dict(report.span_layers[0].calls) == ({} if fullgraph else {"fused": 1})


def changed(words: Tensor, spans: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Calls that no model makes."""
    return {
        "a span beyond the words": (words, spans + 1, labels),
        "a negative span": (words, spans - 1, labels),
        "spans that fill no row": (words, spans[:, 1:], labels),
        "spans of another type": (words, spans.float(), labels),
        "labels of another size": (words, spans, labels[..., 1:]),
        "labels of other texts": (words, spans, labels[:1].expand(3, -1, -1)),
        "labels in another precision": (words, spans, labels.double()),
    }


@pytest.mark.parametrize("case", changed(*given()[:3]))
def test_what_raises_raises_the_same(case: str) -> None:
    plain, fused, _ = layers("markerV0")
    call = changed(*given()[:3])[case]
    with pytest.raises((RuntimeError, ValueError)) as expected:
        label_scores(plain, *call)
    with pytest.raises(expected.type, match=re.escape(str(expected.value)[:30])):
        label_scores(fused, *call)


def test_a_span_that_ends_before_it_starts_is_left_to_the_package() -> None:
    plain, fused, _ = layers("markerV0")
    words, spans, labels, _ = given()
    with pytest.warns(AccelerationWarning, match="a span ends before it starts"):
        found = label_scores(fused, words, spans.flip(-1), labels)
    torch.testing.assert_close(found, label_scores(plain, words, spans.flip(-1), labels))


def hooked(layer: Any) -> None:
    layer.span_rep_layer.out_project.register_forward_hook(lambda module, args, output: 2 * output)


def hooked_inside(layer: Any) -> None:
    layer.span_rep_layer.out_project[0].register_forward_hook(lambda module, args, output: 2 * output)


def adapted(layer: Any) -> None:
    class Adapter(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + 1

    layer.span_rep_layer.out_project[0] = Adapter(layer.span_rep_layer.out_project[0])


@pytest.mark.parametrize("change", [hooked, hooked_inside, adapted])
def test_what_was_put_inside_keeps_its_effect(change: Callable[[Any], None]) -> None:
    plain, fused, report = layers("markerV0")
    for layer in (plain, fused):
        change(layer)
    words, spans, labels, _ = given()
    with pytest.warns(AccelerationWarning, match="SpanRepLayer.forward: the package's own path ran"):
        found = label_scores(fused, words, spans, labels)
    torch.testing.assert_close(found, label_scores(plain, words, spans, labels))
    assert report.span_layers[0].last_path.startswith("original: ")


@pytest.mark.parametrize("mode", ["query", "mlp"])
def test_modes_without_anything_to_gain_stay(mode: str) -> None:
    layer = SpanRepLayer(SIZE, WIDTHS, mode)
    both = nn.ModuleDict({"left": layer, "other": SpanRepLayer(SIZE, WIDTHS, "cat")})
    (skipped,) = sk.accelerate(both).skipped
    assert "an activation stands last" in skipped.reason
    assert "forward" not in layer.__dict__


class Normalized(SpanMarkerV0):
    """What a later version might compute under the same name."""

    def joined(self, *given: Any) -> Tensor:
        return nn.functional.normalize(super().joined(*given), dim=-1)


def test_a_version_that_computes_something_else_stays() -> None:
    layer = SpanRepLayer(SIZE, WIDTHS, "markerV0")
    layer.span_rep_layer = seeded(lambda: Normalized(SIZE, WIDTHS))
    Normalized.__name__ = "SpanMarkerV0"
    with pytest.raises(ValueError, match="it computes something else than the package's"):
        sk.accelerate(layer)


def test_dropout_between_the_layers() -> None:
    """The layer between is all ones, and the label counts what is left of it, of 4 * SIZE units kept with p = 1/2."""
    _, fused, _ = layers("markerV0", dropout=0.5)
    first, _, _, last = fused.span_rep_layer.out_project
    with torch.no_grad():
        for parameter, value in ((first.weight, 0), (first.bias, 1), (last.weight, 1), (last.bias, 0)):
            parameter.fill_(value)
    words, spans, _, _ = given()
    label = torch.eye(SIZE)[:1].expand(2, 1, SIZE)
    torch.manual_seed(0)
    kept = label_scores(fused.train(), words, spans, label) / 2
    assert torch.equal(kept, kept.round())
    assert kept.unique().numel() > 4
    assert abs(kept.mean().item() - 2 * SIZE) < 4 * (SIZE / kept.numel()) ** 0.5
    torch.testing.assert_close(label_scores(fused.eval(), words, spans, label), torch.full_like(kept, 4 * SIZE))


def test_words_are_returned_with_their_vectors() -> None:
    plain, fused, _ = layers("markerV2")
    words, spans, _, mask = given()
    for compact in (False, True):
        found, expected = (
            each(words, spans, word_mask=mask, return_words=True, compact_words=compact) for each in (fused, plain)
        )
        torch.testing.assert_close(found[0] + 0, expected[0])
        assert torch.equal(found[1], expected[1])
