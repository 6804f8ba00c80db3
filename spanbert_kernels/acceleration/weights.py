"""Are tensors that were copied still what they were?

What is compared on every call: each tensor's address, version counter, dtype, shape and strides, and the bits of a
few of its elements. The version tells of edits through the parameter (optimisers, load_state_dict, copy_), the address
of replaced storage (.to, assigned .data), the elements of edits through `.data`, which no counter records. An edit
through `.data`, or of an inference-mode parameter (they have no counter), that spares the sampled elements is not seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spanbert_kernels.ops import library

SAMPLES_PER_TENSOR = 16
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def copyable(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> bool:
    """Whether all are plain, dense tensors on a CPU, whose changes can be seen; of this dtype, if one is given."""
    return all(
        type(tensor) in (torch.nn.Parameter, Tensor)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.dtype in _BITS
        and dtype in (None, tensor.dtype)
        and tensor.is_contiguous()
        for tensor in tensors
    )


@dataclass
class Watch:
    """What copied tensors were: where they lay, and some of their elements."""

    signature: list[tuple[object, ...]]
    # Aliases of a few elements of every tensor: they also keep an old storage's address from being given out again.
    samples: list[Tensor]
    read: Callable[[], Tensor]
    sampled: Tensor

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Watch:
        """Remembers tensors that are `copyable`."""
        with torch.no_grad():
            samples = [_sample(tensor) for tensor in tensors]
            read = _reader(samples)
            return cls(signature_of(tensors), samples, read, read())

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are still the same."""
        if self.signature != signature_of(tensors):
            return False
        with torch.no_grad():
            return torch.equal(self.read(), self.sampled)


def signature_of(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """Where each tensor lies, what it is, and how often it was written to."""
    try:
        return [(t.data_ptr(), t._version, t.dtype, t.shape, t.stride()) for t in tensors]
    except RuntimeError:  # inference-mode tensors have no version
        return [(t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype, t.shape, t.stride()) for t in tensors]


def _reader(samples: Sequence[Tensor]) -> Callable[[], Tensor]:
    """What reads the elements of all samples, while these live: by their addresses, where the kernels are there."""
    if not samples or library.load_cpu() is not None:
        return lambda: torch.cat(list(samples)) if samples else torch.empty(0)
    places = [
        (s.data_ptr() + i * s.stride(0) * s.element_size(), s.element_size()) for s in samples for i in range(len(s))
    ]
    addresses, sizes = torch.tensor(places, dtype=torch.int64).unbind(1)
    read: Callable[[Tensor, Tensor], Tensor] = torch.ops.spanbert_kernels.elements_at
    return functools.partial(read, addresses.contiguous(), sizes.contiguous())


def _sample(tensor: Tensor) -> Tensor:
    """A view of elements spread over the tensor, as integers: NaN must equal itself, and 0.0 differ from -0.0."""
    flat = tensor.detach().view(-1).view(_BITS[tensor.dtype])
    # An odd step, so that the samples do not all fall into one column.
    step = max(1, flat.numel() // SAMPLES_PER_TENSOR - 1) | 1
    return flat[::step][:SAMPLES_PER_TENSOR]
