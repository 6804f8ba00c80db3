"""Triton's kernels with the blocks, loops and roundings that a GPU gets, a case for each of their branches.

The other tests run them in blocks as large as a small case, for a step costs the interpreter the same for any size.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest
import test_attention_by_distance as distance
import test_cross_document_attention as cross
import test_document_attention as document
import torch
from distance_cases import distance_inputs
from linear_cases import LINEAR, MENTION
from linear_cases import row as linear
from op_checks import Case, Place, Setting, check_result, run_setting
from places import gpu_blocks
from pool_cases import ALL, documents, pool_inputs, with_enumeration
from pool_cases import LINEAR as LINEAR_PARTS
from pool_cases import row as pool
from torch import Tensor

from spanbert_kernels.ops import clipped_index, document_attention, plan_attention

HALF, SINGLE = torch.float16, torch.float32
SIDES = {"queries": "tokens", "keys": "tokens"}
FOUR = {"lengths": (34, 0, 3, 21), "clusters": (0, 4), "heads": 1}


def attention(
    name: str, lengths: tuple[int, ...], dim: int, longest: int | None = None, dropout_p: float = 0.0
) -> Case:
    seed = 6 if dropout_p else None
    inputs = partial(document.attention_inputs, lengths=lengths, heads=1, dim=dim, seed=seed)
    return document.row(name, inputs, dropout_p=dropout_p, max_seqlen=longest)


def clusters(name: str, dim: int, build: dict[str, Any] | None = None, **options: Any) -> Case:
    return cross.row(name, build={**FOUR, "dim": dim, **(build or {})}, **{**SIDES, **options})


def terms(name: str, dim: int, *tables: str, **options: Any) -> Case:
    inputs = partial(distance_inputs, lengths=(40, 3), heads=1, dim=dim, seed=5)
    if tables:
        inputs = partial(inputs, index=clipped_index(9), tables=tables)
    return distance.row(name, inputs, **options)


spans = partial(pool_inputs, tokens=80, columns=70, spans=90, width=9, table=3)
# All spans of 22 tokens, in two programs: of the first all rows and columns of a step are there.
EVERY_SPAN = {"widest": 6, "arguments": partial(with_enumeration, widest=6), "outputs": 140}
PAIRS = {"widest": 2, "arguments": partial(with_enumeration, widest=2), "outputs": 35}
PAIRWISE = {"normalize": "pairwise"}
LINKS = {"links": ((3, 2), (), (3,), (0, 3))}
TABLES = ("bias", "keys", "queries")
EVERYDAY = (
    # Whole rows, by the longest document and the columns of a head.
    (HALF, attention("whole 32", (20, 0, 3), 20, 20, 0.3)),
    (HALF, attention("whole 64", (40, 3), 20, 40)),
    (HALF, attention("whole 128", (70, 3), 20, 70, 0.3)),
    (HALF, attention("whole 64, wide", (40, 3), 70, 40)),
    (HALF, attention("whole 128, wide", (70, 3), 70, 70)),
    # Loops, by the size of an element, the columns of a program, and whether a head has more.
    (HALF, attention("words", (130, 3), 20, 130, 0.3)),
    (HALF, attention("whole and loop", (20, 130, 70), 20, 130)),
    (HALF, attention("loop", (70, 1), 20)),
    (HALF, attention("loop, wide", (40, 3), 70)),
    (HALF, attention("loop, widest", (40, 3), 130)),
    (SINGLE, attention("loop", (40, 3), 20, None, 0.3)),
    (SINGLE, attention("loop, wide", (20, 3), 70)),
    # Anchors, links and softmaxes of their own.
    (HALF, clusters("joint", 20)),
    (HALF, clusters("anchors to tokens", 20, queries="anchors")),
    (HALF, clusters("tokens to anchors, links", 20, LINKS, keys="anchors")),
    (HALF, clusters("pairwise", 20, **PAIRWISE)),
    (HALF, clusters("pairwise, wide", 70, **PAIRWISE)),
    (SINGLE, clusters("joint", 20)),
    (SINGLE, clusters("pairwise", 20, **PAIRWISE)),
    # Windows and tables.
    (HALF, terms("window", 20, window=9)),
    (HALF, terms("window, wide", 70, window=9, dropout_p=0.3)),
    (HALF, terms("tables", 20, *TABLES, dropout_p=0.3)),
    (HALF, terms("bias", 20, "bias")),
    (SINGLE, terms("tables", 20, *TABLES)),
    # Products of spans and tokens, walks along spans, and sums of the width table.
    (HALF, pool("banded", ["mean", "attention", "width"], partial(spans, heads=2), planned=True)),
    (SINGLE, pool("banded", LINEAR_PARTS, spans, planned=True)),
    (HALF, pool("walk", ALL, partial(spans, heads=1))),
    (SINGLE, linear("linear", LINEAR, partial(spans, heads=2), outputs=70, activation="gelu")),
    (HALF, linear("score", MENTION, partial(spans, heads=1), outputs=70, scores=3, seed=7, dropout_p=0.3)),
    # 71 tokens, of which a program has 64 and goes through those before them whose spans reach into its own.
    (SINGLE, linear("enumerated gradient", MENTION, lambda size: documents(10), **PAIRS)),
    (HALF, linear("enumerated score", MENTION, lambda size: documents(3), scores=5, **EVERY_SPAN)),
)
REST = (
    (HALF, attention("loop, dropout", (70, 3), 20, None, 0.3)),
    (HALF, clusters("anchors", 70, queries="anchors", keys="anchors")),
    (HALF, clusters("joint, dropout", 20, {"seed": 3}, dropout_p=0.3)),
    (HALF, clusters("joint, wide", 70)),
    (HALF, clusters("joint, widest", 130, LINKS)),
    (HALF, clusters("pairwise, links", 20, {**LINKS, "seed": 3}, **PAIRWISE, dropout_p=0.3)),
    (SINGLE, clusters("joint, wide", 70)),
    (SINGLE, clusters("pairwise, wide", 70, **PAIRWISE)),
    (HALF, terms("tables, wide", 70, *TABLES, window=9)),
    (HALF, terms("bias, wide", 70, "bias", window=9)),
    (SINGLE, terms("window", 20, window=9)),
    (SINGLE, terms("window, wide", 70, window=9)),
    (SINGLE, terms("bias", 20, "bias")),
    (SINGLE, pool("walk", ALL, partial(spans, heads=1))),
    (SINGLE, linear("enumerated", ["mean", *MENTION], lambda size: documents(3), activation="gelu", **EVERY_SPAN)),
    (HALF, linear("linear", LINEAR, partial(spans, heads=2), outputs=70, activation="gelu")),
)


@pytest.mark.parametrize("backend", [Place("triton", "interpreter")], indirect=True, ids=str)
@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        pytest.param(dtype, case, id=f"{case.name}, {str(dtype).removeprefix('torch.')}", marks=marks)
        for table, marks in ((EVERYDAY, ()), (REST, (pytest.mark.slow,)))
        for dtype, case in table
    ],
)
def test_values_and_gradients(backend: str, dtype: torch.dtype, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from spanbert_kernels.ops.attention import triton_joint

    monkeypatch.setattr(triton_joint, "FEW_PROGRAMS", 0)
    setting = Setting(case, dtype=dtype)
    with gpu_blocks():
        result = run_setting(setting, backend)
    check_result(setting, backend, result)


def test_each_document_is_one_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch of all lengths, whose tiles of short documents begin at odd places of the list."""
    from spanbert_kernels.ops.attention import triton_joint

    monkeypatch.setattr(triton_joint, "FEW_PROGRAMS", 0)
    lengths = torch.tensor([64, 129, 1, 65, 0, 200, 128])
    plan = plan_attention(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
    q = torch.empty(plan.num_tokens, 2, 64, dtype=HALF)
    taken = []
    with gpu_blocks():
        wholes, loops = triton_joint.shares_of(q, plan.work(True), triton_joint.WHOLE_BACKWARD)
    assert loops is not None
    for longest, work in [*((options.block.N, share) for options, share in wholes), (200, loops)]:
        assert work.query_tiles is work.key_tiles
        of_tiles = work.query_tiles[:, 0].unique()
        taken.append(sorted(of_tiles[lengths[of_tiles] <= longest].tolist()))
        assert work.query_tiles.data_ptr() % 16 == plan.work(True).query_tiles.data_ptr() % 16
    assert taken == [[0, 2], [3, 6], [1, 5]]


def test_documents_longer_than_a_caller_says_go_through_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where nobody looks: all gradients are written, and those of long documents are as without a word."""
    from spanbert_kernels.ops import attention_plans

    importlib.import_module("spanbert_kernels.ops.attention.triton_joint")  # `gpu_blocks` changes what is there
    offsets = torch.tensor([0, 3, 43])
    leaves = [x.half().requires_grad_() for x in torch.randn(3, 43, 1, 16, generator=torch.Generator().manual_seed(2))]

    def run(**said: int) -> tuple[Tensor, ...]:
        output = document_attention(*leaves, offsets, backend="triton", **said)
        return torch.autograd.grad(output, leaves, torch.ones_like(output))

    with gpu_blocks():
        monkeypatch.setattr(attention_plans, "can_look", lambda offsets: False)
        found, expected = run(max_seqlen=20), run()  # what nobody writes is not what an earlier run left
    for ours, alone in zip(found, expected, strict=True):
        assert torch.equal(ours[3:], alone[3:])
        torch.testing.assert_close(ours[:3], alone[:3], rtol=0, atol=2e-3)
