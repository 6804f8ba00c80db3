"""What transformers' layers hand from the mask function to the attention function: which tokens are real."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from spanbert_kernels.nn.packing import Packing


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
            ValueError: some token is padding, or offsets that `Packing.from_offsets` refuses.
        """
        device = cu_seqlens.device
        if self.packing(device).indices is not None:
            raise ValueError("attention_mask has padding, but a batch packed by cu_seq_lens_q must have none")
        known = self._given.get(device)
        if known is None or known[0] is not cu_seqlens:
            known = self._given[device] = (cu_seqlens, Packing.from_offsets(cu_seqlens, max_seqlen, self.shape[1]))
        return known[1]


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
