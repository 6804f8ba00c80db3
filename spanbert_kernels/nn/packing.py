"""How a padded batch maps to its packed form: the tokens of all documents, one after the other, without padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from spanbert_kernels import ops
from spanbert_kernels.ops import checks
from spanbert_kernels.ops.attention.work import UNCOUNTED, TileCounts

# What `remember` left with a padded result, as long as that lives: as an attribute it would be saved with the tensor.
_PACKED = WeakIdKeyDictionary()


@dataclass(frozen=True, eq=False)
class Packing:
    """The real tokens of a padded batch `[B, L]`, in order, and where each document begins among them.

    Attributes:
        indices: int64 `[T]`, positions of the real tokens in the flattened batch `[B * L]`; None if nothing is padding.
        cu_seqlens: int32 `[B + 1]`, offsets of the documents in the packed tokens.
        max_seqlen: number of tokens of the longest document, or more where nobody has measured it.
        batch: B.
        length: L.
        contiguous: whether each document's tokens stand side by side in their row; looked at only on request.
        measured: whether `max_seqlen` is more than a bound.
        read_along: what `from_mask` was given to read along.
        tile_counts, said_max_seqlen: those of `AttentionPlan`.

    Example:
        >>> mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
        >>> packing = Packing.from_mask(mask, 2, 3, mask.device)
        >>> packing.indices.tolist(), packing.cu_seqlens.tolist(), packing.max_seqlen
        ([0, 1, 4], [0, 2, 3], 2)
        >>> packing.pad(packing.pack(torch.arange(6).view(2, 3))).tolist()
        [[0, 1, 0], [0, 4, 0]]
    """

    indices: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    batch: int
    length: int
    contiguous: bool = True
    measured: bool = True
    read_along: bool | None = None
    tile_counts: TileCounts = UNCOUNTED
    said_max_seqlen: int = 0

    @classmethod
    def from_mask(
        cls,
        attention_mask: Tensor | None,
        batch: int,
        length: int,
        device: torch.device | str,
        *,
        look_for_holes: bool = False,
        read_along: Tensor | None = None,
    ) -> Packing:
        """Reads a padding mask `[B, L]` of any dtype: non-zero is a real token. None: every token is real.

        Padding may stand anywhere, and a row may hold no real token. With a mask the host waits for the device once,
        without one never.

        Args:
            attention_mask: `[batch, length]`, or None.
            batch: B.
            length: L.
            device: where the tokens are.
            look_for_holes: whether to find out if padding stands between real tokens (`contiguous`).
            read_along: one bool more that the host wants to know, read while it waits for the device anyway.

        Returns:
            The packing.

        Raises:
            ValueError: the mask is not `[batch, length]`.
        """
        if attention_mask is None or batch * length == 0:
            if attention_mask is not None:
                _check_shape(attention_mask, batch, length)
            offsets = torch.arange(batch + 1, device=device, dtype=torch.int32) * length
            known = None if read_along is None else bool(read_along)
            counts = UNCOUNTED
            if offsets.is_cuda:
                counts = TileCounts.of(torch.full((batch,), length))
            longest = length if batch > 0 else 0
            return cls(None, offsets, longest, batch, length, read_along=known, tile_counts=counts)
        _check_shape(attention_mask, batch, length)
        real = attention_mask.to(device) != 0
        lengths = real.sum(1, dtype=torch.int32)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        counts, found = UNCOUNTED, [cu_seqlens[-1], lengths.max()]
        if look_for_holes:
            begins = real.clone()
            begins[:, 1:] &= ~real[:, :-1]
            found.append(begins.sum(1, dtype=torch.int32).max())
        if read_along is not None:
            found.append(read_along.to(device=found[0].device, dtype=found[0].dtype))
        read = torch.stack(found)
        if real.is_cuda:
            read = torch.cat([read, cu_seqlens]).cpu()
            counts = TileCounts.of(read[len(found) :].diff())
        total, longest, *rest = read[: len(found)].tolist()
        known = None if read_along is None else bool(rest.pop())
        if total == batch * length:
            return cls(None, cu_seqlens, longest, batch, length, read_along=known, tile_counts=counts)
        # nonzero alone would make the host wait a second time
        indices = torch.nonzero_static(real.flatten(), size=total).squeeze(1)
        contiguous = max(rest, default=1) <= 1
        return cls(indices, cu_seqlens, longest, batch, length, contiguous, read_along=known, tile_counts=counts)

    @classmethod
    def from_offsets(cls, cu_seqlens: Tensor, max_seqlen: int | None, length: int) -> Packing:
        """The documents at `cu_seqlens [D + 1]` in one row of `length` tokens, none of which is padding.

        Raises:
            ValueError: offsets that do not ascend from 0 to `length`, or a document longer than `max_seqlen`.
            TypeError: offsets that are not int32 or int64.
        """
        checks.check_offsets("cu_seq_lens_q", cu_seqlens, length, "tokens")
        if torch.compiler.is_compiling():
            return cls(None, cu_seqlens, length if max_seqlen is None else int(max_seqlen), 1, length)
        # On a GPU to look would mean to wait, and who takes a caller's word leaves out what is longer.
        if cu_seqlens.device.type != "cpu":
            said = max_seqlen if isinstance(max_seqlen, int) else 0
            return cls(None, cu_seqlens, length, 1, length, measured=False, said_max_seqlen=said)
        longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        if max_seqlen is not None and longest > max_seqlen:
            raise ValueError(f"max_length_q is {max_seqlen}, but a document has {longest} tokens")
        return cls(None, cu_seqlens, longest, 1, length)

    @property
    def by_row(self) -> bool:
        """Whether each row of the batch is one document."""
        return self.cu_seqlens.shape[0] == self.batch + 1

    @property
    def num_tokens(self) -> int:
        """T, the number of real tokens."""
        return self.batch * self.length if self.indices is None else self.indices.shape[0]

    @cached_property
    def documents(self) -> ops.AttentionPlan:
        """The plan of attention of the documents with themselves, one for all layers."""
        longest = self.max_seqlen if self.measured else 0
        return ops.AttentionPlan.of_documents(
            self.cu_seqlens,
            self.num_tokens,
            longest,
            said_max_seqlen=self.said_max_seqlen,
            tile_counts=self.tile_counts,
            checked=True,
        )

    @cached_property
    def keys_mask(self) -> Tensor | None:
        """Real tokens of each row, bool `[B, 1, 1, L]`, as `scaled_dot_product_attention` takes it; None: all."""
        if self.indices is None:
            return None
        real = torch.zeros(self.batch * self.length, dtype=torch.bool, device=self.indices.device)
        return real.index_fill_(0, self.indices, True).view(self.batch, 1, 1, self.length)

    def pack(self, padded: Tensor) -> Tensor:
        """`[B, L, ...]` -> `[T, ...]`; a view where nothing is padding and the memory allows it."""
        flat = padded.flatten(0, 1)
        return flat if self.indices is None else flat.index_select(0, self.indices)

    def pad(self, packed: Tensor) -> Tensor:
        """`[T, ...]` -> `[B, L, ...]` with zeros at padding; a view where nothing is padding."""
        trailing = packed.shape[1:]
        if self.indices is None:
            return packed.view(self.batch, self.length, *trailing)
        flat = packed.new_zeros(self.batch * self.length, *trailing)
        return flat.index_copy_(0, self.indices, packed).view(self.batch, self.length, *trailing)

    def places(self) -> Tensor:
        """int64 `[T]`: the place of each packed token in its document.

        Example:
            >>> Packing.from_offsets(torch.tensor([0, 2, 5]), None, 5).places().tolist()
            [0, 1, 0, 1, 2]
        """
        starts, lengths = self.cu_seqlens[:-1].long(), self.cu_seqlens.diff().long()
        tokens = torch.arange(self.num_tokens, device=self.cu_seqlens.device)
        return tokens - starts.repeat_interleave(lengths, output_size=self.num_tokens)

    def positions(self) -> Tensor:
        """int64 `[T]`: the column of each packed token in the padded batch."""
        if self.indices is None:
            columns = torch.arange(self.length, device=self.cu_seqlens.device)
            return columns if self.batch == 1 else columns.repeat(self.batch)
        return self.indices % self.length


def remember(padded: Tensor, packed: Tensor, packing: Packing, mask: Tensor | None) -> None:
    """Leave with a padded result what it was padded from, for who can take that: `recall`.

    Args:
        padded: `[B, L, H]`.
        packed: `[T, H]`, its real tokens.
        packing: where they are.
        mask: the mask `[B, L]` that says so, None where nothing is padding.
    """
    if not padded.is_inference() or padded.device.type == "cpu":
        _PACKED[padded] = (packed, packing, mask, _version(padded))


def recall(padded: Tensor, mask: Tensor | None) -> tuple[Tensor, Packing] | None:
    """What a result was padded from, if it was left with it, under this mask, and nobody has changed it since.

    Args:
        padded: `[B, L, H]`.
        mask: `[B, L]` or None, as the result was made with.

    Returns:
        `packed [T, H]` and the packing; or None.

    Example:
        >>> mask = torch.tensor([[1, 1, 0]])
        >>> packing, packed = Packing.from_mask(mask, 1, 3, "cpu"), torch.tensor([[1.0], [2.0]])
        >>> padded = packing.pad(packed)
        >>> remember(padded, packed, packing, mask)
        >>> recall(padded, mask)[0] is packed
        True
        >>> recall(padded.mul_(2), mask) is None
        True
    """
    found = _PACKED.get(padded)
    if found is None or found[2] is not mask or found[3] != _version(padded):
        return None
    return found[:2]


def _version(tensor: Tensor) -> int | bytes:
    """Differs after a change in place; where PyTorch counts none, it is the values of the first and the last token."""
    if not tensor.is_inference():
        return tensor._version
    ends = tensor.flatten(0, 1)[:: max(tensor.shape[0] * tensor.shape[1] - 1, 1)]
    return ends.contiguous().view(torch.uint8).numpy().tobytes()


def _check_shape(attention_mask: Tensor, batch: int, length: int) -> None:
    if attention_mask.shape != (batch, length):
        raise ValueError(f"attention_mask must be [{batch}, {length}], got {list(attention_mask.shape)}")
