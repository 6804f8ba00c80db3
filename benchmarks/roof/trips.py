"""How often the programs of a launch go through each loop of their kernel, from the launch's own arguments.

A kernel with loops is a row of TRIPS. They go by the text of their line in the source; one that is missing is an error,
so that no loop is left out by mistake. What is made again where a result is not finite never happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]
QUERIES, KEYS = 0, 2  # the first of a side's rows in AttentionWork.documents

BLOCKS = "for block in tl.range(0, blocks)"
PARTS = "for part in tl.range(0, BLOCK.N // BLOCK.M)"
CHUNKS = "while done < head_dim"
LINKS = "while place < behind"
WINDOW = "for done in tl.range(0, window.extent, BLOCK.K)"
SLICE = "for done in tl.range(0, part.extent, BLOCK.K)"
NEVER = dict.fromkeys(
    ("while done < window.extent", "while token < window.extent", "while done < part.extent", "while span < part.high"),
    0.0,
)


@dataclass(frozen=True)
class Trips:
    """Of all programs of a launch together.

    Attributes:
        programs: those that have something to do; the others leave at once.
        loops: how often each loop is gone through, by the text of its line, or by that and of the line that it was put
            into inline, with ` < ` between them.
        shares: of lines that not all warps execute, by a part of their text: what part of the warps does. With ` < `
            between them several parts, of a line and of those that it was put into inline.
        touched: what part of the rows of its tensors the launch reads or writes.
    """

    programs: float
    loops: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    touched: float = 1.0


def block_of(arguments: Arguments) -> Mapping[str, Any]:
    """The fields of the launch's block."""
    block = arguments["BLOCK"]
    return {name: getattr(value, "value", value) for name, value in block._asdict().items()}


def parts_of(lengths: Tensor, size: int) -> Tensor:
    """How many parts of a size there are in each of some lengths.

    Example:
        >>> parts_of(torch.tensor([0, 1, 64, 65, -3]), 64).tolist()
        [0, 1, 1, 2, 0]
    """
    return (lengths.clamp(min=0) + size - 1) // size


def total(values: Tensor) -> float:
    return float(values.sum())


# Attention.


def _tiles(arguments: Arguments, side: int, rows: int) -> tuple[Tensor, Tensor]:
    """Of every block that has rows: its document, and its first row counted from the document's.

    Of the tiles that make one block the first has all its rows. Kernels with whole rows of scores pass over documents
    that are longer than these.
    """
    block = block_of(arguments)
    documents, tiles = arguments["mask"].documents, arguments["mask"].tiles.long()
    real = tiles[tiles[:, 0] >= 0]
    part = torch.arange(arguments["parts"]) * rows
    document = real[:, :1].expand(-1, len(part)).reshape(-1)
    first = (real[:, 1:] + part).reshape(-1)
    length = (documents[side + 1] - documents[side])[document]
    there = (first < length) & (first % rows == 0)
    there &= length > block["OVER"]
    if block["WHOLE"]:
        there &= length <= block["N"]
    return document[there], first[there]


def _touched(arguments: Arguments, document: Tensor) -> float:
    """The part of all rows that are those of some documents, where each sees itself alone."""
    begin, end, _, _, first, last = arguments["mask"].documents
    if int((last - first).max()) > 1:
        return 1.0
    return total((end - begin)[document.unique()]) / total(end - begin)


def _blocks_seen(arguments: Arguments, side: int, rows: int) -> Tensor:
    """Of every document how many blocks of rows on a side it sees, or is seen by."""
    mask = arguments["mask"]
    begin, end = mask.documents[side : side + 2]
    if mask.links is not None:
        of_link = torch.where(mask.links >= 0, parts_of((end - begin)[mask.links.clamp(min=0)], rows), 0)
        counted = torch.cat([of_link.new_zeros(1), of_link.cumsum(0)])[mask.offsets]
        return counted.diff()
    first, last = mask.documents[4:6]
    cluster_begin, cluster_end = begin[first], end[last - 1]
    if arguments["include_self"]:
        return parts_of(cluster_end - cluster_begin, rows)
    return parts_of(begin - cluster_begin, rows) + parts_of(cluster_end - end, rows)


def attention(side: int, other: int, own_rows: str, other_rows: str) -> Callable[[Arguments], Trips]:
    """A kernel that takes a block of rows on one side through all blocks on the other."""

    def trips(arguments: Arguments) -> Trips:
        block = block_of(arguments)
        document, _ = _tiles(arguments, side, block[own_rows])
        columns = -(-arguments["head_dim"] // block["D"])
        alike = arguments["heads"] * columns
        programs = len(document) * alike
        touched = _touched(arguments, document)
        if block["WHOLE"]:
            return Trips(programs, touched=touched)
        steps = total(_blocks_seen(arguments, other, block[other_rows])[document]) * alike
        return Trips(programs, {BLOCKS: steps, LINKS: steps, CHUNKS: steps * columns}, touched=touched)

    return trips


def anchors(own_rows: str, other_rows: str) -> Callable[[Arguments], Trips]:
    """A kernel that takes a block of documents through those of all their clusters."""

    def trips(arguments: Arguments) -> Trips:
        block, documents = block_of(arguments), arguments["num_documents"]
        columns = -(-arguments["head_dim"] // block["D"])
        alike = arguments["heads"] * columns
        own = torch.arange(0, documents, block[own_rows])
        first, last = arguments["documents"][4:6]
        seen = last[(own + block[own_rows]).clamp(max=documents) - 1] - first[own]
        steps = total(parts_of(seen, block[other_rows])) * alike
        return Trips(len(own) * alike, {BLOCKS: steps, CHUNKS: steps * columns, "while place < end": 0.0})

    return trips


def whole_backward(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    document, first = _tiles(arguments, QUERIES, block["N"])
    programs = int((first == 0).sum()) * arguments["heads"]
    parts = {PARTS: programs * (block["N"] // block["M"])}
    return Trips(programs, parts, touched=_touched(arguments, document))


def document_lists(arguments: Arguments) -> Trips:
    block, documents = block_of(arguments), arguments["num_documents"]
    programs = -(-documents // block["M"])
    pieces = parts_of(arguments["documents"][1] - arguments["documents"][0], 64 * block["N"])
    empty = max(0, arguments["num_tiles"] - total(pieces))
    loops = {
        "while done < num_clusters": programs * -(-arguments["num_clusters"] // block["N"]),
        "while done < num_documents": programs * -(-documents // block["N"]),
        "while done < most": total(pieces),
        "while begin < tiles.size": empty / block["M"],
    }
    return Trips(programs, loops)


# Layers.


def norm_backward(arguments: Arguments) -> Trips:
    tiles = -(-arguments["rows"] // block_of(arguments)["M"])
    return Trips(-(-tiles // arguments["tiles"]), {"while tile < stop": tiles})


def gelu(arguments: Arguments) -> Trips:
    tiles, blocks = -(-arguments["rows"] // block_of(arguments)["M"]), arguments["blocks"]
    return Trips(-(-tiles // arguments["tiles"]) * blocks, {"while tile < stop": tiles * blocks})


# Spans.


def _column_blocks(columns: int, block: Mapping[str, Any]) -> int:
    return max(1, -(-columns // block["D"]))


def _window_steps(spans: Any, block: Mapping[str, Any]) -> float:
    """Of all tiles of sorted spans the steps through their windows."""
    rows, step = block["M"], block["K"]
    starts, ends = (_padded(each, rows) for each in (spans.starts, spans.ends))
    low = starts.amin(1) // step * step
    return total(parts_of(ends.amax(1) - low, step))


def _padded(values: Tensor, rows: int) -> Tensor:
    """In rows, the last one filled up with its own last value."""
    missing = -len(values) % rows
    return torch.cat([values, values[-1:].expand(missing)]).view(-1, rows)


def _slice_steps(spans: Any, tokens: int, block: Mapping[str, Any]) -> float:
    """Of all tiles of tokens the steps through the sorted spans that may hold one of them."""
    first = torch.arange(0, tokens, block["M"])
    low, high = spans.reach[first], spans.first[(first + block["M"]).clamp(max=tokens)]
    return total(parts_of(high - low, block["K"]))


def banded_forward(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    alike = _column_blocks(arguments["columns"], block) * arguments["heads"]
    programs = -(-arguments["num_spans"] // block["M"]) * alike
    return Trips(programs, {**NEVER, WINDOW: _window_steps(arguments["spans"], block) * alike})


def walk_forward(arguments: Arguments) -> Trips:
    """A program follows its own spans; one that starts where the span before it does goes on from that one's end."""
    block, spans, share = block_of(arguments), arguments["spans"], arguments["share"]
    alike = _column_blocks(arguments["columns"], block) * arguments["heads"]
    count = arguments["num_spans"]
    enumerated = spans.first is not None
    steps = torch.ones(count, dtype=torch.long)
    if not enumerated:
        starts, ends = spans.starts, spans.ends
        goes_on = torch.cat([torch.zeros(1, dtype=torch.bool), starts[1:] == starts[:-1]])
        goes_on &= torch.arange(count) % share != 0
        steps = ends - torch.where(goes_on, ends.roll(1), starts)
    unroll = block["UNROLL"]
    tokens = arguments["tokens"] if enumerated else count
    return Trips(
        -(-tokens // (share * block["LANES"])) * alike,
        {
            "while tl.max(stop - item, 0) > 0": count * alike,
            "while tl.max(limit - walk.position, 0) >= BLOCK.UNROLL": total(steps // unroll) * alike,
            "while tl.max(limit - walk.position, 0) > 0": total(steps % unroll if unroll > 1 else steps) * alike,
            "while done < table_columns": 0.0,
        },
    )


def linear_backward(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    blocks = _column_blocks(arguments["columns"], block)
    steps = _slice_steps(arguments["spans"], arguments["tokens"], block) * blocks
    return Trips(-(-arguments["tokens"] // block["M"]) * blocks, {**NEVER, SLICE: steps})


def attention_backward(arguments: Arguments) -> Trips:
    heads = arguments["heads"]
    found = linear_backward(arguments)
    loops = {**found.loops, SLICE: found.loops[SLICE] * heads, "while head < heads": found.programs * heads}
    return Trips(found.programs, loops)


def max_backward(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    blocks = _column_blocks(arguments["columns"], block)
    steps = _slice_steps(arguments["spans"], arguments["tokens"], block) * blocks
    return Trips(-(-arguments["tokens"] // block["M"]) * blocks, {"while part.low + done < part.high": steps})


def softmax_of_spans(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    programs = -(-arguments["num_spans"] // block["M"]) * arguments["heads"]
    steps = _window_steps(arguments["spans"], block) * arguments["heads"]
    return Trips(programs, {"while done < window.extent": steps})


def _projected(arguments: Arguments, block: Mapping[str, Any]) -> dict[str, float]:
    """The loops of a tile of spans through the blocks of the projection, for all blocks of columns."""
    columns = _column_blocks(arguments["outputs"], block)
    kinds = sum(arguments[f"{name}_block"] >= 0 for name in ("mean", "sum")) + arguments["heads"]
    tiles = -(-arguments["num_spans"] // block["M"])
    return {
        **NEVER,
        "while part < last_head - first_head": tiles * columns * (2 + arguments["heads"]),
        WINDOW: _window_steps(arguments["spans"], block) * columns * kinds,
    }


def linear_forward(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    programs = -(-arguments["num_spans"] // block["M"]) * _column_blocks(arguments["outputs"], block)
    return Trips(programs, _projected(arguments, block))


def attention_deltas(arguments: Arguments) -> Trips:
    """A head a program, which goes through the window of the attention, and not through those of mean and sum."""
    block, heads = block_of(arguments), arguments["heads"]
    alike = _column_blocks(arguments["outputs"], block) * heads
    programs = -(-arguments["num_spans"] // block["M"]) * alike
    loops = {
        "while part < last_head - first_head": programs * 3,
        WINDOW: _window_steps(arguments["spans"], block) * alike,
    }
    return Trips(programs, {**NEVER, **loops})


def product_backward(arguments: Arguments) -> Trips:
    """A tile of tokens through the spans that hold them, or of rows of the width table through a share of all spans."""
    block, spans, tokens = block_of(arguments), arguments["spans"], arguments["tokens"]
    columns = _column_blocks(arguments["outputs"], block)
    tiles = -(-tokens // block["M"]) * columns
    if spans.first is None:
        shares = -(-arguments["num_spans"] // arguments["share"])
        return Trips(tiles * shares, {**NEVER, SLICE: tiles * shares * -(-arguments["share"] // block["K"])})
    if getattr(arguments["WEIGHED"], "value", arguments["WEIGHED"]):
        blocks = arguments["heads"] + (arguments["mean_block"] >= 0)
    else:
        blocks = sum(arguments[f"{name}_block"] >= 0 for name in ("start", "end", "sum"))
    return Trips(tiles * blocks, {**NEVER, SLICE: _slice_steps(spans, tokens, block) * columns * blocks})


def score_forward(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    tiles = -(-arguments["num_spans"] // block["M"])
    groups = -(-arguments["num_scores"] // getattr(arguments["SCORES"], "value", arguments["SCORES"]))
    loops = {name: count * groups for name, count in _projected(arguments, block).items()}
    columns = tiles * groups * _column_blocks(arguments["outputs"], block)
    return Trips(tiles * groups, {**loops, "while done < outputs": columns})


def shares_of_spans(arguments: Arguments) -> Trips:
    starts, heads, widths = arguments["shares"].shape
    programs = -(-starts // getattr(arguments["M"], "value", arguments["M"])) * heads
    return Trips(programs, {"while width < WIDTHS": programs * widths})


def enumerated_score_forward(arguments: Arguments) -> Trips:
    """Where all widths are one program's; some of the last programs ask for rows behind the tokens."""
    block, tokens = block_of(arguments), arguments["tokens"]
    assert block["CHUNKS"] == 1
    starts = block["M"] * block["SPANS"]
    programs = -(-tokens // starts)
    inner = max(0, tokens - block["SPANS"] * block["M"] - block["WIDTHS"] + 1) // starts
    groups = -(-arguments["num_scores"] // getattr(arguments["SCORES"], "value", arguments["SCORES"]))
    whole, blocks = block["OUTPUTS"] // block["D"], _column_blocks(block["OUTPUTS"], block)
    loops = {
        "while done + BLOCK.D <= BLOCK.OUTPUTS": inner * whole * groups,
        "while done < BLOCK.OUTPUTS": (programs * blocks - inner * whole) * groups,
    }
    return Trips(programs * groups, loops)


def enumerated_linear_forward(arguments: Arguments) -> Trips:
    block = block_of(arguments)
    programs = -(-arguments["tokens"] // (block["M"] * block["SPANS"])) * _column_blocks(block["OUTPUTS"], block)
    steps = programs * -(-arguments["widths"] // block["WIDTHS"])
    return Trips(programs, {"while before < group.widths": steps, "while width < group.before": 0})


def enumerated_backward(arguments: Arguments) -> Trips:
    """A block of tokens through the first tokens before it whose spans may reach into it, and its own."""
    block, tokens = block_of(arguments), arguments["tokens"]
    columns = _column_blocks(block["OUTPUTS"], block)
    first = torch.arange(0, tokens, block["M"])
    before = total(first.clamp(max=block["WIDTHS"] - 1))
    loops = {"while start < first_token": before * columns, "while start < stop": tokens * columns}
    return Trips(len(first) * columns, loops)


TRIPS: dict[str, Callable[[Arguments], Trips]] = {
    "attention_forward": attention(QUERIES, KEYS, "M", "N"),
    "anchors_forward": anchors("M", "N"),
    "anchor_query_backward": anchors("M", "N"),
    "anchor_key_backward": anchors("N", "M"),
    "query_backward": attention(QUERIES, KEYS, "M", "N"),
    "online_query_backward": attention(QUERIES, KEYS, "M", "N"),
    "key_backward": attention(KEYS, QUERIES, "N", "M"),
    "whole_backward": whole_backward,
    "document_lists": document_lists,
    "norm_backward": norm_backward,
    "gelu_forward": gelu,
    "gelu_backward": gelu,
    "banded_forward": banded_forward,
    "walk_forward": walk_forward,
    "linear_backward": linear_backward,
    "attention_backward": attention_backward,
    "max_backward": max_backward,
    "softmax_of_spans": softmax_of_spans,
    "linear_forward": linear_forward,
    "attention_deltas": attention_deltas,
    "product_backward": product_backward,
    "score_forward": score_forward,
    "shares_of_spans": shares_of_spans,
    "enumerated_score_forward": enumerated_score_forward,
    "enumerated_linear_forward": enumerated_linear_forward,
    "enumerated_backward": enumerated_backward,
}
