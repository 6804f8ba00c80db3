"""Small cases of the kernels on a GPU, forward and backward, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --error-exitcode 1 python tests/gpu/sanitizer_cases.py
    compute-sanitizer --tool racecheck --error-exitcode 1 python tests/gpu/sanitizer_cases.py

With `--few` only those of one shape and dtype.
Prints a line for every case that it ran and for every backend that it could not, compares with the eager backend
roughly, and ends with status 1 if a result is wrong or no kernel ran at all.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Every tensor in an allocation of its own: inside a shared one, a read beyond the end would be nobody's error.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch
from torch import Tensor

from spanbert_kernels.ops import (
    backends,
    cross_document_attention,
    document_attention,
    enumerate_spans,
    plan_spans,
    span_gather,
    span_pool,
)

BACKENDS = ("cuda", "triton")
FEW = re.compile(r", (90 tokens|heads of 64)\b.*, bfloat16$")
PARTS = ["width", "max", "start", "attention", "mean", "end", "sum"]
Case = tuple[str, Callable[..., Tensor], dict[str, Any]]


def random_spans(count: int, tokens: int, width: int) -> Tensor:
    start = torch.randint(0, tokens, (count,))
    return torch.stack([start, (start + torch.randint(0, width + 1, (count,))).clamp(max=tokens) - 1], 1)


def gathered(hidden: Tensor, spans: Any, padded: bool, backend: str) -> Tensor:
    return span_gather(hidden, spans, padded=padded, backend=backend)[0]


def cases() -> Iterator[Case]:
    """Aligned and other row lengths, every form of spans, widths around the kernels' groups of 8 tokens."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens, columns, count, width in ((1, 1, 3, 1), (37, 24, 50, 9), (90, 131, 200, 40)):
            hidden = torch.randn(tokens, columns).to("cuda", dtype)
            spans = random_spans(count, tokens, width).cuda()
            plan = plan_spans(spans, num_tokens=tokens)
            cu_seqlens = torch.tensor([0, tokens // 2, tokens // 2, tokens]).cuda()
            forms = {"tensor": spans, "plan": plan, "enumeration": enumerate_spans(cu_seqlens, 5)}
            rest = {"scores": torch.randn(tokens, 2).cuda(), "width_embedding": torch.randn(4, 3).to("cuda", dtype)}
            for form, given in forms.items():
                shape = f"{tokens} tokens x {columns}, {form}, {str(dtype).removeprefix('torch.')}"
                yield f"span_pool, {shape}", span_pool, {"hidden": hidden, "spans": given, "parts": PARTS, **rest}
                for part in ("mean", "max", "attention") if form == "plan" else ():
                    scores = {"scores": rest["scores"]} if part == "attention" else {}
                    yield (
                        f"span_pool {part}, {shape}",
                        span_pool,
                        {
                            "hidden": hidden,
                            "spans": given,
                            "parts": [part],
                            **scores,
                        },
                    )
                for padded in (False, True):
                    name = f"span_gather{', padded' if padded else ''}, {shape}"
                    yield name, gathered, {"hidden": hidden, "spans": given, "padded": padded}


def attention_cases() -> Iterator[Case]:
    """Tiles that end inside documents, a document alone, an empty one; heads of every size, and one too wide."""
    lengths = torch.tensor([70, 0, 20, 3])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).cuda()
    cu_clusters, rows = torch.tensor([0, 3, 4]).cuda(), {"anchors": 4, "tokens": 93}
    dropout = {"dropout_p": 0.2, "seed": torch.tensor([5]).cuda()}
    for dtype in (torch.float32, torch.bfloat16):
        for dim in (20, 64, 96, 128, 130):
            shape = f"heads of {dim}, {str(dtype).removeprefix('torch.')}"
            tensors = {name: torch.randn(93, 2, dim).to("cuda", dtype) for name in "qkv"}
            yield f"document_attention, {shape}", document_attention, {**tensors, "cu_seqlens": cu_seqlens, **dropout}
            for queries, keys, normalize in itertools.product(rows, rows, ("joint", "pairwise")):
                sides = {"queries": queries, "keys": keys, "normalize": normalize}
                sized = {name: tensors[name][: rows[queries if name == "q" else keys]] for name in "qkv"}
                given = {**sized, "cu_seqlens": cu_seqlens, "cu_clusters": cu_clusters, **sides, **dropout}
                yield (
                    f"cross_document_attention, {queries} x {keys}, {normalize}, {shape}",
                    cross_document_attention,
                    given,
                )


def run(call: Callable[..., Tensor], arguments: dict[str, Any], backend: str) -> list[Tensor]:
    leaves = {
        name: value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    output = call(**leaves, backend=backend)
    sources = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor) and leaf.requires_grad]
    grad = torch.linspace(-1, 1, output.numel(), device="cuda").view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, sources, grad)]


def main() -> int:
    if not torch.cuda.is_available():
        print("sanitizer cases: nothing was run, there is no CUDA GPU here")
        return 1
    ran, wrong, few = 0, 0, "--few" in sys.argv[1:]
    for backend in BACKENDS:
        reason = backends.refusal(backend, "cuda", torch.float32)
        if reason is not None:
            print(f"{backend}: not run, {reason}")
            continue
        attends = backend in backends._registry["cross_document_attention"]
        found = itertools.chain(cases(), attention_cases() if attends else ())
        for name, call, arguments in filter(lambda case: FEW.search(case[0]), found) if few else found:
            with backends.record() as calls:
                results = run(call, arguments, backend)
            assert {used for _, used in calls} == {backend}, f"asked for {backend}, but {calls} ran"
            tolerance = 1e-4 if results[0].dtype == torch.float32 else 5e-2
            bad = [
                i
                for i, (a, b) in enumerate(zip(results, run(call, arguments, "eager"), strict=True))
                if b.numel()
                and not torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance * float(b.abs().max() + 1))
            ]
            print(f"{backend}: {name}: {'ran' if not bad else f'WRONG, results {bad}'}")
            ran, wrong = ran + 1, wrong + bool(bad)
    print(f"sanitizer cases: {ran} ran on {torch.cuda.get_device_name()}, {wrong} gave wrong results")
    return int(wrong > 0 or ran == 0)


if __name__ == "__main__":
    sys.exit(main())
