"""Attention's forward kernel in Triton, and what all attention kernels share: tiles, key ranges, dropout.

A program takes a tile of one document's query rows and a head through the rows of all keys that they see, with the
online softmax of FlashAttention-2 (Dao 2023), in base 2. The keys of a cluster lie in one range of rows, or in two
where a document does not see itself; with links there is a range for each. Nothing that a document does not see is read
into its tiles, so no Inf or NaN can reach it by a weight of 0. A document that sees itself alone and is short enough
has the whole row of its scores on chip, WHOLE, and nothing is rescaled.

Letters of shapes: Q and K rows of a block of queries and of keys, C columns of a head, padded to a power of two. A head
that is wider is CHUNKED: a program makes C columns of the results and goes through all for its scores.
Dropout: `ops/philox.py`, four keys a draw.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def find_tile(tiles, bounds, documents, heads, parts, BLOCK: tl.constexpr):
    """A program's document, head, first row, and the row behind the document's last, or none: first = last."""
    program = tl.program_id(0)
    tile = tiles + 2 * (program // heads // parts)
    document = tl.load(tile).to(tl.int64)
    real = document >= 0
    document = tl.maximum(document, 0)
    first = tl.load(bounds + document) + tl.load(tile + 1) + program // heads % parts * BLOCK
    last = tl.load(bounds + documents + document)
    return document, (program % heads).to(tl.int64), first, tl.where(real, last, first)


@triton.jit
def seen_rows(work, bounds, links, place, document, documents, include_self):
    """The two ranges of rows, of the side with these bounds, that belong to the documents that a document sees.

    `work` is AttentionWork.documents. With links, the rows of the document at `place` in them.
    """
    if links is None:
        first = tl.load(work + 4 * documents + document)
        last = tl.load(work + 5 * documents + document)
        begin = tl.load(bounds + first)
        end = tl.load(bounds + documents + last - 1)
        own_begin = tl.where(include_self > 0, end, tl.load(bounds + document))
        own_end = tl.where(include_self > 0, end, tl.load(bounds + documents + document))
    else:
        other = tl.load(links + place)
        begin = tl.load(bounds + tl.maximum(other, 0))
        end = tl.where(other >= 0, tl.load(bounds + documents + tl.maximum(other, 0)), begin)
        own_begin = end
        own_end = end
    return begin, own_begin, own_end, end


@triton.jit
def count_blocks(begin, end, BLOCK: tl.constexpr):
    return ((tl.maximum(end - begin, 0) + BLOCK - 1) // BLOCK).to(tl.int32)


@triton.jit
def block_bounds(block, before, begin, own_begin, own_end, end, BLOCK: tl.constexpr):
    """The first row of a block and the row behind its range, `before` blocks being of the first range."""
    first = tl.where(block < before, begin + block * BLOCK, own_end + (block - before) * BLOCK)
    return first, tl.where(block < before, own_begin, end)


@triton.jit
def next_block(place, done, begin, end, BLOCK: tl.constexpr):
    """After a block of a link's rows: the link's place, and how many of its rows are done."""
    done += BLOCK
    more = begin + done < end
    return tl.where(more, place, place + 1), tl.where(more, done, 0)


@triton.jit
def block_rows(first, last, anchors, documents, seed, BLOCK: tl.constexpr):
    """The rows of a block, and which of them there are: those below `last`, of anchors those of a document.

    With dropout the rows are turned so that four that share a draw stand at a multiple of four.
    """
    row = first + tl.arange(0, BLOCK)
    if seed is not None:
        lane = first & 3
        row = row - lane + tl.where(tl.arange(0, BLOCK) < lane, BLOCK, 0)
    there = row < last
    if anchors is not None:
        begin = tl.load(anchors + row, mask=there, other=0)
        there = there & (begin < tl.load(anchors + documents + row, mask=there, other=0))
    return row, there


@triton.jit
def load_rows(source, row, there, stride, inside):
    """`[rows, C]`, zeros where there is no row or column; `source [1, C]` points to row 0."""
    return tl.load(source + row[:, None] * stride, mask=there[:, None] & inside[None, :], other=0.0)


@triton.jit
def product(left, right, total, PRECISION: tl.constexpr):
    """`total + left @ right`; the left side is rounded to the right one's dtype."""
    if PRECISION == "ieee":  # of the interpreter, which has no products in bfloat16
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(left.to(right.dtype), right, total, input_precision=PRECISION)
    return total


@triton.jit
def inner_products(
    left,  # [M, C]
    right,  # [N, C]
    left_source,  # [1, C]
    left_row,
    left_there,
    left_stride,
    right_source,
    right_row,
    right_there,
    right_stride,
    head_dim,
    CHUNKED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`[M, N]` over all columns of a head: `left @ right^T`, where it is not wider than they are."""
    total = tl.zeros([M, N], tl.float32)
    if CHUNKED:
        done = 0
        while done < head_dim:
            inside = done + tl.arange(0, C) < head_dim
            x = load_rows(left_source + done, left_row, left_there, left_stride, inside)
            y = load_rows(right_source + done, right_row, right_there, right_stride, inside)
            total = product(x, tl.trans(y), total, PRECISION)
            done += C
    else:
        total = product(left, tl.trans(right), total, PRECISION)
    return total


@triton.jit
def kept_entries(seed, threshold, query, first_key, head, Q: tl.constexpr, K: tl.constexpr):
    """Which entries `[Q, K]` dropout keeps, for the rows of keys that `block_rows` makes of `first_key`."""
    key = tl.load(seed)
    zeros = tl.zeros([Q, K // 4], tl.uint32)
    group = tl.arange(0, K // 4)
    row = query.to(tl.uint32)[:, None]
    draw = (first_key // 4 + group).to(tl.uint32)[None, :]
    a, b, c, d = tl.philox(key, zeros + draw, zeros + row, zeros + head.to(tl.uint32), zeros)
    # The rows that turning moved to the first places belong to the draw behind the last one.
    zero = tl.zeros([Q, 1], tl.uint32)
    draw = (first_key // 4 + K // 4).to(tl.uint32)
    e, f, g, _ = tl.philox(key, zero + draw, zero + row, zero + head.to(tl.uint32), zero)
    lane = tl.where(group == 0, first_key & 3, 0)[None, :]
    a = tl.where(lane > 0, e, a)
    b = tl.where(lane > 1, f, b)
    c = tl.where(lane > 2, g, c)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [Q, K])  # word i of a draw: its key i
    return words >= threshold.to(tl.uint32)


@triton.jit
def forward_step(
    total,  # [Q, C]
    peak,  # [Q], in base 2, as are the scores
    mass,  # [Q]
    queries,  # [Q, C]
    query,  # [Q]
    query_there,  # [Q]
    first,
    last,
    q,  # [1, C], as k and v: to row 0 of the head
    k,
    v,
    anchors,
    seed,
    head,
    documents,
    head_dim,
    q_stride,
    k_stride,
    v_stride,
    own,  # the first column of the results
    inside,
    factor,
    threshold,
    WHOLE: tl.constexpr,
    CHUNKED: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of keys more."""
    row, there = block_rows(first, last, anchors, documents, seed, K)
    keys = queries
    if not CHUNKED:
        keys = load_rows(k, row, there, k_stride, inside)
    values = load_rows(v + own, row, there, v_stride, inside)
    scores = inner_products(
        queries, keys, q, query, query_there, q_stride, k, row, there, k_stride, head_dim, CHUNKED, Q, K, C, PRECISION
    )
    scores = tl.where(there[None, :], scores * factor, -float("inf"))
    peak_before = peak
    peak = tl.maximum(peak, tl.max(scores, 1))
    # A maximum of -inf stands for no key and must not meet itself.
    subtracted = tl.where(peak == -float("inf"), 0.0, peak)
    weights = tl.exp2(scores - subtracted[:, None])
    added = tl.sum(weights, 1)
    if seed is not None:
        weights = tl.where(kept_entries(seed, threshold, query, first, head, Q, K), weights, 0.0)
    if WHOLE:
        mass = added
    else:
        rescale = tl.exp2(peak_before - subtracted)
        mass = mass * rescale + added
        total = total * rescale[:, None]
    return product(weights, values, total, PRECISION), peak, mass


@triton.jit
def forward_ranges(
    total,
    peak,
    mass,
    queries,
    query,
    query_there,
    begin,
    own_begin,
    own_end,
    end,
    q,
    k,
    v,
    anchors,
    seed,
    head,
    documents,
    head_dim,
    q_stride,
    k_stride,
    v_stride,
    own,
    inside,
    factor,
    threshold,
    CHUNKED: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All keys of two ranges."""
    before = count_blocks(begin, own_begin, K)
    blocks = before + count_blocks(own_end, end, K)
    if PRECISION == "ieee":
        block = 0
        while block < blocks:
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, K)
            total, peak, mass = forward_step(
                total, peak, mass, queries, query, query_there, first, last, q, k, v, anchors, seed, head, documents,
                head_dim, q_stride, k_stride, v_stride, own, inside, factor, threshold,
                False, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            block += 1
    else:
        # The same loop, in the form that the compiler pipelines.
        for block in tl.range(0, blocks):
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, K)
            total, peak, mass = forward_step(
                total, peak, mass, queries, query, query_there, first, last, q, k, v, anchors, seed, head, documents,
                head_dim, q_stride, k_stride, v_stride, own, inside, factor, threshold,
                False, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
    return total, peak, mass


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "include_self", "threshold"])
def attention_forward(
    q,  # [query rows, heads, head_dim], like k and v of any row and head stride
    k,
    v,
    output,  # [query rows, heads, head_dim]
    lse,  # [heads, query rows]
    work,  # [6, documents], AttentionWork.documents
    link_offsets,  # [documents + 1] or None
    links,
    tiles,  # [tiles, 2] of queries
    anchors,  # the bounds of the keys in `work`, where keys are anchors, else None
    seed,  # [1], or None without dropout
    query_rows,
    documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    include_self,
    scale,
    threshold,
    kept_share,
    WHOLE: tl.constexpr,
    CHUNKED: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    document, head, first, last = find_tile(tiles, work, documents, heads, parts, Q)
    if first >= last:
        return
    own = tl.program_id(1) * C
    column = own + tl.arange(0, C)
    inside = column < head_dim
    query = first + tl.arange(0, Q)
    there = query < last
    q += head * q_head_stride + tl.arange(0, C)[None, :]
    k += head * k_head_stride + tl.arange(0, C)[None, :]
    v += head * v_head_stride + tl.arange(0, C)[None, :]
    queries = load_rows(q + own, query, there, q_stride, inside)
    bounds = work + 2 * documents
    factor = scale * LOG2_E
    total = tl.zeros([Q, C], tl.float32)
    peak = tl.full([Q], -float("inf"), tl.float32)
    mass = tl.zeros([Q], tl.float32)
    if WHOLE:
        total, peak, mass = forward_step(
            total, peak, mass, queries, query, there, tl.load(bounds + document),
            tl.load(bounds + documents + document), q, k, v, None, seed, head, documents, head_dim, q_stride,
            k_stride, v_stride, own, inside, factor, threshold, True, CHUNKED, Q, K, C, PRECISION,
        )  # fmt: skip
    elif links is None:
        begin, own_begin, own_end, end = seen_rows(work, bounds, None, 0, document, documents, include_self)
        total, peak, mass = forward_ranges(
            total, peak, mass, queries, query, there, begin, own_begin, own_end, end, q, k, v, anchors, seed, head,
            documents, head_dim, q_stride, k_stride, v_stride, own, inside, factor, threshold,
            CHUNKED, Q, K, C, PRECISION,
        )  # fmt: skip
    else:
        # One loop over the blocks of all links: loops in loops cost registers.
        place = tl.load(link_offsets + document)
        done = place * 0
        while place < tl.load(link_offsets + document + 1):
            begin, _, _, end = seen_rows(work, bounds, links, place, document, documents, 0)
            total, peak, mass = forward_step(
                total, peak, mass, queries, query, there, begin + done, end, q, k, v, anchors, seed, head, documents,
                head_dim, q_stride, k_stride, v_stride, own, inside, factor, threshold,
                False, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            place, done = next_block(place, done, begin, end, K)
    seen = mass != 0.0
    value = total / tl.where(seen, mass * kept_share, 1.0)[:, None]
    target = output + (query[:, None] * heads + head) * head_dim + column[None, :]
    tl.store(target, value.to(output.dtype.element_ty), mask=there[:, None] & inside[None, :])
    sums = tl.where(seen, (peak + tl.log2(tl.where(seen, mass, 1.0))) / LOG2_E, -float("inf"))
    tl.store(lse + head * query_rows + query, sums, mask=there & (own == 0))
