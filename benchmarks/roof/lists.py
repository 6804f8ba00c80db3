"""What kernels that make work lists write, by their definitions: later launches depend on it, and nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spanbert_kernels.ops.attention.work import bounds_of_documents, tiles_of_documents

Arguments = Mapping[str, Any]


def document_lists(arguments: Arguments) -> None:
    anchors = [bool(arguments[name]) for name in ("anchor_queries", "anchor_keys")]
    given = (arguments["num_tokens"], *anchors)
    documents = bounds_of_documents(arguments["offsets"], arguments["clusters"], *given)
    arguments["documents"].copy_(documents)
    for tiles, of_anchors in zip(tiles_of_documents(documents, *given), anchors, strict=True):
        arguments["anchor_tiles" if of_anchors else "tiles"].copy_(tiles)


# By the kernel's name, from its arguments into its results.
LISTS: dict[str, Callable[[Arguments], None]] = {"document_lists": document_lists}
