"""Attention with a window and terms by distance in Triton: the kernels of `triton_joint.py` with these, and those of
`triton_tables.py`. Always loops: the tables' rows leave no room for a whole row of scores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops.attention import triton_launch
from spanbert_kernels.ops.attention.operators import distance_attention_backward, distance_attention_forward, new_lse
from spanbert_kernels.ops.attention.relative import DistanceTerms
from spanbert_kernels.ops.attention.triton_joint import (
    BACKWARD,
    FORWARD,
    FORWARD_WITH_DROPOUT,
    BackwardLoops,
    backward,
    forward,
    launch_backward,
    launch_forward,
)
from spanbert_kernels.ops.attention.triton_launch import SHORT_OF_REGISTERS, Loops, loop_options, mask_of, rows_of
from spanbert_kernels.ops.attention.triton_tables import DistanceSums, rows_of_distances, table_backward
from spanbert_kernels.ops.attention.triton_tiles import Statistics, Terms
from spanbert_kernels.ops.attention.work import TILE_ROWS, AttentionWork
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import contiguous, on, philox_of

# In a window, where a second launch adds row by row, heads of 128 columns have fewer rows in a block.
FORWARD_IN_WINDOW: Loops = {**FORWARD, (16, 128, False): (16, 32, 8, 1)}
FORWARD_IN_WINDOW_WITH_DROPOUT: Loops = {**FORWARD_WITH_DROPOUT, (16, 128, False): (16, 32, 8, 1)}
BACKWARD_IN_WINDOW = BackwardLoops(
    {**BACKWARD.sums, (32, 64, False): (16, 64 if SHORT_OF_REGISTERS else 32, 8, 1)},
    {**BACKWARD.queries, (32, 64, False): (16, 64, 8, 1)},
    {**BACKWARD.keys, (16, 128, False): (32, 16, 8, 1)},
)
BY_TABLE: Loops = {
    (16, 64, False): (32, 32, 4, 1),
    (16, 128, True): (32, 16, 8, 1),
    (32, 16 if SHORT_OF_REGISTERS else 32, True): (16, 16, 8, 1),
}
BACKWARD_BY_TABLE = BackwardLoops({**BY_TABLE, (16, 64, False): (16, 32, 4, 1)}, BY_TABLE, BY_TABLE)
# As many queries as distances: a band has rows of a power of two.
TABLES: Loops = {
    (16, 64, False): (16, 16, 4, 1),
    (16, 128, True): (16, 16, 4, 1),
    (32, 16, True): (16, 16, 4, 1),
}
TABLES_OF_BIAS: Loops = {
    (16, 64, False): (32, 32, 8, 1),
    (16, 128, True): (32, 32, 8, 1),
    (32, 16, True): (32, 32, 8, 1),
}
PROGRAMS = 2048  # that the work of the tables' gradients is cut into, as far as it goes
MOST_PIECES = 32
SUMMED_ROWS, SUMMED_DISTANCES, SUMMED_COLUMNS = 16, 32, 64  # of a program of the last sums


def terms_of(terms: DistanceTerms, q: Tensor, work: AttentionWork) -> Terms:
    """Terms for a kernel; a window that nothing lies behind is none."""
    longest = work.max_seqlen if work.max_seqlen > 0 else q.shape[0]
    window = None if not 0 <= terms.window < longest - 1 else terms.window
    if terms.index is None:
        return Terms(window, None, None, None, None, None, None)
    tables = [contiguous(table) for table in terms[2:]]
    rows, bias = next(table.shape[0] for table in tables if table is not None), tables[0]
    if bias is not None:  # on a GPU nobody has looked at the index
        tables[0] = bias[terms.index.clamp(0, rows - 1)].T.contiguous()
    return Terms(window, contiguous(terms.index), terms.index.shape[0] // 2, rows, *tables)


def has_products(terms: Terms) -> bool:
    """Whether rows of tables are multiplied, which a bias's are not."""
    return terms.keys is not None or terms.queries is not None


def wants_registers(terms: Terms) -> bool:
    """Whether blocks are those of BY_TABLE: a bias is little, but not on top of what a window takes."""
    return has_products(terms) or (terms.bias is not None and terms.window is not None)


@distance_attention_forward.triton
def by_distance_forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, terms: DistanceTerms, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    if q.numel() == 0:
        return triton_launch.new_rows(q, anchors=False), new_lse(q)
    own = terms_of(terms, q, work)
    if own.index is None and own.window is None:
        return forward(q, k, v, work, scale, dropout)
    loops = FORWARD_IN_WINDOW if dropout.seed is None else FORWARD_IN_WINDOW_WITH_DROPOUT
    if wants_registers(own):
        loops = BY_TABLE
    return launch_forward(q, k, v, work, own, scale, dropout, [(loop_options(q, loops), work)])


@distance_attention_backward.triton
def by_distance_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    terms: DistanceTerms,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tables = [q.new_empty(0) if table is None else table.new_empty(table.shape) for table in terms[2:]]
    if q.numel() == 0:
        grads = triton_launch.new_gradients(q, k, v, work)
        return (*grads, *(table.zero_() for table in tables))  # type: ignore[return-value]
    own = terms_of(terms, q, work)
    if own.index is None and own.window is None:
        return (*backward(grad_output, q, k, v, lse, work, scale, dropout), *tables)  # type: ignore[return-value]
    grads = triton_launch.new_gradients(q, k, v, work)
    statistics = Statistics(lse, torch.empty_like(lse), torch.empty_like(lse))
    shared: dict[str, Any] = {"terms": own, "dropout": philox_of(dropout), "scale": scale}
    shared |= rows_of(grad_output=grad_output, q=q, k=k, v=v)
    loops = BACKWARD_BY_TABLE if wants_registers(own) else BACKWARD_IN_WINDOW
    launch_backward(grads, q, work, loops, statistics, **shared)
    if own.index is not None:
        launch_tables(tables, q, work, **shared, statistics=statistics)
    return (*grads, *tables)  # type: ignore[return-value]


def launch_tables(gradients: list[Tensor], like: Tensor, work: AttentionWork, terms: Terms, **arguments: Any) -> None:
    """Fill the gradients of bias, keys and queries, as far as there are such tables."""
    options = loop_options(like, TABLES if has_products(terms) else TABLES_OF_BIAS)
    block, mask, (heads, head_dim) = options.block, mask_of(work, keys=False, slots=None), like.shape[1:]
    assert terms.reach is not None
    # What the work is cut into hangs on the call alone, never on the GPU: sums have one order.
    runs = triton.cdiv(2 * terms.reach + 1, block.N) + 2
    parts = triton.cdiv(TILE_ROWS, block.M)
    size = len(mask.tiles) * parts
    pieces = max(1, min(PROGRAMS // (heads * runs), MOST_PIECES, size))
    places = (pieces, heads, runs * block.N)
    sums = DistanceSums(
        *(
            None if table is None else like.new_empty(*places, *table.shape[2:], dtype=torch.float32)
            for table in (terms.bias, terms.keys, terms.queries)
        )
    )
    with on(like.device):
        start(table_backward, pieces * heads * runs, triton.cdiv(head_dim, block.D))(
            **arguments,
            terms=terms,
            sums=sums,
            mask=mask,
            query_rows=like.shape[0],
            num_documents=work.documents.shape[1],
            heads=heads,
            head_dim=head_dim,
            parts=parts,
            include_self=1,
            size=size,
            pieces=pieces,
            runs=runs,
            **options.arguments,
        )
        for found, gradient in zip(sums, gradients, strict=True):
            if found is not None:
                sum_rows(found.sum(0), gradient, terms, block.N)


def sum_rows(sums: Tensor, gradient: Tensor, terms: Terms, skipped: int) -> None:
    """A table's gradient from sums by distance, the first `skipped` of which lie before the reach."""
    heads, distances = sums.shape[:2]
    rows, columns = gradient.shape[0], gradient[0, 0].numel()
    block = (SUMMED_ROWS, SUMMED_DISTANCES, SUMMED_COLUMNS if columns > 16 else 16)
    options = triton_launch.options_of(torch.float32, block, 4, 1, chunked=False, whole=False)
    grid = (triton.cdiv(rows, block[0]), heads, triton.cdiv(columns, block[2]))
    start(rows_of_distances, *grid)(
        sums=sums,
        gradient=gradient,
        index=terms.index,
        reach=terms.reach,
        rows=rows,
        heads=heads,
        columns=columns,
        distances=distances,
        skipped=skipped,
        **options.arguments,
    )
