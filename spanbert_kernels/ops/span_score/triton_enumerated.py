"""span_score's forward of all spans up to a width, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.span_linear.triton_enumerated import (
    are_whole,
    begin,
    first_values,
    load_group,
    next_width,
    places_of,
)
from spanbert_kernels.ops.span_linear.triton_forward import activate
from spanbert_kernels.ops.span_score.triton_kernels import kept_entries


@triton.jit
def add_columns(
    totals, done, projection, enumeration, out_weight, dropout, group, num_scores, first_score,
    ACTIVATION: tl.constexpr, SCORES: tl.constexpr, WHOLE: tl.constexpr, BLOCK,
):  # fmt: skip
    """A block of columns more: sums [M, D / 4] of every width, first token and score."""
    column = (done + tl.arange(0, BLOCK.D))[None, :]
    inside = column < BLOCK.OUTPUTS
    places = places_of(projection, enumeration, group, column, BLOCK)
    shared = first_values(projection, places, group, column, inside, WHOLE, BLOCK)
    steps = begin(places, group, inside, WHOLE, BLOCK)
    weights = ()
    for k in tl.static_range(SCORES):
        place = out_weight + (first_score + k) * BLOCK.OUTPUTS + column
        weights += (tl.load(place, mask=inside & (first_score + k < num_scores), other=0.0).to(tl.float32),)
    found = ()
    for step in tl.static_range(0, BLOCK.WIDTHS, BLOCK.STEP):
        some = ()
        for i in tl.static_range(BLOCK.STEP * BLOCK.SPANS * SCORES):
            some += (totals[step * BLOCK.SPANS * SCORES + i],)
        # Blocks of instructions of their own: in one the compiler puts the rows of all widths first.
        if group.before + step < group.widths:
            more = ()
            for w in tl.static_range(BLOCK.STEP):
                steps, values = next_width(
                    steps, shared, step + w, projection, enumeration, places, group, column, inside,
                    WHOLE, BLOCK,
                )  # fmt: skip
                for i in tl.static_range(BLOCK.SPANS):
                    inner = activate(values[i], ACTIVATION)
                    if dropout is not None:
                        first = tl.load(enumeration.first + group.start + i, mask=i < group.left, other=0)
                        kept = kept_entries(dropout, first + (group.before + (step + w)), done, BLOCK)
                        inner = tl.where(kept, inner / dropout.keep_prob, 0.0)
                    for k in tl.static_range(SCORES):
                        # A thread adds up the columns that it has, and behind the last block those of all threads.
                        dots = tl.sum(tl.reshape(inner * weights[k], [BLOCK.M, BLOCK.D // 4, 4]), 2)
                        more += (some[(w * BLOCK.SPANS + i) * SCORES + k] + dots,)
            some = more
        found += some
    return found


@triton.jit(do_not_specialize=["tokens", "widths", "num_scores"])
def enumerated_score_forward(
    projection,
    enumeration,
    out_weight,  # [1, S, O]
    dropout,  # None without
    output,  # [N, S]
    tokens,
    widths,
    num_scores,  # S
    ACTIVATION: tl.constexpr,
    SCORES: tl.constexpr,  # of a program
    BLOCK,
):
    """`score_forward` of all spans up to a width, without a norm and with one weight of all documents."""
    group = load_group(tl.program_id(0), tokens, widths, BLOCK)
    first_score = tl.program_id(2).to(tl.int64) * SCORES
    totals = ()
    for _ in tl.static_range(BLOCK.WIDTHS * BLOCK.SPANS * SCORES):
        totals += (tl.zeros([BLOCK.M, BLOCK.D // 4], tl.float32),)
    done = 0
    # Two conditions, as Triton 3.6 does not get over a loop that it knows is never entered.
    if BLOCK.D <= BLOCK.OUTPUTS:  # noqa: SIM102
        if are_whole(group, group.before, BLOCK):
            while done + BLOCK.D <= BLOCK.OUTPUTS:
                totals = add_columns(
                    totals, done, projection, enumeration, out_weight, dropout, group, num_scores, first_score,
                    ACTIVATION, SCORES, True, BLOCK,
                )  # fmt: skip
                done += BLOCK.D
    while done < BLOCK.OUTPUTS:
        totals = add_columns(
            totals, done, projection, enumeration, out_weight, dropout, group, num_scores, first_score,
            ACTIVATION, SCORES, False, BLOCK,
        )  # fmt: skip
        done += BLOCK.D
    for i in tl.static_range(BLOCK.SPANS):
        first = tl.load(enumeration.first + group.start + i, mask=i < group.left, other=0)
        last = tl.load(enumeration.first + group.start + i + 1, mask=i < group.left, other=0)
        for w in tl.static_range(BLOCK.WIDTHS):
            row = first + (group.before + w)
            for k in tl.static_range(SCORES):
                total = tl.sum(totals[(w * BLOCK.SPANS + i) * SCORES + k], 1)
                place = output + row * num_scores + (first_score + k)
                tl.store(place, total, mask=(row < last) & (first_score + k < num_scores))
