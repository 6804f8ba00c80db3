"""The rows of span_linear's and span_score's tables, and the loops that they are compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_checks import (
    Case,
    OpChecks,
    RecordRawCalls,
    Setting,
    Tensors,
    check_identical,
    largest,
    run_setting,
    unchanged,
)
from pool_cases import (
    buckets,
    documents,
    enumerated_by_loop,
    largest_score,
    pool_by_loop,
    pool_inputs,
    score_terms,
    with_enumeration,
    with_half_open_plan,
    with_plan,
    without_spans,
    without_tokens,
)
from torch import Tensor

from spanbert_kernels.ops import philox, products, span_linear, span_score
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.span_linear import projection

MENTION = ["start", "end", "attention", "width"]
LINEAR = ["width", "start", "attention", "mean", "end", "sum"]
EVERY = [*LINEAR[:2], "max", *LINEAR[2:]]
ATTENTION_FIRST = ["max", "attention", "start", "width", "end"]  # the tokens of the first have one derivative


def activate_by_formula(values: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return torch.where(values > 0, values, 0)
    if activation == "gelu" and values.dtype == torch.float32:
        return F.gelu(values)  # a yardstick: with AVX-512 PyTorch's is less exact than the formula is
    return values * 0.5 * (1 + torch.erf(values / math.sqrt(2))) if activation == "gelu" else values


def pooled_by_loop(hidden: Tensor | dict[str, Tensor], *, parts: list[str], **pooling: Any) -> Tensor:
    """Each part from its own tokens."""
    if isinstance(hidden, Tensor):
        return pool_by_loop(hidden, parts=parts, **pooling)
    like = next(iter(hidden.values()))
    return torch.cat([pool_by_loop(hidden.get(part, like), parts=[part], **pooling) for part in parts], 1)


def of_documents(table: Tensor, spans: Tensor, cu_seqlens: Tensor, end_inclusive: bool = True) -> Tensor:
    """The row of `table` of every span's document, zeros for a span without tokens."""
    rows = [table.new_zeros(0, *table.shape[1:])]
    for start, last in spans.tolist():
        documents = [d for d, (a, b) in enumerate(itertools.pairwise(cu_seqlens.tolist())) if a <= start < b]
        empty = last < start + (0 if end_inclusive else 1)
        rows.append(torch.zeros_like(table[:1]) if empty else table[documents])
    return torch.cat(rows)


def linear_by_loop(
    weight: Tensor, bias: Tensor | None = None, cu_seqlens: Tensor | None = None, *, activation: str = "none",
    **pooling: Any,
) -> Tensor:  # fmt: skip
    """The pooled vectors, span by span, and the layer over them."""
    values = pooled_by_loop(**pooling) @ weight.T
    if bias is not None and bias.dim() == 2:
        assert cu_seqlens is not None
        bias = of_documents(bias, pooling["spans"], cu_seqlens, pooling.get("end_inclusive", True))
    return activate_by_formula(values if bias is None else values + bias, activation)


def score_by_loop(
    out_weight: Tensor,
    out_bias: Tensor | None = None,
    seed: Tensor | None = None,
    norm: tuple[Tensor, Tensor, float] | None = None,
    *,
    activation: str = "relu",
    dropout_p: float = 0.0,
    **layer: Any,
) -> Tensor:
    inner = linear_by_loop(activation=activation, **layer)
    if dropout_p:
        assert seed is not None
        zero, columns = torch.zeros(1, dtype=torch.int64), torch.arange(inner.shape[1])
        kept = [philox.keep(seed, dropout_p, zero, torch.tensor([row]), columns) for row in range(len(inner))]
        inner = inner * torch.stack(kept) / (1 - dropout_p) if kept else inner
    if norm is not None:
        weight, bias, epsilon = norm
        apart = inner - inner.mean(1, keepdim=True)
        inner = apart / (apart.square().mean(1, keepdim=True) + epsilon).sqrt() * weight + bias
    given = (layer["spans"], layer.get("cu_seqlens"), layer.get("end_inclusive", True))
    if out_bias is not None and out_bias.dim() == 2:
        out_bias = of_documents(out_bias, *given)
    if out_weight.dim() == 3:
        scores = (of_documents(out_weight, *given) @ inner[:, :, None]).squeeze(2)
    else:
        scores = inner @ (out_weight if out_weight.dim() == 1 else out_weight.T)
    return scores if out_bias is None else scores + out_bias


def columns_of(tensors: Tensors, parts: list[str]) -> int:
    scores, table = tensors.get("scores"), tensors.get("width_embedding")
    heads = 1 if scores is None or scores.dim() == 1 else scores.shape[1]
    sizes = {part: tokens.shape[1] for part, tokens in tokens_by_part(tensors, parts).items()}
    sizes |= {"attention": heads * sizes.get("attention", 0), "width": 0 if table is None else table.shape[1]}
    return sum(sizes[part] for part in parts)


def tokens_by_part(tensors: Tensors, parts: list[str]) -> dict[str, Tensor]:
    """The tokens of each part that reads any: `hidden_start`, ..., or `hidden`."""
    return {part: tensors.get(f"hidden_{part}", tensors.get("hidden")) for part in parts if part != "width"}  # type: ignore[misc]


def as_arguments(given: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Tensors of a case as the public functions take them."""
    parts = {name.removeprefix("hidden_"): t for name, t in given.items() if name.startswith("hidden_")}
    norm = [given[name] for name in ("norm_weight", "norm_bias") if name in given]
    rest = {name: t for name, t in given.items() if not name.startswith(("hidden_", "norm_", "offsets"))}
    rest |= {"hidden": parts} if parts else {}
    rest |= {"norm": (*norm, 1.0)} if norm else {}  # so large that rows of equal numbers are not blown up
    rest |= {"cu_seqlens": given["offsets"]} if "offsets" in given else {}
    return {**rest, **options}


def separate(tensors: Tensors, parts: list[str], wider: int = 1) -> Tensors:
    """The same with a tensor of its own for each part that reads tokens, wider from part to part."""
    generator = torch.Generator().manual_seed(3)
    rows, columns = tensors["hidden"].shape
    own = {
        f"hidden_{part}": torch.randn(rows, columns + i * wider, generator=generator, dtype=torch.float64)
        for i, part in enumerate(part for part in parts if part != "width")
    }
    return {**own, **{name: t for name, t in tensors.items() if name != "hidden"}}


def layer_inputs(
    size: int,
    inputs: Callable[[int], Tensors],
    parts: list[str],
    outputs: int = 7,
    bias: bool = True,
    scores: int | None = None,
    seed: int | None = None,
    by_document: tuple[str, ...] = (),
    norm: bool = False,
) -> Tensors:
    """`inputs`, and the layers' weights: one layer, or two with `scores` (0: an `out_weight [O]`).

    `by_document` names what differs by document: of four, the second of which is empty, or those of the inputs.
    """
    tensors = {n: t for n, t in inputs(size).items() if n.removeprefix("hidden_") not in {*PARTS} - {*parts}}
    rows = next(len(t) for name, t in tensors.items() if name.startswith("hidden"))
    if by_document:
        offsets = torch.tensor([0, rows // 3, rows // 3, rows // 2, rows])
        tensors["offsets"] = tensors.get("cu_seqlens", offsets)
    generator = torch.Generator().manual_seed(10 + size)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def of_all(name: str, *shape: int) -> Tensor:
        return randn(*([len(tensors["offsets"]) - 1] if name in by_document else []), *shape)

    columns = columns_of(tensors, parts)
    tensors["weight"] = randn(outputs, columns) / max(columns, 1) ** 0.5
    if bias:
        tensors["bias"] = 0.5 * of_all("bias", outputs)
    if scores is not None:
        tensors["out_weight"] = of_all("out_weight", *([scores] if scores else []), outputs) / max(outputs, 1) ** 0.5
        tensors["out_bias"] = of_all("out_bias", scores or 1)
    if norm:
        tensors["norm_weight"], tensors["norm_bias"] = 1 + 0.3 * randn(outputs), randn(outputs)
    if seed is not None:
        tensors["seed"] = torch.tensor([seed])
    return tensors


many = partial(pool_inputs, spans=13)  # more spans than tokens
few = partial(pool_inputs, spans=6)


def row(
    name: str,
    parts: list[str],
    inputs: Callable[[int], Tensors],
    *,
    arguments: Callable[[Tensors], dict[str, Any]] = unchanged,
    compiled: tuple[str, ...] = (),
    large: bool = False,
    outputs: int = 7,
    bias: bool = True,
    scores: int | None = None,
    seed: int | None = None,
    by_document: tuple[str, ...] = (),
    norm: bool = False,
    widest: int = 3,
    **options: Any,
) -> Case:
    """A case of span_linear; with `scores` one of span_score. Without spans: all of up to `widest` tokens."""
    options["parts"] = parts
    made = partial(
        layer_inputs, inputs=inputs, parts=parts, outputs=outputs, bias=bias, scores=scores, seed=seed,
        by_document=by_document, norm=norm,
    )  # fmt: skip
    call: Callable[..., Tensor] = partial(span_linear, **options)
    oracle: Callable[..., Tensor] = partial(linear_by_loop, **options)
    if scores is not None:
        call, oracle = (
            partial(span_score, **options, **({} if bias else {"bias": None})),
            partial(score_by_loop, **options),
        )

    def with_spans(tensors: Tensors) -> Tensors:
        rest = {name: t for name, t in tensors.items() if name != "cu_seqlens"}
        return rest if "spans" in rest else {**rest, "spans": enumerated_by_loop(tensors["cu_seqlens"], widest)}

    def hidden_terms(tensors: Tensors, inner: Tensor) -> Tensors:
        """A token's gradient sums those of all spans and units over it: such sums without signs."""
        leaves = {n: t.detach().requires_grad_() for n, t in tensors.items() if n.split("_")[0] == "hidden"}
        taken = {name: tensors[name] for name in ("spans", "scores", "width_embedding") if name in tensors}
        pooling = {name: options[name] for name in ("parts", "width_rows", "end_inclusive") if name in options}
        pooled = pooled_by_loop(**as_arguments({**leaves, **taken}), **pooling)
        if not pooled.requires_grad:
            return {}
        weighed = inner @ tensors["weight"].abs()
        grads = torch.autograd.grad(pooled, list(leaves.values()), weighed, materialize_grads=True, allow_unused=True)
        return dict(zip(leaves, grads, strict=True))

    def by_loop(**tensors: Tensor) -> Tensor:
        result: Tensor = oracle(**as_arguments(with_spans(tensors)))
        return result

    def terms(tensors: Tensors, gradients: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        """The gradients of all but the first weight sum signed numbers of many spans."""
        found = {}
        if "attention" in parts:
            name = "hidden" if "hidden" in tensors else "hidden_attention"
            found = score_terms({"hidden": tensors[name]}, {"hidden": gradients[name]}, incoming)
        if not incoming or not incoming[0].numel() or not outputs:
            return found
        inner = grad = incoming[0].abs()
        if scores is not None:
            out_weight = tensors["out_weight"].abs()
            out_weight = out_weight.amax(0) if out_weight.dim() == 3 else out_weight.view(-1, outputs)
            inner = grad.reshape(len(grad), -1) @ out_weight * tensors.get("norm_weight", torch.ones(1)).abs()
            found["out_bias"] = float(grad.reshape(len(grad), -1).sum(0).max())
        before = inner
        found["bias"] = float(inner.sum(0).max())
        unsigned = hidden_terms(with_spans(tensors), inner)
        found |= {name: largest(grad) for name, grad in unsigned.items()}
        if "attention" in parts and "hidden_attention" in unsigned:
            products = tensors["hidden_attention"].abs() * unsigned["hidden_attention"]
            found["scores"] = largest(products.sum(1))
        table = tensors.get("width_embedding")
        if table is not None and "width" in parts:
            rows = {"width_embedding": torch.eye(len(table), dtype=table.dtype), "parts": ["width"]}
            pooling = {n: option for n, option in options.items() if n in ("width_rows", "end_inclusive")}
            given = with_spans(tensors)
            tokens = next(t for n, t in given.items() if n.split("_")[0] == "hidden")
            taken = pool_by_loop(tokens, given["spans"], **rows, **pooling)  # [N, table rows]
            first = columns_of(tensors, parts[: parts.index("width")])
            weight = tensors["weight"][:, first : first + table.shape[1]].abs()
            found["width_embedding"] = float((taken.T @ (inner @ weight)).max())
        if scores is not None:
            second = ("out_weight", "out_bias", "seed", "norm_weight", "norm_bias")
            layer = {name: t for name, t in with_spans(tensors).items() if name not in second}
            plain = {name: option for name, option in options.items() if name != "dropout_p"}
            inner = linear_by_loop(**{"activation": "relu", **plain}, **as_arguments(layer)).abs()
            flat = grad.reshape(len(inner), max(scores, 1))
            normed = inner * tensors["norm_weight"].abs() + tensors["norm_bias"].abs() if norm else inner
            found["out_weight"] = float((flat.T @ normed).max())
            if norm:  # which subtracts means of the gradients
                pooling = {n: t for n, t in layer.items() if n not in ("weight", "bias", "offsets")}
                pooled = pooled_by_loop(parts=parts, **as_arguments(pooling)).abs()
                found["weight"] = float((before.T @ pooled).max())
                found["norm_bias"] = float((flat @ out_weight).sum(0).max())
                found["output 0"] = float((normed @ out_weight.T).max() + tensors["out_bias"].abs().max())
                if "attention" in parts:
                    tokens = tokens_by_part(tensors, parts)["attention"]
                    found["scores"] = largest(tokens) * tokens.shape[1] * max(found[n] for n in found if "hidden" in n)
                found["norm_weight"] = float((flat @ out_weight * inner).sum(0).max())
        return found

    def given(tensors: Tensors) -> dict[str, Any]:
        return as_arguments(arguments(tensors))

    return Case(
        name, made, call, by_loop, arguments=given, twice=("eager",), terms=terms, compiled=compiled, large=large,
        exponents=("scores",), logits=largest_score,
    )  # fmt: skip


def separated(inputs: Callable[..., Tensors], size: int) -> Tensors:
    """`inputs` with two tensors of tokens or three, as the parts ask for them."""
    return separate(inputs(size, heads=2, table=3), ATTENTION_FIRST)


DOCUMENTS = ("bias", "out_weight", "out_bias")
LINEAR_CASES = (
    row("all parts", LINEAR, partial(many, heads=2, table=3), activation="gelu", compiled=("cpu",)),
    row("mention", MENTION, partial(many, heads=1, table=3), activation="relu", compiled=("eager",)),
    row("no bias", ["end", "sum"], many, bias=False),
    row("width alone", ["width"], partial(many, table=4), width_rows=buckets),
    row("half-open plan", ["mean", "width"], partial(many, table=4), arguments=with_half_open_plan,
        activation="gelu"),
    row("enumerated", LINEAR, documents, arguments=with_enumeration, activation="relu", compiled=("cpu",)),
    row("no tokens", LINEAR, without_tokens, activation="gelu"),
    # A block of columns, vectors and a rest after it; several ranges of groups.
    row("large", LINEAR, partial(pool_inputs, tokens=150, columns=19, spans=400, heads=2, table=5), outputs=83,
        activation="gelu", large=True),
    row("large mention", MENTION, partial(pool_inputs, tokens=120, columns=19, spans=500, heads=1, table=5), outputs=71,
        activation="relu", arguments=with_plan, large=True),
)  # fmt: skip
# Where pooled spans are multiplied: fewer spans than tokens, and the maximum.
POOLED_FIRST_CASES = (
    row("fewer spans", EVERY, partial(few, heads=2, table=3), activation="gelu", compiled=("cpu",)),
    row("fewer spans, plan", MENTION, partial(few, heads=1, table=3), activation="relu", arguments=with_plan),
    row("no spans", LINEAR, without_spans),
    row("with max", EVERY, partial(many, heads=2, table=3), activation="gelu", compiled=("cpu",)),
    row("max alone", ["max"], many, activation="relu", bias=False),
)
SCORE_CASES = (
    row("all parts", LINEAR, partial(many, heads=2, table=3), scores=3, activation="gelu"),
    row("mention", MENTION, partial(many, heads=1, table=3), scores=1),
    row("dropout", MENTION, partial(many, heads=1, table=3), scores=2, seed=-(2**62) - 3, dropout_p=0.4,
        compiled=("cpu",)),
    row("no bias", ["end", "sum"], many, scores=2, bias=False, activation="none"),
    row("enumerated", LINEAR, documents, arguments=with_enumeration, scores=1, seed=5, dropout_p=0.2),
    row("no tokens", LINEAR, without_tokens, scores=2),
    row("large", LINEAR, partial(pool_inputs, tokens=150, columns=19, spans=400, heads=2, table=5), outputs=83,
        scores=5, seed=9, dropout_p=0.3, activation="gelu", large=True),
    row("large mention", MENTION, partial(pool_inputs, tokens=120, columns=19, spans=500, heads=1, table=5), outputs=71,
        scores=1, arguments=with_plan, large=True),
)  # fmt: skip
SCORE_POOLED_FIRST_CASES = (
    row("fewer spans", LINEAR, partial(few, heads=2, table=3), scores=2, seed=3, dropout_p=0.3),
    row("no spans", LINEAR, without_spans, scores=2),
)  # fmt: skip
# A tensor of tokens a part, documents and norms; all checks of them belong to the slow tests.
LINEAR_BY_DOCUMENT = (
    row("a tensor a part", ATTENTION_FIRST[1:], partial(separated, many), activation="relu"),
    row("bias by document", ["end", "width"], partial(many, table=3), by_document=("bias",), activation="gelu"),
)  # fmt: skip
POOLED_FIRST_BY_DOCUMENT = (
    row("with max, a tensor a part", ATTENTION_FIRST, partial(separated, many), by_document=("bias",)),
    row("fewer spans by document", ATTENTION_FIRST, partial(separated, few), by_document=("bias",)),
)  # fmt: skip
SCORE_BY_DOCUMENT = (
    row("by document", ATTENTION_FIRST[1:], partial(separated, many), scores=6, by_document=DOCUMENTS, seed=4,
        dropout_p=0.3),
    row("norm", ["start", "end"], many, outputs=35, scores=2, norm=True, activation="gelu", seed=2, dropout_p=0.2),
    row("enumerated by document with a norm", ["start", "end"], documents, arguments=with_enumeration, scores=5,
        by_document=("out_weight",), norm=True),
)  # fmt: skip
SCORE_POOLED_FIRST_BY_DOCUMENT = (
    row("fewer spans by document", ATTENTION_FIRST[1:], partial(separated, few), outputs=35, scores=6,
        by_document=DOCUMENTS, norm=True, seed=3, dropout_p=0.3),
)  # fmt: skip


def use_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's blocks, for its interpreter so large that they hold a small case, hold a part of it."""
    from spanbert_kernels.ops.span_linear import triton_call
    from spanbert_kernels.ops.triton_arguments import Options, Tiling

    small = Tiling(M=8, K=8, D=8, INTERPRETED=True)
    monkeypatch.setattr(triton_call, "product_options", lambda outputs, forward: Options(small))
    monkeypatch.setattr(triton_call, "softmax_options", lambda: Options(small))
    monkeypatch.setattr(triton_call, "TABLE_TILE", 2)
    monkeypatch.setattr(triton_call, "TABLE_SHARE", 8)


def multiply_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, backend: str = "") -> list[tuple[int, ...]]:
    """What tensors of a GPU get: products of 16 bits (here the plain one), and columns of zeros behind each block.

    Returns the shapes of the weights that are multiplied so.
    """
    shapes: list[tuple[int, ...]] = []

    def product(x: Tensor, weight: Tensor) -> Tensor:
        assert x.dtype == weight.dtype
        shapes.append(tuple(weight.shape))
        return x.float() @ weight.float().T

    monkeypatch.setitem(products.OF_16_BITS, "cpu", product)
    if backend == "triton":
        from spanbert_kernels.ops.span_linear import triton_parts

        monkeypatch.setitem(products.PARTS_OF, "cpu", triton_parts.parts_of)
    monkeypatch.setitem(projection.COLUMN_STEPS, "cpu", 16)
    return shapes


blocked = partial(pool_inputs, tokens=20, spans=30, width=12, heads=2, table=5)
# For `use_small_blocks`: of everything several blocks and a rest.
LINEAR_BLOCKS = row("blocks", LINEAR, blocked, outputs=19, activation="gelu")
SCORE_BLOCKS = row("blocks", LINEAR, blocked, outputs=19, scores=3, seed=7, dropout_p=0.3, activation="gelu")


class ProjectedChecks(OpChecks):
    """The shared checks of operations around whose kernels PyTorch multiplies."""

    def test_same_bits_every_time(self, case: Case, backend: str) -> None:
        """The whole call run again, and its kernels with any number of threads: PyTorch's products depend on it."""
        setting = Setting(case)
        with RecordRawCalls() as record:
            first = run_setting(setting, backend)
        check_identical(first, run_setting(setting, backend), "in another run")
        calls = [call for call in record.calls if call[0].name().endswith(("_forward", "_backward"))]
        assert calls or backend != "cpu"
        for func, args, kwargs in calls:
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                result = func(*args, **kwargs)
                results.append(result if isinstance(result, tuple) else (result,))
            for other in results[1:]:
                for a, b in zip(results[0], other, strict=True):
                    assert torch.equal(a, b), f"{func.name()} depends on the number of threads"
