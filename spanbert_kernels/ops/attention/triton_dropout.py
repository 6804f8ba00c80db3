"""Which entries dropout keeps, in attention's Triton kernels: the generator of `ops/philox.py`, four keys a draw.

A thread has two neighbours out of every eight keys of a product's row, in which a draw's four keys never are one
thread's. So where queries are the rows, keys are dealt out in another order, by which a thread has all of its draws
(`dealt_entries`). Elsewhere keys have their own order, and a draw's four bits are packed with those of seven more: a
thread makes whole words and hands on words, of which each entry takes its bit (`kept_entries`).

A forward may leave the bits, for its backward not to draw again: for blocks of 64 keys, `[blocks of keys, heads, query
rows]` of four words of 16 bits, which are the quarters that four threads have.
Letters of shapes: `triton_tiles.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.attention.work import TILE_ROWS

PIECE = tl.constexpr(TILE_ROWS)  # whose bits are four words


@triton.jit
def wide_product(constant: tl.constexpr, word):
    """The high and the low word of a product, which one instruction makes."""
    product = word.to(tl.uint64) * constant
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def draw_words(seed, draw, query, head):
    """The four words of draws, of any shapes of draws and queries.

    What hangs on the query or on the draw alone has the shape of that alone: two of the ten rounds.
    """
    low_key = seed.to(tl.uint32)
    high_key = (seed >> 32).to(tl.uint32)
    a = draw
    b = query
    c = head
    d = head * 0
    for _ in tl.static_range(10):
        high_a, low_a = wide_product(0xD2511F53, a)
        high_c, low_c = wide_product(0xCD9E8D57, c)
        a = high_c ^ b ^ low_key
        b = low_c
        c = high_a ^ d ^ high_key
        d = low_a
        low_key = tl.add(low_key, 0x9E3779B9, sanitize_overflow=False)
        high_key = tl.add(high_key, 0xBB67AE85, sanitize_overflow=False)
    return a, b, c, d


@triton.jit
def dealt_rows(ROWS: tl.constexpr):
    """The keys of a block in the order in which they are dealt out: a quarter to each of four threads."""
    place = tl.arange(0, ROWS)
    return ((place >> 1) & 3) * (ROWS // 4) + (place >> 3) * 2 + (place & 1)


@triton.jit
def dealt_draws(dropout, first_query, first_key, head, M: tl.constexpr, N: tl.constexpr):
    """The four words of draws, of the queries from one on and the keys that `block_rows` deals out from one on.

    The dimensions are in the order in which the compiler deals them out to registers, warps and threads, as those of a
    product are: whose draws, whose of two rows of queries, sixteen rows, one of eight, a quarter of the keys.
    """
    seed = tl.load(dropout.seed).to(tl.uint64)
    head = head.to(tl.uint32)
    draw = (first_key >> 2).to(tl.uint32)
    quarter = tl.arange(0, 4)[None, None, None, None, :]
    row = tl.arange(0, 8)[None, None, None, :, None]
    warp = tl.arange(0, M // 16)[None, None, :, None, None]
    half = tl.arange(0, 2)[None, :, None, None, None]
    number = tl.arange(0, N // 16)[:, None, None, None, None] + quarter * (N // 16)
    query = first_query.to(tl.uint32) + (16 * warp + 8 * half + row).to(tl.uint32)
    a, b, c, d = draw_words(seed, draw + number.to(tl.uint32), query, head)
    lane = (first_key & 3).to(tl.int32)
    if lane > 0:
        # The rows that turning moved to the first places belong to the draw behind the last one.
        e, f, g, _ = draw_words(seed, draw + N // 4 + (quarter * 0).to(tl.uint32), query, head)
        a = tl.where(number == 0, e, a)
        b = tl.where(number < tl.minimum(lane - 1, 1), f, b)
        c = tl.where(number < tl.minimum(lane - 2, 1), g, c)
    return a, b, c, d


@triton.jit
def dealt_entries(dropout, draws, M: tl.constexpr, N: tl.constexpr):
    """Which entries `[M, N]` of draws are kept."""
    a, b, c, d = draws
    words = tl.join(tl.join(a, c), tl.join(b, d))  # the keys of a draw in two pairs
    words = tl.reshape(tl.permute(words, (2, 1, 3, 0, 5, 4, 6)), [M, N])
    return words >= tl.cast(dropout.threshold, tl.uint32)  # a constant where it is 1


@triton.jit
def kept_keys(dropout, draws):
    """A bit for each of the four keys of draws."""
    a, b, c, d = draws
    threshold = tl.cast(dropout.threshold, tl.uint32)
    pair = tl.where(a >= threshold, 1, 0) | tl.where(b >= threshold, 2, 0)
    return (pair | tl.where(c >= threshold, 4, 0) | tl.where(d >= threshold, 8, 0)).to(tl.uint32)


@triton.jit
def packed(kept, place):
    """Words `[..]` of the bits `[J, ..]` of draws, each at its place."""
    return tl.sum(kept << (4 * place).to(tl.uint32), 0)


@triton.jit
def kept_entries(
    dropout, first_query, first_key, head, M: tl.constexpr, N: tl.constexpr, KEYS_LEFT: tl.constexpr = False
):
    """Which entries `[M, N]` are kept, of the queries from one on and the keys that `block_rows` makes of one.

    With KEYS_LEFT it is `[N, M]`.
    """
    seed = tl.load(dropout.seed).to(tl.uint64)
    head = head.to(tl.uint32)
    first_query = first_query.to(tl.uint32)
    draw = (first_key >> 2).to(tl.uint32)
    # The rows that turning moved to the first places belong to the draw behind the last one.
    lane = (first_key & 3).to(tl.int32)
    moved = ((1 << lane) - 1).to(tl.uint32)
    behind = draw + N // 4
    OTHERS: tl.constexpr = M if KEYS_LEFT else N
    J: tl.constexpr = min(8, OTHERS // 8)
    WORDS: tl.constexpr = OTHERS // (8 * J)
    place = tl.arange(0, J)[:, None, None]
    other = tl.arange(0, OTHERS)
    shift = 4 * ((other >> 3) & 7)[None, :]
    if KEYS_LEFT:
        group = tl.arange(0, N // 4)[None, :, None]
        part = tl.arange(0, 8 * WORDS)[None, None, :]
        query = first_query + (8 * place + (part >> 3) * 64 + (part & 7)).to(tl.uint32)
        words = packed(kept_keys(dropout, draw_words(seed, draw + group.to(tl.uint32), query, head)), place)
        if lane > 0:
            theirs = packed(kept_keys(dropout, draw_words(seed, behind, query, head)), place)
            moved *= 0x11111111  # for each of the queries
            turned = tl.arange(0, N // 4)[:, None] == 0
            words = tl.where(turned, words ^ ((words ^ theirs) & moved), words)
        words = tl.reshape(words, [N // 4, 1, WORDS, 1, 8])
        words = tl.reshape(tl.broadcast_to(words, [N // 4, 4, WORDS, J, 8]), [N, M])
        shift += (tl.arange(0, N) & 3)[:, None]
    else:
        query = first_query + tl.arange(0, M)[None, :, None].to(tl.uint32)
        part = tl.arange(0, 2 * WORDS)[None, None, :]
        group = 2 * place + (part >> 1) * 16 + (part & 1)
        words = packed(kept_keys(dropout, draw_words(seed, draw + group.to(tl.uint32), query, head)), place)
        if lane > 0:
            row = first_query + tl.arange(0, M)[:, None].to(tl.uint32)
            theirs = kept_keys(dropout, draw_words(seed, behind, row, head))
            turned = tl.arange(0, 2 * WORDS)[None, :] == 0
            words = tl.where(turned, words ^ ((words ^ theirs) & moved), words)
        words = tl.reshape(words, [M, WORDS, 1, 2, 1])
        words = tl.reshape(tl.broadcast_to(words, [M, WORDS, J, 2, 4]), [M, N])
        shift += (other & 3)[None, :]
    return ((words >> shift.to(tl.uint32)) & 1) != 0


@triton.jit
def words_of(dropout, mask, tile, first_key, numbers):
    """Where the words of the first query row are, for the tile's head and the block of keys from one on."""
    begin = tl.load(mask.documents + tile.document)  # of a document that sees itself alone
    block = (first_key - begin) // PIECE
    return dropout.words + (block * numbers.heads + tile.head) * numbers.query_rows * 4


@triton.jit
def bit_of_place(N: tl.constexpr):
    """`[1, N / 8, 1, 2]`, of keys as they are dealt out, by their places in their threads' words."""
    return 2 * tl.arange(0, N // 8)[None, :, None, None] + tl.arange(0, 2)[None, None, None, :]


@triton.jit
def leave_words(dropout, draws, mask, tile, first_key, numbers, M: tl.constexpr):
    """Write the bits of `dealt_draws`, of the tile's queries and 64 keys."""
    number = tl.arange(0, PIECE // 16)[:, None, None, None, None]
    words = packed(kept_keys(dropout, draws), number).to(tl.int16)  # [2, M / 16, 8, 4]
    half = 8 * tl.arange(0, 2)[:, None, None, None]
    row = half + 16 * tl.arange(0, M // 16)[None, :, None, None] + tl.arange(0, 8)[None, None, :, None]
    there = row < (tile.last - tile.first).to(tl.int32)
    place = (tile.first + row) * 4 + tl.arange(0, 4)[None, None, None, :]
    tl.store(words_of(dropout, mask, tile, first_key, numbers) + place, words, mask=there)


@triton.jit
def left_entries(dropout, mask, tile, first_key, numbers, M: tl.constexpr):
    """`dealt_entries` again, of the tile's queries."""
    place = (tile.row * 4)[:, None] + tl.arange(0, 4)[None, :]
    words = tl.load(words_of(dropout, mask, tile, first_key, numbers) + place, mask=tile.there[:, None], other=0)
    words = tl.reshape(words.to(tl.int32), [M, 1, 4, 1])
    kept = (tl.broadcast_to(words, [M, PIECE // 8, 4, 2]) >> bit_of_place(PIECE)) & 1
    return tl.reshape(kept, [M, PIECE]) != 0


@triton.jit
def left_for_keys(dropout, mask, tile, row, there, numbers, M: tl.constexpr):
    """The same `[64, M]`, of the tile's keys as `block_rows` turns them and the queries at rows."""
    words = words_of(dropout, mask, tile, tile.first, numbers) + (row * 4)[None, :] + tl.arange(0, 4)[:, None]
    words = tl.load(words, mask=there[None, :], other=0).to(tl.int32)
    words = tl.broadcast_to(tl.reshape(words, [4, 1, M]), [4, PIECE // 4, M])
    place = tl.arange(0, PIECE)[:, None]
    return ((tl.reshape(words, [PIECE, M]) >> (place & (PIECE // 4 - 1))) & 1) != 0
