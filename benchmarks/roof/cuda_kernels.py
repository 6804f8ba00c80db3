"""What span_pool launches of its CUDA C++ kernels, as its host code has it, and how its loops are gone through.

Host code of C++ cannot be recorded without a GPU: these are the launches of `csrc/span_pool/cuda.cu` for one part of
16-bit spans whose rows are multiples of 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spanbert_kernels.ops.plans import SpanPlan, SpanWork

from .trips import Trips, parts_of, total

BF16 = "INS_8bfloat16E"
NEVER = {  # what is not finite, and what no part asks for
    "for (int m = 0; m < kRows; m += kStep)": 0.0,
    "for (int n = 0; n < kTile; n += kStep)": 0.0,
    "for (int token = 0; token < shared.extent; token += kStep)": 0.0,
    "for (int token = shared.start[span]; token < shared.end[span]; ++token)": 0.0,
    "for (int64_t token = begin; token < stop && place < work.columns; ++token)": 0.0,
    "for (int64_t i = work.spans.reach[begin] > 0 ? work.spans.reach[begin] : 0; i < last; ++i)": 0.0,
}
STEP = "tile.step(i % kStages, step * kDepth, step % kSteps * kDepth);"
CHUNK = 128  # columns of a step of the products


@dataclass(frozen=True)
class CudaLaunch:
    """A launch of a CUDA C++ kernel.

    Attributes:
        operation: whose it is.
        name: the kernel's.
        symbol: a part of its mangled name that no other has.
        programs: blocks.
        warps: of a block.
        shared: bytes that the launch asks for.
        trips: how often its loops are gone through.
        bytes: of its tensors, each once.
    """

    operation: str
    name: str
    symbol: str
    programs: int
    warps: int
    shared: int
    trips: Trips
    bytes: int


def _shares(tiles: int, columns: int) -> int:
    """How many blocks share the chunks of columns of a tile."""
    every = -(-columns // CHUNK)
    each = -(-every // min(every, max(1, -(-512 // tiles))))
    return -(-every // each)


def _rows(values: Tensor, size: int) -> Tensor:
    missing = -len(values) % size
    return torch.cat([values, values[-1:].expand(missing)]).view(-1, size)


def sums_forward(plan: SpanPlan, columns: int, bytes_moved: int) -> CudaLaunch:
    """`banded::forward` of one part: 64 spans a block, 32 tokens a step, 16 of them a product."""
    work = plan.device_work()
    starts, ends = _bounds(work)
    low = _rows(starts, 64).amin(1) // 16 * 16
    steps = parts_of(_rows(ends, 64).amax(1) - low, 32).clamp(min=1)
    shares = _shares(len(steps), columns)
    chunks = -(-columns // CHUNK)
    # A warp goes through the tokens of 32 spans alone; two warps of the block have the same ones.
    own = _rows(starts, 32).amin(1) // 16 * 16
    products = 2 * total(parts_of(_rows(ends, 32).amax(1) - own, 16))
    few = steps <= 4
    loops = {
        **NEVER,
        # Eight times, two at a time.
        "for (int token = half; token < half + kTokens / 2; token += kPiece)": 4
        * (float(few.sum()) * shares + total(parts_of(steps, 4)[~few]) * chunks),
        "for (int chunk = first; chunk < first + own * kChunk; chunk += kChunk)": len(steps) * chunks,
        "for (int step = 0; step < steps; ++step, ++i)": total(steps) * chunks,
        # The loop's branch is of a line in it.
        f"for (int m = 0; m < kLefts; ++m) < {STEP}": products * chunks / 4,
        "for (int part = kMean; part <= kSum; ++part)": len(steps) * chunks,
    }
    programs = len(steps) * shares
    trips = Trips(programs, loops, {"if (warp_index() == 0) find_spans(": 0.25})
    shared = 64 * 136 * 2 + 3 * 32 * 136 * 2 + 4 * 16 * 72 * 2 + 64 * 16 + 16
    return CudaLaunch("span_pool", "banded::forward", f"6banded7forward{BF16}", programs, 4, shared, trips, bytes_moved)


def sums_backward(plan: SpanPlan, columns: int, bytes_moved: int) -> CudaLaunch:
    """`banded::tokens` of the mean: 32 tokens a block, the spans that hold one of them, up to 256 listed at a time."""
    work, tokens = plan.device_work(), plan.num_tokens
    blocks = -(-tokens // 32)
    shares = _shares(blocks, columns)
    listed = [_lists(work, begin, min(begin + 32, tokens)) for begin in range(0, tokens, 32)]
    chunks = -(-columns // CHUNK)
    listing = "for (; next < last && count <= kListed - kLanes; next += kLanes)"
    weighing = "for (int first = warp_index() * kPiece; first < stop; first += kWarps * kPiece)"
    filling = "for (int place = count + lane_index(); place < (count + kDepth - 1) / kDepth * kDepth; place += kLanes)"
    stepping = "for (int step = 0; step < steps; ++step, ++i)"
    first_list, again = "list(reach, mean);", "list(next, part == kMean);"
    once = [lists for lists in listed if len(lists) == 1]
    several = [lists for lists in listed if len(lists) > 1]
    steps_once = sum(-(-held // 32) for lists in once for _, held in lists)
    steps_again = sum(-(-held // 32) for lists in several for _, held in lists)
    loops = {
        **NEVER,
        f"{listing} < {first_list}": sum(lists[0][0] for lists in listed) / 4 * shares,
        f"{filling} < {first_list}": len(listed) / 4 * shares,
        f"{weighing} < {first_list}": sum(-(-lists[0][1] // 32) for lists in listed) * shares,
        "for (int chunk = first; chunk < first + chunks * kChunk; chunk += kChunk)": len(once) * chunks,
        f"{stepping} < multiply(gradient, first, own, work.offset[mean ? kMean : kSum], !mean, [&](int chunk) {{": (
            steps_once * chunks
        ),
        "for (int chunk = first; chunk < first + own * kChunk; chunk += kChunk)": len(several) * chunks,
        "for (int part = kMean; part <= kSum; ++part)": len(several) * chunks * 2,
        "for (int64_t next = reach; next < last; next = shared.next)": sum(map(len, several)) * chunks,
        f"{listing} < {again}": sum(passes for lists in several for passes, _ in lists) * chunks / 4,
        f"{filling} < {again}": sum(map(len, several)) * chunks / 4,
        f"{weighing} < {again}": steps_again * chunks,
        f"{stepping} < multiply(gradient, chunk, 1, work.offset[part], part == kSum, [](int) {{}});": (
            steps_again * chunks
        ),
    }
    programs = blocks * shares
    trips = Trips(programs, loops, {})
    shared = 2 * 32 * 264 * 2 + 3 * 32 * 136 * 2 + 4 * 16 * 40 * 2 + 256 * 16 + 16
    return CudaLaunch("span_pool", "banded::tokens", f"6banded6tokens{BF16}", programs, 4, shared, trips, bytes_moved)


def _lists(work: SpanWork, begin: int, stop: int) -> list[tuple[int, int]]:
    """For a block's tokens its lists of spans: how many times 32 were looked at, and how many of them hold a token."""
    assert work.first is not None
    assert work.reach is not None
    low, last = max(0, int(work.reach[begin])), int(work.first[stop])
    starts, ends = (each[low:last] for each in _bounds(work))
    seen = (ends > begin) & (starts < stop) & (ends > starts)
    held = [int(part.sum()) for part in seen.split(32)]
    lists, passes, count = [], 0, 0
    for each in held:
        if count > 256 - 32:
            lists.append((passes, count))
            passes = count = 0
        passes, count = passes + 1, count + each
    return [*lists, (passes, count)]


def maxima(plan: SpanPlan, columns: int, keep: bool, bytes_moved: int) -> CudaLaunch:
    """`maxima::sorted`: a run of spans and 64 columns a block, four spans a warp at a time."""
    starts, ends = _bounds(plan.device_work())
    count, tiles = len(starts), -(-columns // 64)
    run = 160
    while run // 2 >= 16 and -(-count // run) * tiles < 1024:
        run //= 2
    low = _rows(starts, run).amin(1)
    held_tokens = (_rows(ends, run).amax(1) - low).clamp(max=128)
    width = ends - starts
    relative = ends - low.repeat_interleave(run)[:count]
    held = (width >= 4) & (relative <= held_tokens.repeat_interleave(run)[:count])
    step = torch.where(width >= 16, 16, 4)
    steps = torch.where(held, (width + step - 1) // step, 1)
    read = torch.where(held, 0, width)
    of_warp = _rows(steps, 4).amax(1), _rows(read, 4).amax(1)
    blocks = -(-count // run)
    loops = {
        "for (int plane = 0; plane < kPlanes<Winner>; ++plane)": blocks * tiles * 2,
        "for (int i = static_cast<int>(threadIdx.x) / kAcross; i < run; i += kSpans)": -(-count // 16) * tiles,
        "for (int j = 1; j < steps; j += 2)": total(of_warp[0] // 2) * tiles / 4,
        "for (int i = 0; i < width; ++i)": total(of_warp[1]) * tiles / 4,
    }
    shares = {"if (warp_index() == 0) find_spans(": 0.25}
    trips = Trips(blocks * tiles, loops, shares)
    shared = (2 if keep else 1) * 2 * 128 * 8 * 16 + 160 * 16 + 16
    symbol = f"6maxima6sorted{BF16}Li{int(keep)}E"
    return CudaLaunch("span_pool", "maxima::sorted", symbol, blocks * tiles, 4, shared, trips, bytes_moved)


def enumerated(plan: SpanPlan, columns: int, bytes_moved: int) -> CudaLaunch:
    """`forward::enumerated_sums` of the mean: a token a warp, through all spans that start there."""
    tiles, warps = -(-columns // 256), 8
    programs = -(-plan.num_tokens // warps) * tiles
    loops = {
        "for (int begin = 0; begin <= last; begin += kLanes)": programs * -(-plan.max_width // 32),
        "for (int i = 0; i <= end; ++i)": len(plan) * tiles / warps,
    }
    symbol = f"7forward15enumerated_sums{BF16}Lb1E"
    trips = Trips(programs, loops, {})
    return CudaLaunch("span_pool", "forward::enumerated_sums", symbol, programs, warps, 0, trips, bytes_moved)


def _bounds(work: SpanWork) -> tuple[Tensor, Tensor]:
    assert work.starts is not None
    assert work.ends is not None
    return work.starts, work.ends
