"""Which mentions of documents a model can learn or find, and why it cannot the others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.counts import left_out, took
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import count_cut_words


def count_mentions(
    documents: Sequence[MarkedDocument],
    starts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    room: int,
    width: int | None,
    by: str,
    shared: bool = False,
) -> int:
    """Counts documents and mentions; gives how many mentions a model can use.

    Args:
        documents: with their mentions.
        starts: of each document, the first word of each of its windows.
        tokenizer: whose pieces fill the windows.
        room: pieces that a window holds.
        width: words of the widest mention; None if any will do.
        by: "entity" or "kind", what tells mentions of the same words apart.
        shared: whether the same words can be a mention of several.
    """
    pairs = zip(documents, starts, strict=True)
    reasons = [why for each, own in pairs for why in _reasons(each, own, width, by, shared)]
    took("document", len(documents))
    took("mention", reasons.count(None))
    for why in filter(None, reasons):
        left_out("mention", why)
    count_cut_words((document.words for document in documents), tokenizer, room)
    return reasons.count(None)


def _reasons(
    document: MarkedDocument, starts: Sequence[int], width: int | None, by: str, shared: bool
) -> Iterator[str | None]:
    """Of each mention, why a model cannot use it; None if it can."""
    seen: dict[tuple[int, int], list[str]] = {}
    for mention in document.mentions:
        before, what = seen.setdefault((mention.first, mention.last), []), getattr(mention, by)
        if what in before:
            yield "twice"
        elif before and not shared:
            yield f"of the same words as another {by}'s"
        elif width is not None and mention.last - mention.first >= width:
            yield f"wider than {width} words"
        elif bisect_right(starts, mention.first) != bisect_right(starts, mention.last):
            yield "across windows"
        else:
            yield None
        before.append(what)


def first_of_words(document: MarkedDocument) -> MarkedDocument:
    """The document with the first mention alone of those of the same words."""
    first: dict[tuple[int, int], Mention] = {}
    for mention in document.mentions:
        first.setdefault((mention.first, mention.last), mention)
    return replace(document, mentions=tuple(first.values()))


def unmarked(document: MarkedDocument) -> MarkedDocument:
    """The document without its mentions."""
    return replace(document, mentions=())
