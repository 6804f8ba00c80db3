"""What transformers' layers hand from the mask function to the attention function: which tokens are real."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops import checks


class PaddingMask:
    """The padding of one forward pass, packed at the first layer and then shared by all.

    Made anew in every pass, so that it cannot go stale; and no tensor, so that another attention function which is
    handed one by mistake raises instead of reading it in its own way.

    Example:
        >>> mask = PaddingMask(torch.tensor([[True, True, False]]), 1, 3)
        >>> mask.packing(torch.device("cpu")).indices.tolist()
        [0, 1]
    """

    def __init__(self, real: Tensor | None, batch: int, length: int) -> None:
        if real is not None and real.shape != (batch, length):
            raise ValueError(f"attention_mask must be [{batch}, {length}], got {list(real.shape)}")
        self.shape = (batch, length)
        self._real = real
        self._packings: dict[torch.device, Packing] = {}  # a model may be spread over devices
        self._given: dict[torch.device, tuple[Tensor, Packing]] = {}

    def packing(self, device: torch.device) -> Packing:
        """The real tokens on a device; waits for it at most once a pass, and never where no mask was given."""
        if device not in self._packings:
            self._packings[device] = Packing.from_mask(self._real, *self.shape, device)
        return self._packings[device]

    def given(self, cu_seqlens: Tensor, max_seqlen: int | None) -> Packing:
        """The documents at `cu_seqlens` of a batch that came packed as one row.

        Raises:
            ValueError: some token is padding, or offsets that `given_packing` refuses.
        """
        device = cu_seqlens.device
        if self.packing(device).indices is not None:
            raise ValueError("attention_mask has padding, but a batch packed by cu_seq_lens_q must have none")
        known = self._given.get(device)
        if known is None or known[0] is not cu_seqlens:
            known = self._given[device] = (cu_seqlens, given_packing(cu_seqlens, max_seqlen, self.shape[1]))
        return known[1]


def given_packing(cu_seqlens: Tensor, max_seqlen: int | None, length: int) -> Packing:
    """The documents at `cu_seqlens` in one row of `length` tokens.

    Raises:
        ValueError: offsets that do not ascend from 0 to `length`, or a document longer than `max_seqlen`.
        TypeError: offsets that are not int32 or int64.
    """
    checks.check_offsets("cu_seq_lens_q", cu_seqlens, length, "tokens")
    if torch.compiler.is_compiling():
        return Packing(None, cu_seqlens, length if max_seqlen is None else int(max_seqlen), 1, length)
    # On a GPU the caller's word is taken: to look would mean to wait.
    if max_seqlen is None or cu_seqlens.device.type == "cpu":
        longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        if max_seqlen is not None and longest > max_seqlen:
            raise ValueError(f"max_length_q is {max_seqlen}, but a document has {longest} tokens")
    else:
        longest = int(max_seqlen)
    return Packing(None, cu_seqlens, longest, 1, length)


def packing_in_graph(real: Tensor) -> Packing:
    """The packing of a mask `[B, L]` for a traced graph: no size depends on the mask's values.

    In each row the real tokens come first, as one document, and the padding follows as another, whose values mean
    nothing.
    """
    batch, length = real.shape
    begin = torch.arange(batch, device=real.device)[:, None] * length  # [B, 1]
    ends = torch.cat([begin + real.sum(1, keepdim=True), begin + length], 1)  # [B, 2]
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True) + begin
    return Packing(order.flatten(), pad(ends.flatten(), (1, 0)), length, batch, length)
