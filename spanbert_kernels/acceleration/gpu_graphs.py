"""CUDA graphs of an encoder's layers, one for each bucket of sizes: what a batch launches is then one launch.

A graph does again what it was captured with, on the same addresses. So tokens and the documents' offsets are copied to
where all graphs read them; the lists of attention's tiles are made inside of a graph, from those offsets; parameters
are read where they lie, and where they lie elsewhere than before, graphs are captured anew. The rows behind the last
token belong to no document, and what is made of them is seen by nobody.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.acceleration.attention import Batch
from spanbert_kernels.acceleration.gpu_program import longest_of
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops.attention.work import MOST_DOCUMENTS
from spanbert_kernels.ops.repeats import unseen
from spanbert_kernels.ops.streams import is_capturing

MOST_GRAPHS = 32  # those that were not used for longest make room
MOST_TOKENS = 2**13  # with more, a GPU computes for longer than launches take
FEWEST_TOKENS = 16

Run = Callable[[Tensor, Batch], Tensor]  # the layers, launch by launch


class Bucket(NamedTuple):
    """Sizes that a graph serves: at most so many tokens and documents, none longer than `longest` (0: any length).

    Example:
        >>> offsets = torch.tensor([0, 30, 50, 75], dtype=torch.int32)
        >>> Bucket.of(Packing.from_offsets(offsets, None, 75))
        Bucket(tokens=80, documents=4, longest=32)
    """

    tokens: int
    documents: int
    longest: int

    @classmethod
    def of(cls, packing: Packing) -> Bucket:
        """The smallest that holds a batch: at most an eighth of many tokens is added."""
        tokens, documents = packing.num_tokens, packing.cu_seqlens.shape[0] - 1
        step = max(FEWEST_TOKENS, 2 ** max(tokens.bit_length() - 4, 0))
        return cls(-(-tokens // step) * step, 1 << max(documents - 1, 0).bit_length(), longest_of(packing))


class CudaGraph:
    """What a function launches on a GPU.

    Args:
        function: launches it; everything that it needs has been made before.
        pool: the memory that it takes what it makes from.

    Attributes:
        device_type: where there are such graphs.
    """

    device_type = "cuda"

    def __init__(self, function: Callable[[], object], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            function()

    @staticmethod
    def new_pool() -> Any:
        """Memory that graphs share: of two, neither runs while the other does."""
        return torch.cuda.graph_pool_handle()

    def replay(self) -> None:
        """Launch it on the current stream."""
        self._graph.replay()


class Graphs:
    """The graphs of layers, whose hidden states are alike in all but their number.

    Args:
        refused: why there are none, or None.

    Attributes:
        path: how the latest call ran, in words.
        refused: why no graph can be captured, whatever the batch, or None.
        kept: the graphs by bucket, the latest used last.
    """

    def __init__(self, refused: str | None) -> None:
        self.path = ""
        self.kept: OrderedDict[Bucket, CudaGraph] = OrderedDict()
        self.refused = refused
        self._lock = threading.Lock()
        self._room: tuple[Tensor, Tensor] | None = None  # hidden states, and offsets
        self._pool: Any = None
        self._addresses: Any = None
        self._done: torch.cuda.Event | None = None  # of the latest call, for the next on another stream

    def refusal(self, hidden: Tensor, batch: Batch) -> str | None:
        """Why a batch is launched kernel by kernel, or None."""
        if self.refused is not None:
            return self.refused
        packing, device = batch.packing, hidden.device.type
        if device != CudaGraph.device_type:
            return f"hidden states are on {device}"
        if batch.linked is not None:
            return "documents see each other"
        if torch.is_autocast_enabled(device):
            return "autocast casts weights to memory that it gives back"
        if packing.num_tokens > MOST_TOKENS or packing.cu_seqlens.shape[0] > MOST_DOCUMENTS:
            return f"a batch has more than {MOST_TOKENS} tokens or {MOST_DOCUMENTS - 1} documents"
        if torch.is_grad_enabled() or not unseen():
            return "gradients are on, or something looks at each operator"
        return "another graph is being captured" if is_capturing(hidden.device) else None

    def run(self, layers: Run, addresses: Any, hidden: Tensor, batch: Batch) -> Tensor:
        """The layers of a batch, `hidden [T, H]` -> `[T, H]`, in memory of its own.

        Args:
            layers: launches them one by one.
            addresses: where all that they read lies, in whatever form; others than before mean other graphs.
            hidden: `[T, H]`.
            batch: how it is packed.
        """
        reason = "there are no tokens" if not len(hidden) else self.refusal(hidden, batch)
        if reason is not None:
            self.path = f"launched one by one: {reason}"
            return layers(hidden, batch)
        with self._lock:
            if addresses != self._addresses:
                self._forget()
                self._addresses = addresses
            return self._run(layers, hidden, batch.packing)

    def _run(self, layers: Run, hidden: Tensor, packing: Packing) -> Tensor:
        bucket, count = Bucket.of(packing), len(hidden)
        all_rows, all_offsets = self._rooms(hidden)
        rows, offsets = all_rows[: bucket.tokens], all_offsets[: bucket.documents + 1]
        if self._done is not None:  # before it is written to what the latest call reads, on whichever stream
            torch.cuda.current_stream(hidden.device).wait_event(self._done)
        rows[:count].copy_(hidden)
        ends = packing.cu_seqlens.shape[0]
        offsets[:ends].copy_(packing.cu_seqlens)
        offsets[ends:].fill_(count)
        graph = self.kept.get(bucket)
        if graph is None:

            def launch() -> None:
                # Made anew, as lists that were made before the capture would be no part of it.
                padded = Packing(None, offsets, bucket.longest, 1, bucket.tokens, measured=bucket.longest > 0)
                rows.copy_(layers(rows, Batch(padded)))

            launch()  # compiles what is not compiled yet, and has this call's result
            result = rows[:count].clone()
            self._capture(bucket, launch)
        else:
            graph.replay()
            result = rows[:count].clone()
            self.kept.move_to_end(bucket)
            self.path = f"CUDA graph of {bucket.tokens} tokens replayed"
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(hidden.device))
        return result

    def _capture(self, bucket: Bucket, launch: Callable[[], None]) -> None:
        try:
            captured = CudaGraph(launch, self._pool)
        except RuntimeError as error:
            self.refused = f"a graph could not be captured ({str(error).partition(chr(10))[0]})"
            self.path = f"launched one by one: {self.refused}"
            return
        self.path = f"CUDA graph of {bucket.tokens} tokens captured"
        if len(self.kept) >= MOST_GRAPHS:
            self._finish()
            self.kept.popitem(last=False)
        self.kept[bucket] = captured

    def _rooms(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._room is None:
            with torch.inference_mode(False):  # they are written to in and outside of it
                rows = like.new_zeros(MOST_TOKENS, like.shape[1])
                self._room = rows, like.new_zeros(MOST_DOCUMENTS + 1, dtype=torch.int32)
            self._pool = CudaGraph.new_pool()
            self._done = torch.cuda.Event() if like.device.type == "cuda" else None
        return self._room

    def _finish(self) -> None:
        """Nothing of a graph still runs when it is let go."""
        if self._done is not None:
            self._done.synchronize()

    @property
    def num_bytes(self) -> int:
        """Memory kept beside that of the graphs."""
        return sum(each.numel() * each.element_size() for each in self._room or ())

    def _forget(self) -> None:
        if self.kept:
            self._finish()
        self.kept.clear()
