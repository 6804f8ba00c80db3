"""What one stream of a GPU makes and others read, and what a CUDA graph that is being captured may make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, cuda

Value = TypeVar("Value", bound=Iterable[object])

NOT_MADE = (
    "this plan's lists for a GPU are not made yet, and what is made while a CUDA graph is captured holds nothing "
    "before the graph runs: call the plan's prepare() before the capture"
)
OF_A_GRAPH = (
    "this plan was made while a CUDA graph was captured, and its lists hold nothing outside of the graph: make it "
    "before the capture"
)


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched now becomes part of a CUDA graph."""
    return device.type == "cuda" and cuda.is_initialized() and cuda.is_current_stream_capturing()


class Made(Generic[Value]):
    """Tensors that were just made on the current stream of their device, for any stream to read.

    Each stream that reads them waits once for the one that made them, and their memory is not used anew before it has
    read them. A graph's capture waits for nothing: it begins when all that was launched before is done.

    Args:
        value: the tensors, and what else there is.
    """

    def __init__(self, value: Value) -> None:
        self.value = value
        self.tensors = [leaf for leaf in value if isinstance(leaf, Tensor)]
        devices = [tensor.device for tensor in self.tensors if tensor.device.type == "cuda"]
        self.device = devices[0] if devices and cuda.is_initialized() else None  # fake tensors have no stream
        self.captured = self.device is not None and is_capturing(self.device)
        if self.device is not None and not self.captured:
            stream = cuda.current_stream(self.device)
            self.streams = {stream.cuda_stream}
            self.event = cuda.Event()
            self.event.record(stream)

    def __reduce__(self) -> tuple[Callable[[Value], Made[Value]], tuple[Value]]:
        return Made, (self.value,)

    def here(self) -> Value:
        """What was made, for the current stream."""
        if self.device is None:
            return self.value
        if self.captured:
            if not is_capturing(self.device):
                raise RuntimeError(OF_A_GRAPH)
        elif torch._C._cuda_getCurrentRawStream(self.device.index) not in self.streams:
            self._join(self.device)
        return self.value

    def _join(self, device: torch.device) -> None:
        if is_capturing(device):
            return
        stream = cuda.current_stream(device)
        stream.wait_event(self.event)
        for tensor in self.tensors:
            tensor.record_stream(stream)
        self.streams.add(stream.cuda_stream)


def make_for_all(make: Callable[[], Value], sources: Iterable[Tensor | None], in_graph: bool) -> Made[Value]:
    """What `make` makes of a plan's tensors on the current stream, fit for autograd: a plan outlives its first call.

    Args:
        make: makes them.
        sources: what it reads.
        in_graph: the plan belongs to the graph that is being captured.

    Raises:
        RuntimeError: a graph is being captured that the plan is older than.
    """
    tensors = [tensor for tensor in sources if tensor is not None and tensor.device.type == "cuda"]
    if tensors and cuda.is_initialized():
        if is_capturing(tensors[0].device):
            if not in_graph:
                raise RuntimeError(NOT_MADE)
        else:
            for tensor in tensors:
                tensor.record_stream(cuda.current_stream(tensor.device))
    with torch.inference_mode(False):
        return Made(make())
