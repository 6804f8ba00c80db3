"""SpanMarker: its mask of markers as links between documents.

SpanMarker gives an encoder rows of a text and of two markers for each of its spans, `[B, 512]`, with a mask
`[B, 512, 512]`: a text sees itself, a pair of markers sees the text and itself. Here a text is a document, and so is
each pair, linked to its text. Columns without meaning are left out, and a text of several rows is encoded once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration import places
from spanbert_kernels.acceleration.forward import PackedForward
from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement


@dataclass(frozen=True)
class MarkedRows:
    """Rows of a batch: how many tokens their texts have, where their markers begin, and how many pairs there are."""

    texts: list[int]
    begins: list[int]
    pairs: list[int]

    @classmethod
    def of(cls, mask: Tensor, start_marker_indices: Tensor, num_marker_pairs: Tensor) -> MarkedRows:
        """Reads a mask `[B, T, T]`.

        Raises:
            OriginalPath: a mask that says anything else.
        """
        size = mask.shape[-1]
        seen = mask.bool().sum(-1)
        texts = seen[:, 0].tolist()
        found = cls(texts, start_marker_indices.tolist(), num_marker_pairs.tolist())
        expected = torch.zeros_like(seen)
        for row, (text, begin, pairs) in enumerate(zip(found.texts, found.begins, found.pairs, strict=True)):
            first, second = (torch.arange(pairs, device=mask.device) + begin + part * pairs for part in (0, 1))
            markers = slice(begin, begin + 2 * pairs)
            if not text <= begin <= begin + 2 * pairs <= size:
                raise OriginalPath("markers that are not behind their text")
            expected[row, :text] = text
            expected[row, markers] = text + 2
            of_row = mask[row].bool()
            whole = of_row[:text, :text].all() and of_row[markers, :text].all()
            if not whole or not all(of_row[a, b].all() for a in (first, second) for b in (first, second)):
                raise OriginalPath("a mask that is not SpanMarker's")
        if not torch.equal(seen, expected):
            raise OriginalPath("a mask that is not SpanMarker's")
        return found


def texts_of(rows: MarkedRows, *inputs: Tensor) -> list[int]:
    """Of each row the first row with the same text, by inputs `[B, T]`."""
    found: list[int] = []
    for row, text in enumerate(rows.texts):
        alike = (
            other
            for other in dict.fromkeys(found)
            if rows.texts[other] == text and all(torch.equal(each[row, :text], each[other, :text]) for each in inputs)
        )
        found.append(next(alike, row))
    return found


@dataclass(frozen=True)
class Linked:
    """The documents of a batch.

    Attributes:
        tokens: where each packed token is in the flattened batch.
        plan: who sees whom.
        markers: where the markers of each pair are among the packed tokens, `[P, 2]`.
        pairs: row and place of each pair in the batch, `[P]` each.
    """

    tokens: Tensor
    plan: ops.AttentionPlan
    markers: Tensor
    pairs: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, rows: MarkedRows, same: list[int], size: int, device: torch.device) -> Linked:
        """Of rows and, for each, the row whose text stands for its own; `size` columns each."""
        tokens: list[Tensor] = []
        lengths: list[int] = []
        links: list[list[int]] = []
        markers: list[Tensor] = []
        where: list[Tensor] = []
        clusters, offset = [0], 0
        for owner in dict.fromkeys(same):
            text, first = rows.texts[owner], len(lengths)
            tokens.append(torch.arange(text) + owner * size)
            lengths.append(text)
            links.append([first])
            offset += text
            for row in (row for row, of in enumerate(same) if of == owner):
                begin, pairs = row * size + rows.begins[row], rows.pairs[row]
                place = torch.arange(pairs)
                tokens.append(torch.stack([begin + place, begin + pairs + place], 1).flatten())
                markers.append(torch.arange(offset, offset + 2 * pairs).view(pairs, 2))
                where.append(torch.stack([torch.full_like(place, row), place]))
                links += [[first, len(links) + pair] for pair in range(pairs)]
                lengths += [2] * pairs
                offset += 2 * pairs
            clusters.append(len(lengths))
        offsets = torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32)
        starts = torch.tensor(list(itertools.accumulate(map(len, links), initial=0)), dtype=torch.int32)
        targets = torch.tensor(list(itertools.chain.from_iterable(links)), dtype=torch.int32)
        plan = ops.plan_attention(
            offsets.to(device),
            torch.tensor(clusters, dtype=torch.int32, device=device),
            "tokens",
            "tokens",
            include_self=True,
            links=(starts.to(device), targets.to(device)),
        )
        row, place = torch.cat(where, 1).to(device)
        return cls(torch.cat(tokens).to(device), plan, torch.cat(markers).to(device), (row, place))


def make(module: Any) -> Callable[..., Any]:
    """What stands for the forward of a model."""
    output_class = type(module).forward.__globals__["SpanMarkerOutput"]

    def forward(
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        start_marker_indices: Tensor,
        num_marker_pairs: Tensor,
        labels: Tensor | None = None,
        num_words: Tensor | None = None,
        document_ids: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        batch, size = input_ids.shape
        if attention_mask.shape != (batch, size, size):
            raise OriginalPath(f"a mask of shape {list(attention_mask.shape)}, not [{batch}, {size}, {size}]")
        rows = MarkedRows.of(attention_mask, start_marker_indices, num_marker_pairs)
        encoder = places.installed(module.encoder)
        if not isinstance(encoder, PackedForward):
            raise OriginalPath("its encoder is not accelerated")
        # Rows that share a text must not share what dropout leaves of it.
        drops = any(isinstance(each, nn.Dropout) and each.training and each.p > 0 for each in module.encoder.modules())
        same = list(range(batch)) if drops else texts_of(rows, input_ids, position_ids)
        linked = Linked.of(rows, same, size, input_ids.device)
        given = {name: each.flatten()[linked.tokens] for name, each in _inputs(input_ids, position_ids).items()}
        hidden = encoder.run_linked(given, linked.plan)
        if isinstance(hidden, str):
            raise OriginalPath(hidden)
        found = module.dropout(hidden[linked.markers]).flatten(1)  # [P, 2 H]
        vectors = found.new_zeros(batch, size // 2, found.shape[1]).index_put(linked.pairs, found)
        logits = module.classifier(module.dropout(vectors))
        loss = None
        if labels is not None:
            loss = module.loss_func(logits.view(-1, module.config.num_labels), labels.view(-1))
        return output_class(
            loss=loss,
            logits=logits,
            num_marker_pairs=num_marker_pairs,
            num_words=num_words,
            document_ids=document_ids,
            sentence_ids=sentence_ids,
        )

    return forward


def _inputs(input_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": input_ids, "token_type_ids": torch.zeros_like(input_ids), "position_ids": position_ids}


REPLACEMENTS = (Replacement("span_marker.modeling.SpanMarkerModel", "markers as documents linked to their text", make),)
