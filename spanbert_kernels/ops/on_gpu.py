"""Which calls a GPU's kernels take as they are, without autograd's, autocast's or a compiler's knowing."""

from __future__ import annotations

from torch import Tensor

from spanbert_kernels.ops import backends, products


def is_on_gpu(hidden: Tensor) -> bool:
    """Whether kernels of a GPU are to take hidden states: they are on one, or Triton was asked for by name."""
    return hidden.device.type == "cuda" or backends.asked() == "triton"


def takes(*tensors: Tensor | None) -> bool:
    """Whether a GPU's kernels take a call on these, of which the first is there: of one dtype, and as they seem."""
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        is_on_gpu(given[0])
        and backends.asked() in (None, "triton")
        and backends.refusal("triton", given[0].device.type, given[0].dtype) is None
        and all(tensor.dtype == given[0].dtype for tensor in given)
        and products.ordinary(*given)
    )
