"""Attention's Triton kernels draw dropout's entries as the generator says, for the blocks that a GPU gets."""

from __future__ import annotations

import pytest
import torch

from spanbert_kernels.ops import library, philox

pytest.importorskip("triton", reason="Triton is not installed")
if not library.interpreted():
    pytest.skip("kernels are compiled here", allow_module_level=True)

import triton
import triton.language as tl

from spanbert_kernels.ops.attention.triton_dropout import dealt_draws, dealt_entries, kept_entries
from spanbert_kernels.ops.attention.triton_tiles import block_rows
from spanbert_kernels.ops.triton_arguments import philox_of

WAYS = ("packed", "packed, keys first", "dealt")


@triton.jit
def draw(kept, rows, dropout, firsts, M: tl.constexpr, N: tl.constexpr, WAY: tl.constexpr):
    first_query = tl.load(firsts)
    first_key = tl.load(firsts + 1)
    head = tl.load(firsts + 2)
    row, _ = block_rows(first_key, first_key + N, None, 0, dropout, N, WAY == 2)
    tl.store(rows + tl.arange(0, N), row)
    if WAY == 2:
        draws = dealt_draws(dropout, first_query, first_key, head, M, N)
        found = dealt_entries(dropout, draws, M, N)
    else:
        found = kept_entries(dropout, first_query, first_key, head, M, N, WAY == 1)
    if WAY == 1:
        found = tl.trans(found)
    tl.store(kept + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], found.to(tl.int32))


@pytest.mark.parametrize("way", range(len(WAYS)), ids=WAYS)
def test_entries_are_the_generator_s(way: int) -> None:
    dropout = philox.Dropout(0.3, torch.tensor([-(2**62) - 3]))
    first_query, head = torch.tensor(37), torch.tensor(3)
    sizes = ((16, 16), (64, 128), (128, 64))
    for (queries, keys), first_key in zip(sizes, (8, 5, 2**33 + 7), strict=True):
        kept, rows = (torch.zeros(shape, dtype=torch.int32) for shape in ((queries, keys), (keys,)))
        draw[(1,)](kept, rows, philox_of(dropout), torch.tensor([first_query, first_key, head]), queries, keys, way)
        assert rows.sort().values.tolist() == list(range(keys))
        query = (first_query + torch.arange(queries))[:, None]
        expected = philox.keep(dropout.seed, dropout.dropout_p, head, query, first_key + rows.long())
        assert torch.equal(kept.bool(), expected)
