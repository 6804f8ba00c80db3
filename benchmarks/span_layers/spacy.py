"""spaCy's span categoriser: extraction and reducer at its default sizes and at a transformer's, and the suggester.

Of the seeds here no two pieces of the Maxout layer are so close that rounding would choose another one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from registry import FORWARD, Unavailable
from torch import Tensor

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels import ops
from spanbert_kernels.extras import advice
from spanbert_kernels.integrations import spacy as ours
from spanbert_kernels.ops.choices import Part

LENGTH = 25
Sizes = tuple[int, int, int, int]  # documents, the widest span, H, seed


def thinc() -> Any:
    try:
        import spacy  # noqa: F401
        from thinc import api
    except ImportError:
        raise Unavailable(advice("spacy", "integrations")) from None
    return api


def lengths_of(documents: int) -> np.ndarray:
    return np.full(documents, LENGTH, dtype=np.int32)


def spans_of(documents: int, widest: int) -> tuple[np.ndarray, np.ndarray]:
    return ours.spans_of_widths(lengths_of(documents).astype(np.int64), np.arange(1, widest + 1))


class ThincModel(torch.autograd.Function):
    """A thinc model of hidden states and parameters under autograd."""

    @staticmethod
    def forward(ctx: Any, run: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.model, ctx.backprop, scores = run(hidden)
        return torch.from_numpy(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        given, _ = ctx.backprop(grad.numpy())
        grads = []
        for node, name in parameters_of(ctx.model):
            grads.append(torch.from_numpy(node.get_grad(name).copy()))
            node.get_grad(name)[...] = 0
        return None, torch.from_numpy(given.dataXd), *grads


def parameters_of(model: Any) -> list[tuple[Any, str]]:
    return [(node, name) for node in model.walk() for name in node.param_names]


def reducer(sizes: Sizes, replaced: bool) -> tuple[Any, Tensor]:
    """`extract_spans` and `mean_max_reducer`, and hidden states."""
    api = thinc()
    from spacy.ml.models.spancat import build_mean_max_reducer, build_spancat_model
    from thinc.types import Ragged

    documents, widest, size, seed = sizes
    api.fix_random_seed(seed)
    make = ours.span_categorizer if replaced else build_spancat_model
    _, *layers, _ = make(api.noop(), build_mean_max_reducer(128), api.noop()).layers
    model = api.chain(*layers)
    hidden = torch.randn(documents * LENGTH, size, generator=torch.Generator().manual_seed(seed))
    model.initialize(X=(Ragged(hidden.numpy(), lengths_of(documents)), Ragged(*spans_of(documents, widest))))
    return model, hidden.requires_grad_()


def build_reducer(sizes: Sizes, replaced: bool, dtype: torch.dtype) -> Side:
    from thinc.types import Ragged

    documents, widest, _, _ = sizes
    model, hidden = reducer(sizes, replaced)
    lengths, spans = lengths_of(documents), Ragged(*spans_of(documents, widest))
    leaves = [torch.from_numpy(node.get_param(name)).requires_grad_() for node, name in parameters_of(model)]

    def run(hidden: Tensor) -> tuple[Any, Any, np.ndarray]:
        scores, backprop = model.begin_update((Ragged(hidden.detach().numpy(), lengths), spans))
        return model, backprop, scores

    def way() -> Tensor:
        if torch.is_grad_enabled():
            return ThincModel.apply(run, hidden, *leaves)
        return torch.from_numpy(model.predict((Ragged(hidden.detach().numpy(), lengths), spans)))

    return Side(way, [hidden, *leaves])


def build_exact(sizes: Sizes, dtype: torch.dtype) -> Side:
    """The same in PyTorch, for float64."""
    documents, widest, *_ = sizes
    model, hidden = reducer(sizes, False)
    bounds, counts = spans_of(documents, widest)
    first = np.repeat(np.arange(documents) * LENGTH, counts)[:, None]
    spans = torch.from_numpy(bounds + first)
    weight, bias, gain, shift = leaves = [
        torch.from_numpy(node.get_param(name)).to(dtype).requires_grad_() for node, name in parameters_of(model)
    ]
    states = hidden.detach().to(dtype).requires_grad_()

    def way() -> Tensor:
        parts: list[Part] = ["end", "start", "mean", "max"]
        pooled = ops.span_pool(states, spans, parts, end_inclusive=False)
        pieces = pooled @ weight.flatten(0, 1).T + bias.flatten()
        best = pieces.view(len(pooled), -1, weight.shape[1]).amax(-1)
        variance = best.var(1, keepdim=True, correction=0) + 1e-8
        return (best - best.mean(1, keepdim=True)) * variance**-0.5 * gain + shift

    return Side(way, [states, *leaves])


def case(name: str, sizes: Sizes, **more: Any) -> SpanLayerCase:
    documents, widest, size, _ = sizes
    both = (partial(build_reducer, sizes, replaced) for replaced in (False, True))
    axes = {"spans": len(spans_of(documents, widest)[0]), "size": size}
    replaces = "spacy.ml.models.spancat.build_mean_max_reducer"
    return SpanLayerCase(name, replaces, *both, goal=3, exact=partial(build_exact, sizes), axes=axes, **more)


def suggester(documents: int, widest: int, replaced: bool) -> Build:
    def build(dtype: torch.dtype) -> Side:
        thinc()
        from spacy.pipeline.spancat import build_ngram_suggester
        from spacy.tokens import Doc
        from spacy.vocab import Vocab

        docs = [Doc(Vocab(), words=["word"] * LENGTH) for _ in range(documents)]
        suggest = (ours.ngram_suggester if replaced else build_ngram_suggester)(list(range(1, widest + 1)))
        return Side(lambda: torch.from_numpy(suggest(docs).dataXd).to(dtype), [])

    return build


CASES = (
    case("reducer of 2,304 spans of up to 3 in 32 texts, H 96", (32, 3, 96, 1), quick=True),
    case("reducer of 6,560 spans of up to 10 in 32 texts, H 96", (32, 10, 96, 3)),
    case("reducer of 2,304 spans of up to 3 in 32 texts, H 768", (32, 3, 768, 0)),
    SpanLayerCase(
        "suggester of spans of up to 3 in 128 texts",
        "spacy.pipeline.spancat.build_ngram_suggester",
        suggester(128, 3, replaced=False),
        suggester(128, 3, replaced=True),
        directions=(FORWARD,),
    ),
)
