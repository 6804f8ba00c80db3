"""Wrong kinds of arguments: every argument of every public operation refuses each, by name, before any kernel runs.

Operations and their arguments are read from their signatures. A new operation needs a row in CALLS, or a `good_call`
beside its own tests, a new argument an entry in KINDS, or the test fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from spanbert_kernels import ops

T, H, OUT = 6, 4, 5
OFFSETS = torch.tensor([0, 2, 6])
SPANS = torch.tensor([[0, 1], [2, 5], [3, 3]])
PAIRS = torch.tensor([[1, 3], [2, 0], [0, 5]])
MASK = torch.ones(3, dtype=torch.bool)
PARTS = ["start", "mean", "attention", "width"]


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def pooling() -> dict[str, Any]:
    table, scores = ones(3, 2), ones(T)
    return {"hidden": ones(T, H), "spans": SPANS, "parts": PARTS, "scores": scores, "width_embedding": table}


def layer() -> dict[str, Any]:
    return {**pooling(), "weight": ones(OUT, 3 * H + 2), "bias": ones(OUT)}


def heads() -> dict[str, Any]:
    return {"q": ones(2, 1, H), "k": ones(2, 1, H), "v": ones(2, 1, H), "cu_seqlens": OFFSETS}


SEEDED = {"dropout_p": 0.5, "seed": torch.tensor([1])}
LINKS = (torch.tensor([0, 1, 2]), torch.tensor([1, 0]))

# A call of every public operation that works.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "anchor_indices": lambda: {"cu_seqlens": OFFSETS},
    "bucketed_index": dict,
    "clipped_index": lambda: {"max_distance": 4},
    "banded_span_scores": lambda: {
        "start": ones(T, H), "end": ones(T, OUT), "weight": ones(H, OUT), "max_width": 3, "cu_seqlens": OFFSETS,
        "start_scores": ones(T), "end_scores": ones(T), "bias": ones(1),
    },
    "cross_document_attention": lambda: {**heads(), **SEEDED, "cu_clusters": torch.tensor([0, 2]), "links": LINKS},
    "document_attention": lambda: {**{name: ones(T, 1, H) for name in "qkv"}, "cu_seqlens": OFFSETS, **SEEDED},
    "document_attention_qkv": lambda: {
        "qkv": ones(T, 3, 2, H).requires_grad_(), "cu_seqlens": OFFSETS, **SEEDED
    },
    "enumerate_spans": lambda: {"cu_seqlens": OFFSETS, "max_width": 3},
    "log_bucketed_index": lambda: {"buckets": 4, "max_distance": 9},
    "pack_weight": lambda: {"weight": ones(OUT, H)},
    "packed_linear": lambda: {
        "x": ones(T, H), "weight": ops.pack_weight(ones(OUT, H)), "bias": ones(OUT), "residual": ones(T, OUT)
    },
    "pair_linear": lambda: {
        "first": ones(T, H), "second": ones(T, 3), "pairs": PAIRS, "parts": ["x", "y", "feature"],
        "weight": ones(OUT, H + 5), "bias": ones(OUT), "features": ones(3, 2), "feature_rows": PAIRS[:, 0]
    },
    "pair_pool": lambda: {
        "first": ones(T, H), "second": ones(T, 3), "pairs": PAIRS, "parts": ["x", "y", "feature"],
        "features": ones(3, 2), "feature_rows": PAIRS[:, 0], "first_sentinel": ones(H), "second_sentinel": ones(3),
        "mask": MASK
    },
    "plan_attention": lambda: {"cu_seqlens": OFFSETS, "cu_clusters": torch.tensor([0, 2]), "links": LINKS},
    "prune_spans": lambda: {
        "spans": SPANS, "scores": ones(3), "k": torch.tensor([1, 1]), "cu_seqlens": OFFSETS, "cu_sentences": OFFSETS,
        "k_sentence": torch.tensor([1, 1]), "k_start": 1,
    },
    "plan_spans": lambda: {"spans": SPANS, "num_tokens": T, "cu_seqlens": OFFSETS, "mask": MASK},
    "span_gather": lambda: {"hidden": ones(T, H), "spans": SPANS},
    "span_linear": lambda: {**layer(), "cu_seqlens": OFFSETS},
    "span_pool": lambda: {**pooling(), "mask": MASK},
    "span_score": lambda: {
        **layer(), "out_weight": ones(2, OUT), "out_bias": ones(2), **SEEDED, "cu_seqlens": OFFSETS,
        "norm": (ones(OUT), ones(OUT), 1e-5)
    },
    "top_spans": lambda: {
        "start": ones(T, H), "end": ones(T, OUT), "weight": ones(H, OUT), "max_width": 3, "k": torch.tensor([1, 1]),
        "cu_seqlens": OFFSETS, "start_scores": ones(T), "end_scores": ones(T), "bias": ones(1),
    },
    "spans_to_limits": lambda: {"starts": PAIRS[:, 0], "limits": PAIRS[:, 1], "num_tokens": T},
}  # fmt: skip


class Kind(NamedTuple):
    """What an argument may be: not one of `wrong`, nor what `also` makes of the good value."""

    wrong: dict[str, Any]
    also: Callable[[Any], dict[str, Any]] = lambda good: {}
    optional: bool = False


def generator() -> Iterator[str]:
    yield from PARTS


NO_TENSOR: dict[str, Any] = {
    "a float": 1.0, "an integer": 3, "a flag": True, "a string": "mean", "an array": np.ones(3), "a list": [1.0, 2.0],
    "a generator": generator(), "an object": object(),
}  # fmt: skip


def like_floating(good: Tensor) -> dict[str, Any]:
    return {
        "int64": good.long(), "bool": good.bool(), "complex": good.to(torch.complex64), "meta": good.to("meta"),
        "a dimension more": good[None, None], "a scalar": torch.tensor(1.0), "a row more": torch.cat([good, good[:1]]),
    }  # fmt: skip


def like_index(good: Tensor) -> dict[str, Any]:
    return {
        "int16": good.short(), "float32": good.float(), "bool": good.bool(), "meta": good.to("meta"),
        "a dimension more": good[None], "a scalar": torch.tensor(1), "negative": good - 100,
        "far outside": good + 2**40, "the largest": torch.full_like(good, 2**63 - 1),
        "the smallest": torch.full_like(good, -(2**63)),
    }  # fmt: skip


def offsets_like(good: Tensor) -> dict[str, Any]:
    return {**like_index(good), "none": good[:0], "falling": good.flip(0), "a pair": (good, good)}


def but(kind: Kind, *names: str) -> Kind:
    """Without what is right for an argument."""

    def also(good: Any) -> dict[str, Any]:
        return {name: value for name, value in kind.also(good).items() if name not in names}

    return Kind({name: value for name, value in kind.wrong.items() if name not in names}, also, kind.optional)


def whole(least: int) -> Kind:
    numbers = {"below": least - 1, "negative": -3, "huge": 2**63, "a fraction": 2.5, "nan": float("nan")}
    return but(Kind({**NO_TENSOR, **numbers, "a tensor": ones(2)}), "an integer")


FLOATING = Kind(NO_TENSOR, like_floating)
OPTIONAL = Kind(NO_TENSOR, like_floating, optional=True)
# Whose rows, or whose rows and device, nothing else says.
ROWS = but(FLOATING, "a row more")
ALONE = but(FLOATING, "meta", "a row more")
BUDGETS = but(Kind(whole(0).wrong, like_index), "huge", "far outside", "the largest")
COUNTED = Kind(NO_TENSOR, lambda good: {
    "int64": good.long(), "float32": good.float(), "meta": good.to("meta"), "a dimension more": good[None],
    "a scalar": torch.tensor(True), "one more": torch.cat([good, good[:1]]),
})  # fmt: skip
TABLE = but(FLOATING, "a row more")
OPTIONAL_ROWS = but(OPTIONAL, "a row more")
INDEX, OFFSET = Kind(NO_TENSOR, like_index), Kind(NO_TENSOR, offsets_like)
FLAG = Kind({"an integer": 1, "nothing": None, "a string": "no", "a tensor": torch.tensor([True]), "numpy": np.ones(1)})
NUMBER = Kind({"nan": float("nan"), "infinite": float("inf"), "a flag": True, "a string": "1", "a tensor": ones(1),
               "complex": 1j, "a list": [1.0], "beyond floats": 10**400})  # fmt: skip
CHOICE = Kind({"unknown": "everything", "an integer": 1, "a flag": False, "no letters": "", "a list": ["last"],
               "a tensor": ones(2), "bytes": b"relu", "a generator": generator()})  # fmt: skip
FUNCTION = Kind({"an integer": 3, "a string": "width", "a tensor": ones(3), "a list": [0, 1]}, lambda good: {
    "other device": lambda widths: (widths * 0).to("meta"), "float": lambda widths: widths * 0.0,
    "int16": lambda widths: (widths * 0).short(), "bool": lambda widths: widths > 5, "short": lambda widths: widths[:1],
    "a column": lambda widths: (widths * 0)[:, None], "negative": lambda widths: widths * 0 - 1,
    "beyond": lambda widths: widths * 0 + 3, "nothing": lambda widths: None, "a list": lambda widths: widths.tolist(),
})  # fmt: skip
NAMES = Kind({**NO_TENSOR, "none": [], "unknown": ["median"], "twice": ["mean", "mean"], "integers": [0, 1],
              "nothing": None, "a set": {"mean"}, "bytes": b"mean", "in a list": [["mean"]]})  # fmt: skip
SEED = Kind(NO_TENSOR, lambda good: {
    "int32": good.int(), "float": good.float(), "two": torch.tensor([1, 2]), "none": good[:0], "meta": good.to("meta")
}, optional=True)  # fmt: skip
NORM = Kind({**NO_TENSOR, "two": (ones(OUT), ones(OUT)), "no tensors": (1, 2, 3)}, lambda good: {
    "int64": (good[0].long(), *good[1:]), "short": (good[0], good[1][:1], good[2]),
    "a column": (good[0][:, None], *good[1:]), "meta": (good[0].to("meta"), *good[1:]),
    "no number": (*good[:2], "1"), "nan": (*good[:2], float("nan")),
}, optional=True)  # fmt: skip
CSR = Kind({**NO_TENSOR, "one": (OFFSETS,), "three": (OFFSETS, OFFSETS, OFFSETS), "no tensors": (1, 2)}, lambda good: {
    "float offsets": (good[0].float(), good[1]), "float targets": (good[0], good[1].float()),
    "meta": (good[0].to("meta"), good[1].to("meta")), "beyond": (good[0], good[1] + 5), "short": (good[0][:1], good[1]),
    "negative": (good[0], good[1] - 5), "a tensor": good[0],
}, optional=True)  # fmt: skip

# Every argument, by name, or by "operation.name" where it means something of its own.
KINDS: dict[str, Kind] = {
    "activation": CHOICE,
    "backend": CHOICE,
    "bias": OPTIONAL,
    "banded_span_scores.bias": but(OPTIONAL, "a scalar"),
    "top_spans.bias": but(OPTIONAL, "a scalar"),
    "buckets": whole(4),
    "cu_clusters": OFFSET,
    "cu_seqlens": OFFSET,
    "cu_sentences": OFFSET,
    "anchor_indices.cu_seqlens": but(OFFSET, "meta", "far outside"),
    "dropout_p": Kind({**NUMBER.wrong, "one": 1.0, "negative": -0.1}),
    "dropout_add_layer_norm.residual": FLOATING,
    "dropout_add_layer_norm.weight": FLOATING,
    "end": FLOATING,
    "end_inclusive": FLAG,
    "end_scores": OPTIONAL,
    "eps": Kind({**NUMBER.wrong, "negative": -1e-9}),
    "feature_rows": INDEX,
    "features": ROWS,
    "first": whole(0),
    "pair_linear.first": ROWS,
    "pair_pool.first": ROWS,
    "first_sentinel": OPTIONAL,
    "group": Kind({"a number": -100, "a string": "world", "a tensor": ones(3)}),
    "hidden": ALONE,
    "include_self": FLAG,
    "k": FLOATING,
    "prune_spans.k": BUDGETS._replace(optional=True),
    "top_spans.k": BUDGETS,
    "k_sentence": BUDGETS,
    "k_start": whole(0),
    "keys": CHOICE,
    "last": whole(0),
    "limits": INDEX,
    "links": CSR,
    "mask": COUNTED,
    "max_distance": whole(1),
    "max_seqlen": whole(1),
    "max_width": whole(1),
    "non_crossing": FLAG,
    "norm": NORM,
    "padding_idx": but(Kind(whole(0).wrong, optional=True), "nothing"),
    "position_ids": INDEX._replace(optional=True),
    "position_table": OPTIONAL_ROWS,
    "token_ids": INDEX,
    "token_table": TABLE,
    "type_ids": INDEX._replace(optional=True),
    "type_table": OPTIONAL_ROWS,
    "embedding_layer_norm.weight": FLOATING,
    "normalize": CHOICE,
    "num_tokens": whole(0),
    "out_bias": but(OPTIONAL, "a scalar"),
    "out_weight": ROWS,
    "padded": FLAG,
    "pairs": INDEX,
    "parts": NAMES,
    "per": CHOICE,
    "precision": Kind(CHOICE.wrong),
    "q": FLOATING,
    "qkv": ALONE,
    "queries": CHOICE,
    "relative": Kind({**NO_TENSOR, "a tensor": ones(3), "a tuple": (torch.zeros(3).int(), ones(1, 1))}),
    "residual": OPTIONAL,
    "return_lse": FLAG,
    "return_weights": FLAG,
    "scale": NUMBER,
    "scores": FLOATING,
    "second": but(OPTIONAL, "a row more"),
    "second_sentinel": OPTIONAL,
    "seed": SEED,
    "spans": INDEX,
    "stack": Kind({**NO_TENSOR, "a tensor": ones(OUT, H)}),
    "start": FLOATING,
    "start_scores": OPTIONAL,
    "starts": INDEX,
    "v": FLOATING,
    "validate": FLAG,
    "weight": ROWS,
    "pack_weight.weight": ALONE,
    "packed_linear.weight": Kind({**NO_TENSOR, "a tensor": ones(OUT, H)}),
    "which": CHOICE,
    "window": whole(0),
    "width_embedding": ROWS,
    "width_rows": FUNCTION,
    "x": ALONE,
}

PUBLIC = {
    name: getattr(ops, name)
    for name in ops.__all__
    if inspect.isfunction(getattr(ops, name))
}  # fmt: skip
CALLS |= {name: import_module(f"test_{name}").good_call for name in PUBLIC.keys() - CALLS.keys()}


def kind_of(operation: str, argument: str) -> Kind:
    return KINDS.get(f"{operation}.{argument}") or KINDS[argument]


def arguments_of(call: Callable[..., Any]) -> list[str]:
    """Their names, also of those that a function passes on."""
    found = []
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            options = parameter.annotation.removeprefix("Unpack[").removesuffix("]")
            found += vars(inspect.getmodule(call))[options].__annotations__
        else:
            found.append(name)
    return found


ARGUMENTS = [(name, argument) for name, call in PUBLIC.items() for argument in arguments_of(call)]


def test_every_operation_has_a_call_that_works() -> None:
    assert sorted(CALLS) == sorted(PUBLIC)
    for name, call in PUBLIC.items():
        call(**CALLS[name]())


@pytest.mark.parametrize(("operation", "argument"), ARGUMENTS, ids=".".join)
def test_no_wrong_kind_is_taken(operation: str, argument: str) -> None:
    kind, good = kind_of(operation, argument), CALLS[operation]()
    wrong = {**kind.wrong, **kind.also(good.get(argument))}
    if argument in good and not kind.optional and good[argument] is not None:
        parameter = inspect.signature(PUBLIC[operation]).parameters.get(argument)
        if parameter is not None and parameter.default is parameter.empty and argument != "weight":
            wrong["nothing at all"] = None
    taken = []
    for what, value in wrong.items():
        try:
            PUBLIC[operation](**{**good, argument: value})
        except (TypeError, ValueError) as error:
            if argument not in str(error) or "unexpected keyword" in str(error):
                taken.append(f"{what}: not named in {error}")
        except Exception as error:
            taken.append(f"{what}: {type(error).__name__}: {error}")
        else:
            taken.append(f"{what}: taken")
    assert not taken, "\n".join(taken)


@pytest.mark.parametrize("operation", [n for n, a in ARGUMENTS if a == "end_inclusive" and n != "plan_spans"])
def test_a_plan_takes_no_word_about_its_ends(operation: str) -> None:
    for plan in (ops.plan_spans(SPANS, num_tokens=T), ops.enumerate_spans(torch.tensor([0, 1, 2, 3]), 1)):
        with pytest.raises(ValueError, match="end_inclusive=False is for a span tensor"):
            PUBLIC[operation](**{**CALLS[operation](), "spans": plan, "end_inclusive": False})


@pytest.mark.parametrize("operation", [n for n, a in ARGUMENTS if a == "spans" and n != "prune_spans"])
@pytest.mark.parametrize(("start", "end"), [(0, 2**63 - 1), (7, 4), (7, 6), (2**63 - 1, 0), (-1, -5), (5, 6), (6, 6)])
def test_a_span_lies_inside_the_tokens_and_an_empty_one_starts_there(operation: str, start: int, end: int) -> None:
    spans = torch.tensor([[0, 1], [start, end], [6, 5]])
    with pytest.raises(ValueError, match=f"span 1 covers tokens {start} to .*, but hidden has 6 tokens"):
        PUBLIC[operation](**{**CALLS[operation](), "spans": spans})


@pytest.mark.parametrize("operation", ["plan_spans", "prune_spans"])
def test_a_span_crosses_no_border_of_documents(operation: str) -> None:
    for spans, row in (([[0, 1], [1, 2], [2, 5]], 1), ([[2, 5], [0, 0], [0, 5]], 2)):
        with pytest.raises(ValueError, match=f"span {row} covers tokens .*, not in one document"):
            PUBLIC[operation](**{**CALLS[operation](), "spans": torch.tensor(spans)})
