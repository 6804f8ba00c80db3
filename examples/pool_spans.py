"""All spans of some documents: pooled, scored by two layers, and the best of them kept."""

import torch

from spanbert_kernels import ops

torch.manual_seed(0)
cu_seqlens = torch.tensor([0, 20, 35])  # two documents, one after the other
hidden = torch.randn(35, 64, requires_grad=True)
spans = ops.enumerate_spans(cu_seqlens, max_width=5)

vectors = ops.span_pool(hidden, spans, ["start", "end", "max"])
print(f"{len(spans)} spans, vectors of {vectors.shape[1]} numbers")

# A mention scorer: Linear, relu, Linear over [start; end; attention], without the layer between in memory.
first, second = torch.nn.Linear(3 * 64, 150), torch.nn.Linear(150, 1)
attention = torch.nn.Linear(64, 1)(hidden).squeeze(1)
scores = ops.span_score(
    hidden,
    spans,
    ["start", "end", "attention"],
    first.weight,
    first.bias,
    second.weight[0],
    second.bias[0],
    scores=attention,
)

kept = ops.prune_spans(spans, scores.detach(), k=3, cu_seqlens=cu_seqlens)  # three of each document
starts, ends = spans.bounds()
for start, end, score in zip(starts[kept].tolist(), ends[kept].tolist(), scores[kept].tolist(), strict=True):
    print(f"tokens {start} to {end - 1}: {score:.3f}")

scores[kept].sum().backward()
print("tokens with a gradient:", int((hidden.grad != 0).any(1).sum()))
