"""What the fuzzer calls: one row an operation, each a case of the shared checks with drawn tensors and options."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import banded_cases
import embedding_cases
import linear_cases
import numpy as np
import pair_cases
import pool_cases
import pruning
import stack_loops
import top_cases
import torch
from attention_loops import (
    cross_document_attention_by_loop,
    cross_score_terms,
    document_attention_by_loop,
    largest_logit,
    score_terms,
)
from distance_cases import (
    TABLES,
    by_distance,
    by_distance_in_loops,
    distance_terms,
    largest_distance_logit,
)
from fuzz.draw import Draw
from gather_cases import gather_by_loop
from gelu_cases import gelu_by_formula
from norm_cases import Conditions, norm_by_formula
from op_checks import Case, Tensors, no_terms
from packed_cases import linear_by_rows, with_packed, without_gradients
from pool_cases import enumerated_by_loop, largest_score, pool_by_loop
from torch import Tensor

from spanbert_kernels.ops import (
    bias_gelu,
    clipped_index,
    cross_document_attention,
    document_attention,
    dropout_add_layer_norm,
    embedding_layer_norm,
    enumerate_spans,
    log_bucketed_index,
    plan_attention,
    plan_spans,
    prune_spans,
    span_gather,
    span_pool,
)


def fixed(tensors: Tensors) -> Callable[[int], Tensors]:
    return lambda size: dict(tensors)


def draw_spans(draw: Draw, tensors: Tensors) -> tuple[str, dict[str, Any], Callable[[Tensors], dict[str, Any]]]:
    """Adds spans, or offsets to enumerate, to tensors with `hidden`: how they are given, the options of a loop over
    a span tensor, and the arguments of the call.
    """
    way = draw.pick(("tensor", "tensor", "plan", "enumerated"))
    half_open = way != "enumerated" and draw.chance(0.2)
    options: dict[str, Any] = {"end_inclusive": False} if half_open else {}
    width = draw.pick((1, 2, 3, 6, 50))
    if way == "enumerated":
        offsets = draw.documents().clamp(max=len(tensors["hidden"]))
        offsets[-1] = len(tensors["hidden"]) if len(offsets) > 1 else 0
        tensors["hidden"] = tensors["hidden"][: int(offsets[-1])]
        tensors["cu_seqlens"] = draw.index(offsets)
    else:
        spans = draw.spans(len(tensors["hidden"]))
        tensors["spans"] = draw.index(spans + torch.tensor([0, 1]) if half_open else spans)

    def arguments(given: Tensors) -> dict[str, Any]:
        if way == "plan":
            plan = plan_spans(given["spans"], num_tokens=len(given["hidden"]), **options)
            return {**given, "spans": plan}
        if way == "enumerated":
            rest: dict[str, Any] = {name: t for name, t in given.items() if name != "cu_seqlens"}
            return {**rest, "spans": enumerate_spans(given["cu_seqlens"], width)}
        return {**given, **options}

    return way, {**options, "width": width}, arguments


def over_pairs(loop: Callable[..., Any], width: int) -> Callable[..., Any]:
    """A loop over a span tensor, given either that or offsets whose spans are enumerated."""

    def call(cu_seqlens: Tensor | None = None, **rest: Any) -> Any:
        if cu_seqlens is not None:
            rest["spans"] = enumerated_by_loop(cu_seqlens, width)
        return loop(**rest)

    return call


def span_gather_row(draw: Draw) -> Case:
    tensors = {"hidden": draw.numbers(draw.size(zero=0.1), draw.size(zero=0.1))}
    way, options, arguments = draw_spans(draw, tensors)
    width, padded = options.pop("width"), draw.chance(0.5)

    def call(spans: Any, **rest: Any) -> tuple[Tensor, ...]:
        """With a plan's own pairs beside the result: they are what was planned, in their order."""
        result = span_gather(spans=spans, padded=padded, **rest)
        return result if way == "tensor" else (*result, spans.pairs()[:, 1] - spans.pairs()[:, 0] + 1)

    def loop(**given: Any) -> tuple[Tensor, ...]:
        result = gather_by_loop(**given, padded=padded, **options)
        ends = given["spans"][:, 1] - (0 if options.get("end_inclusive", True) else 1)
        widths = (ends.long() - given["spans"][:, 0].long() + 1).clamp(min=0)
        return result if way == "tensor" else (*result, widths)

    return Case(way, fixed(tensors), call, over_pairs(loop, width), arguments=arguments)


def draw_pooled(draw: Draw, names: list[str]) -> tuple[Tensors, list[str]]:
    """Tensors for parts, and the parts."""
    parts = draw.subset(names)
    tokens = draw.size(40)
    tensors = {"hidden": draw.numbers(tokens, draw.size(zero=0.02))}
    if "attention" in parts:
        heads = draw.integer(0, 3)
        tensors["scores"] = draw.numbers(tokens, heads) if heads else draw.numbers(tokens)
    if "width" in parts:
        tensors["width_embedding"] = draw.numbers(draw.integer(4, 9), draw.pick((1, 3, 17)))
    return tensors, parts


def span_pool_row(draw: Draw) -> Case:
    tensors, parts = draw_pooled(draw, pool_cases.ALL)
    way, options, arguments = draw_spans(draw, tensors)
    if "scores" in tensors:
        tensors["scores"] = tensors["scores"][: len(tensors["hidden"])]
    width, buckets = options.pop("width"), "width" in parts and draw.chance(0.3)
    shared: dict[str, Any] = {"parts": parts, **({"width_rows": pool_cases.buckets} if buckets else {})}
    return Case(
        way,
        fixed(tensors),
        partial(span_pool, **shared),
        over_pairs(partial(pool_by_loop, **shared, **options), width),
        arguments=arguments,
        terms=pool_cases.score_terms if "attention" in parts else no_terms,
        exponents=("scores",),
        logits=largest_score,
    )


def layered(draw: Draw, names: list[str], scores: int | None) -> Case:
    tensors, parts = draw_pooled(draw, names)
    enumerated = draw.chance(0.25)
    if enumerated:
        offsets = draw.documents().clamp(max=len(tensors["hidden"]))
        tensors = {n: t[: int(offsets[-1])] if n in ("hidden", "scores") else t for n, t in tensors.items()}
        tensors["cu_seqlens"] = draw.index(offsets)
    else:
        tensors["spans"] = draw.index(draw.spans(len(tensors["hidden"])))
    planned = pool_cases.with_plan if draw.chance(0.4) else linear_cases.unchanged
    options: dict[str, Any] = {"activation": draw.pick(("none", "relu", "gelu"))}
    if draw.chance(0.25) and parts != ["width"]:
        tensors = linear_cases.separate(tensors, parts, draw.pick((0, 1, 16)))
    varying = linear_cases.DOCUMENTS if scores else ("bias",)
    if draw.chance(0.3):
        options["by_document"] = tuple(draw.subset(varying))
    if scores is not None and draw.chance(0.2):
        options["norm"] = True
    if scores is not None and draw.chance(0.4):
        options |= {"dropout_p": draw.pick((0.1, 0.5)), "seed": draw.integer(-(2**62), 2**62)}
    if "width" in parts and draw.chance(0.3):
        options["width_rows"] = pool_cases.buckets
    return linear_cases.row(
        "enumerated" if enumerated else "spans",
        parts,
        lambda size: dict(tensors),
        arguments=pool_cases.with_enumeration if enumerated else planned,
        outputs=draw.size(33 if scores is None else 65, zero=0.02),
        bias=draw.chance(0.7),
        scores=scores,
        **options,
    )


def span_linear_row(draw: Draw) -> Case:
    return layered(draw, linear_cases.EVERY, None)


def span_score_row(draw: Draw) -> Case:
    return layered(draw, linear_cases.LINEAR, draw.pick((0, 1, 2, 5, 20)))


def draw_pairs(draw: Draw, linear: bool) -> tuple[Tensors, list[str]]:
    """Rows, pairs of them, and parts without quotients; with sentinels and a mask where a layer is not `linear`."""
    parts = draw.subset([part for part in pair_cases.EVERY if "/" not in part])
    columns, other = draw.size(), draw.chance(0.5)
    tensors = {"first": draw.numbers(draw.size(zero=0) or 1, columns)}
    tensors |= {"second": draw.numbers(draw.size(zero=0) or 1, columns)} if other else {}
    sides = [tensors["first"], tensors["second" if other else "first"]]
    sentinels = [not linear and draw.chance(0.3) for _ in sides]
    count = draw.size(65)
    indices = [draw.random.integers(-int(low), len(rows), count) for low, rows in zip(sentinels, sides, strict=True)]
    pairs = torch.from_numpy(np.stack(indices, 1))
    for name, has in zip(("first_sentinel", "second_sentinel"), sentinels, strict=True):
        tensors |= {name: draw.numbers(columns)} if has else {}
    if not linear and draw.chance(0.4):
        tensors["mask"] = torch.from_numpy(draw.random.random(count) < 0.7)
        pairs[~tensors["mask"]] = draw.integer(-9, 99)
    if "feature" in parts:
        tensors["features"] = draw.numbers(draw.integer(1, 7), draw.size(17))
        tensors["feature_rows"] = draw.index(torch.from_numpy(draw.random.integers(0, len(tensors["features"]), count)))
    return {**tensors, "pairs": draw.index(pairs)}, parts


def pair_pool_row(draw: Draw) -> Case:
    tensors, parts = draw_pairs(draw, linear=False)
    return pair_cases.pooled_row("pairs", parts, fixed(tensors))


def pair_linear_row(draw: Draw) -> Case:
    tensors, parts = draw_pairs(draw, linear=True)
    return pair_cases.linear_row("layer", parts, fixed(tensors), outputs=draw.size(33), bias=draw.chance(0.7))


def draw_scale(draw: Draw) -> dict[str, Any]:
    return draw.pick(({}, {}, {"scale": 0.3}, {"scale": -0.7}, {"scale": 0.0}, {"scale": 4.0}))


def draw_heads(draw: Draw, *rows: int) -> list[Tensor]:
    heads, dim = draw.integer(1, 3 if draw.small else 5), draw.size(65, zero=0)
    return [draw.numbers(count, heads, dim) for count in rows]


def draw_dropout(draw: Draw, tensors: Tensors) -> dict[str, Any]:
    if not draw.chance(0.35):
        return {}
    tensors["seed"] = torch.tensor([draw.integer(-(2**62), 2**62)])
    return {"dropout_p": draw.pick((0.1, 0.3, 0.9))}


def logits(tensors: Tensors, scale: float | None = None) -> float:
    return largest_logit(tensors["q"], tensors["k"], scale)


def draw_distances(draw: Draw, tensors: Tensors) -> dict[str, Any] | None:
    """A window, or tables with some index, or both; or neither: None."""
    windowed, tabled = draw.pick(((False, False), (False, False), (True, False), (False, True), (True, True)))
    if tabled:
        reach = draw.pick((0, 1, 3, 20, 90))
        indices = {
            "any": torch.tensor([draw.integer(0, 6) for _ in range(2 * reach + 1)]),
            "clipped": clipped_index(max(reach, 1)),
            "flipped": clipped_index(max(reach, 1)).flip(0),
            "logarithmic": log_bucketed_index(4 * draw.integer(1, 4), 10 + reach),
        }
        index = indices[draw.pick(list(indices))]
        rows, (heads, dim) = int(index.max()) + draw.integer(1, 3), tensors["q"].shape[1:]
        shapes = {"bias": (rows, heads), "keys": (rows, heads, dim), "queries": (rows, heads, dim)}
        tensors["index"] = draw.index(index)
        tensors |= {name: draw.numbers(*shapes[name]) for name in draw.subset(TABLES)}
    if windowed:
        return {"window": draw.pick((0, 1, 2, 7, 16, 40, 2**31 - 1))}
    return {} if tabled else None


def document_attention_row(draw: Draw) -> Case:
    offsets = draw.documents()
    tokens, planned = int(offsets[-1]), draw.chance(0.3)
    tensors = dict(zip("qkv", draw_heads(draw, tokens, tokens, tokens), strict=True))
    tensors["cu_seqlens"] = draw.index(offsets)
    options = {**draw_dropout(draw, tensors), **draw_scale(draw), "return_lse": draw.chance(0.5)}
    longest = max(offsets.diff().tolist(), default=0)
    if not planned and draw.chance(0.3):
        options["max_seqlen"] = longest + draw.integer(0, 5) or 1
    distances = draw_distances(draw, tensors)
    options |= distances or {}

    def arguments(given: Tensors) -> dict[str, Any]:
        return {**given, "cu_seqlens": plan_attention(given["cu_seqlens"])} if planned else dict(given)

    if distances is not None:
        scale, window, keep = options.get("scale"), options.get("window"), 1 - options.get("dropout_p", 0.0)
        return Case(
            "by distance",
            fixed(tensors),
            partial(by_distance, **options),
            partial(by_distance_in_loops, **options),
            arguments=arguments,
            terms=lambda given, _, incoming: distance_terms(
                given, incoming, given["q"].shape[2] ** -0.5 if scale is None else scale, keep, window
            ),
            exponents=("q", "k", *TABLES),
            logits=partial(largest_distance_logit, scale=scale),
            lacking=("triton", "cuda"),
        )

    def terms(given: Tensors, _: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        scale = options.get("scale", given["q"].shape[2] ** -0.5)
        return score_terms(given, incoming, scale, 1 - options.get("dropout_p", 0.0))

    return Case(
        "plan" if planned else "offsets",
        fixed(tensors),
        partial(document_attention, **options),
        partial(document_attention_by_loop, **options),
        arguments=arguments,
        terms=terms,
        exponents=("q", "k"),
        logits=partial(logits, scale=options.get("scale")),
    )


def draw_links(draw: Draw, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Links of every document into its cluster: none, some, to itself, twice to the same one."""
    rows: list[list[int]] = []
    for first, last in itertools.pairwise(clusters.tolist()):
        for _ in range(first, last):
            count = draw.integer(0, min(last - first + 1, 5))
            rows.append([draw.integer(first, last - 1) for _ in range(count)])
    indptr = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return indptr, torch.tensor([j for row in rows for j in row], dtype=torch.int64)


def draw_clusters(draw: Draw, documents: int) -> Tensor:
    cuts = sorted(draw.integer(0, documents) for _ in range(draw.integer(0, 4)))
    return torch.tensor([0, *cuts, documents] if documents or cuts else [0])


def cross_document_attention_row(draw: Draw) -> Case:
    offsets = draw.documents()
    documents = len(offsets) - 1
    clusters = draw_clusters(draw, documents)
    sides = {"queries": draw.pick(("anchors", "tokens")), "keys": draw.pick(("anchors", "tokens"))}
    rows = {"anchors": documents, "tokens": int(offsets[-1])}
    queries, keys = rows[sides["queries"]], rows[sides["keys"]]
    tensors = dict(zip("qkv", draw_heads(draw, queries, keys, keys), strict=True))
    tensors |= {"cu_seqlens": draw.index(offsets), "cu_clusters": draw.index(clusters)}
    seen: dict[str, Any] = {**sides, "include_self": draw.chance(0.4)}
    normalize = draw.pick(("joint", "pairwise"))
    options = {**draw_dropout(draw, tensors), **draw_scale(draw), "normalize": normalize}
    options |= {"return_lse": normalize == "joint" and draw.chance(0.5), "return_weights": draw.chance(0.5)}
    if draw.chance(0.5):
        indptr, indices = draw_links(draw, clusters)
        tensors |= {"indptr": draw.index(indptr), "indices": draw.index(indices)}
    planned = draw.chance(0.3)

    def arguments(given: Tensors) -> dict[str, Any]:
        rest: dict[str, Any] = {name: t for name, t in given.items() if name not in ("indptr", "indices")}
        links = (given["indptr"], given["indices"]) if "indptr" in given else None
        if not planned:
            return {**rest, **seen, "links": links}
        plan = plan_attention(rest.pop("cu_seqlens"), rest.pop("cu_clusters"), links=links, **seen)
        return {**rest, "cu_seqlens": plan}

    def terms(given: Tensors, _: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        kept = {name: options[name] for name in ("normalize", "dropout_p", "scale") if name in options}
        return cross_score_terms(**given, **seen, **kept, grad=incoming[0])

    return Case(
        f"{normalize}, {'plan' if planned else 'offsets'}",
        fixed(tensors),
        partial(cross_document_attention, **options),
        partial(cross_document_attention_by_loop, **seen, **options),
        arguments=arguments,
        terms=terms,
        exponents=("q", "k"),
        logits=partial(logits, scale=options.get("scale")),
    )


def packed_linear_row(draw: Draw) -> Case:
    rows, columns, out = draw.size(), draw.size(zero=0.02), draw.size(zero=0.02)
    tensors = {"x": draw.numbers(rows, columns), "weight": draw.numbers(out, columns)}
    tensors |= {"bias": draw.numbers(out)} if draw.chance(0.5) else {}
    tensors |= {"residual": draw.numbers(rows, out)} if draw.chance(0.5) else {}
    arguments = partial(with_packed, own=draw.chance(0.5))
    return Case("packed", fixed(tensors), without_gradients, linear_by_rows, arguments=arguments)


def dropout_add_layer_norm_row(draw: Draw) -> Case:
    rows, columns = draw.size(), draw.size(zero=0.02)
    tensors = {
        "x": draw.numbers(rows, columns),
        "residual": draw.numbers(rows, columns),
        "weight": draw.numbers(columns),
    }
    tensors |= {"bias": draw.numbers(columns)} if draw.chance(0.7) else {}
    # No smaller: of a row whose numbers are all equal the gradient would be beyond 16 bits.
    options = {"dropout_p": draw.pick((0.0, 0.1, 0.5)), "eps": draw.pick((1e-6, 1e-5, 0.1))}
    tensors |= {"seed": torch.tensor([draw.integer(-(2**62), 2**62)])} if options["dropout_p"] else {}
    call, formula = partial(dropout_add_layer_norm, **options), partial(norm_by_formula, **options)
    conditions = Conditions(**options)
    return Case("norm", fixed(tensors), call, formula, terms=conditions.terms, logits=conditions.logits)


def bias_gelu_row(draw: Draw) -> Case:
    rows, columns = draw.size(), draw.size()
    tensors = {"x": draw.numbers(rows, columns)} | ({"bias": draw.numbers(columns)} if draw.chance(0.7) else {})
    return Case("gelu", fixed(tensors), bias_gelu, gelu_by_formula)


def embedding_layer_norm_row(draw: Draw) -> Case:
    rows, columns, tables = draw.size(), draw.size(zero=0.02), draw.integer(1, 3)
    tensors: Tensors = {}
    for name in embedding_cases.NAMES[:tables]:
        length = draw.size(zero=0)
        tensors[f"{name}_ids"] = draw.index(torch.randint(length, (rows,)))
        tensors[f"{name}_table"] = draw.numbers(length, columns)
    tensors |= {"weight": draw.numbers(columns)} | ({"bias": draw.numbers(columns)} if draw.chance(0.7) else {})
    options = {"dropout_p": draw.pick((0.0, 0.1, 0.5)), "eps": draw.pick((1e-6, 1e-5, 0.1))}
    tensors |= {"seed": torch.tensor([draw.integer(-(2**62), 2**62)])} if options["dropout_p"] else {}
    conditions = embedding_cases.EmbeddingConditions(**options)
    call, formula = partial(embedding_layer_norm, **options), partial(embedding_cases.embedding_by_formula, **options)
    return Case("embedding", fixed(tensors), call, formula, terms=conditions.terms, logits=conditions.logits)


def encoder_stack_row(draw: Draw) -> Case:
    offsets, rotary = draw.documents().clamp(max=100), draw.pick((None, None, "halves", "neighbours"))
    tokens, longest = int(offsets[-1]), max(offsets.diff().tolist(), default=0)
    heads, head_dim = draw.integer(1, 3), draw.size(33, zero=0) * (1 if rotary is None else 2)
    kv_heads, columns, wide = draw.pick((1, heads)), draw.size(33, zero=0), draw.size(65, zero=0)

    def matrix(out: int, depth: int) -> Tensor:
        return draw.numbers(out, depth) / depth**0.5

    tensors = {"hidden": draw.numbers(tokens, columns), "cu_seqlens": draw.index(offsets)}
    tensors |= {
        "project": matrix((heads + 2 * kv_heads) * head_dim, columns),
        "merge": matrix(columns, heads * head_dim),
    }
    tensors |= {"project_bias": draw.numbers(len(tensors["project"])), "norm": draw.numbers(columns)}
    tensors |= {"up": matrix(wide, columns), "down": matrix(columns, wide)}
    tensors |= {"gate": matrix(wide, columns)} if draw.chance(0.4) else {}
    if rotary is not None:
        angles = draw.numbers(longest, head_dim)
        tensors |= {"cos": angles.cos(), "sin": angles.sin()}
    if draw.chance(0.5):
        rows, reach = draw.pick((1, 2, 7, 40)), draw.pick((0, 1, 4, 30))
        tensors["index"] = draw.index(torch.from_numpy(draw.random.integers(0, rows, 2 * reach + 1)))
        for name in draw.subset(stack_loops.TABLES):
            tensors[name] = draw.numbers(rows, heads) if name == "bias" else draw.numbers(rows, heads, head_dim)
    layer = stack_loops.Layer(
        heads,
        kv_heads,
        head_dim,
        draw.pick((0.3, head_dim**-0.5)),
        draw.pick((None, None, 0, 2, 20)),
        rotary == "neighbours",
        draw.pick(("gelu", "relu", "silu", "identity")),
        draw.pick(("layer", "layer", "rms")),
    )
    return Case(
        "layer",
        fixed(tensors),
        stack_loops.call,
        layer.by_loop,
        arguments=layer.stack,
        exponents=("hidden", "project", "project_bias", "index", *stack_loops.TABLES),
        logits=layer.logits,
    )


def banded_span_scores_row(draw: Draw) -> Case:
    offsets, columns = draw.documents().clamp(max=40), (draw.size(17), draw.size(17))
    tokens, weighted = int(offsets[-1]), columns[0] != columns[1] or draw.chance(0.5)
    tensors = {"start": draw.numbers(tokens, columns[0]), "end": draw.numbers(tokens, columns[1])}
    tensors |= {"weight": draw.numbers(*columns)} if weighted else {}
    tensors |= {"cu_seqlens": draw.index(offsets)} if draw.chance(0.6) else {}
    names = draw.subset(banded_cases.RANK_ONE) if draw.chance(0.4) else []
    tensors |= {name: draw.numbers(1 if name == "bias" else tokens) for name in names}
    if {"start_scores", "end_scores"} & set(names) and draw.chance(0.3):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in ("start", "end", "weight")}
    options = {"max_width": draw.pick((1, 2, 3, 8, 30))}
    return Case("band", fixed(tensors), partial(banded_cases.call, **options), partial(banded_cases.oracle, **options))


def top_spans_row(draw: Draw) -> Case:
    """Whole numbers, whose scores are exact: which spans are best does not depend on rounding, and ties abound."""
    offsets, columns = draw.documents().clamp(max=40), draw.integer(1, 5)
    tokens = int(offsets[-1])
    shapes = {"start": (tokens, columns), "end": (tokens, columns), "weight": (columns, columns)}
    shapes |= {"start_scores": (tokens,), "end_scores": (tokens,), "bias": (1,)}
    left_out = draw.pick(((), ("weight",), ("bias", "end_scores"), ("start", "end", "weight")))
    tensors = {n: draw.numbers(*s).clamp(-4, 4).round() for n, s in shapes.items() if n not in left_out}
    tensors["cu_seqlens"] = draw.index(offsets)
    per = draw.pick(("document", "start"))
    tensors |= (
        {"k": draw.index(torch.tensor([draw.integer(0, 9) for _ in offsets[1:]], dtype=torch.int64))}
        if per == "document"
        else {}
    )
    options = {"per": per, "max_width": draw.pick((1, 2, 3, 8, 50))}
    options |= {"k": draw.pick((0, 1, 2, 60))} if per == "start" else {}
    return Case(per, fixed(tensors), partial(top_cases.call, **options), partial(top_cases.by_loop, **options))


def prune_spans_row(draw: Draw) -> Case:
    tensors = {"spans": draw.index(draw.spans(30))}
    count = len(tensors["spans"])
    tensors["scores"] = draw.numbers(count).round() if draw.chance(0.5) else draw.numbers(count)
    k, non_crossing = draw.size(33), draw.chance(0.7)
    k_start = draw.pick((None, None, 0, 1, 3))

    def arguments(given: Tensors) -> dict[str, Any]:
        return {**given, "spans": plan_spans(given["spans"])} if planned else dict(given)

    def loop(spans: Tensor, scores: Tensor) -> Tensor:
        if k_start is not None:
            first = spans[:, 0].long() - int(spans[:, 0].min() if count else 0)
            limits = [
                (first * 0, torch.tensor([k])),
                (first, torch.full((int(first.max()) + 1 if count else 1,), k_start)),
            ]
            return pruning.defined(spans[:, 0].long(), spans[:, 1].long() + 1, scores, limits, non_crossing)
        choose = pruning.published if non_crossing else pruning.best
        return torch.tensor(choose(*spans.T.tolist(), scores.tolist(), k) if count else [], dtype=torch.int64)

    planned = draw.chance(0.3) and bool((tensors["spans"][:, 1] >= tensors["spans"][:, 0]).all())
    call = partial(prune_spans, k=k, non_crossing=non_crossing, k_start=k_start)
    return Case("plan" if planned else "spans", fixed(tensors), call, loop, arguments=arguments)


OPERATIONS: dict[str, Callable[[Draw], Case]] = {
    "span_gather": span_gather_row,
    "span_pool": span_pool_row,
    "span_linear": span_linear_row,
    "span_score": span_score_row,
    "banded_span_scores": banded_span_scores_row,
    "prune_spans": prune_spans_row,
    "top_spans": top_spans_row,
    "pair_pool": pair_pool_row,
    "pair_linear": pair_linear_row,
    "document_attention": document_attention_row,
    "cross_document_attention": cross_document_attention_row,
    "packed_linear": packed_linear_row,
    "dropout_add_layer_norm": dropout_add_layer_norm_row,
    "bias_gelu": bias_gelu_row,
    "embedding_layer_norm": embedding_layer_norm_row,
    "encoder_stack": encoder_stack_row,
}
# Backends that have an operation without float64.
WITHOUT_FLOAT64 = {("encoder_stack", "cpu")}
# How often each is drawn: those with kernels more often.
TURNS = tuple(
    name for name in OPERATIONS for _ in range(1 if name in ("banded_span_scores", "prune_spans", "top_spans") else 3)
)


def draw_case(draw: Draw) -> tuple[str, Case]:
    """An operation and a case of it."""
    name = draw.pick(TURNS)
    return name, dataclasses.replace(OPERATIONS[name](draw), drawn=True)
