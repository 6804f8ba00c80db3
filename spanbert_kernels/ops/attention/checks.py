"""Checks of attention's arguments."""

from __future__ import annotations

from torch import Tensor

from spanbert_kernels.ops import checks


def check_heads(q: Tensor, k: Tensor, v: Tensor, rows: str) -> None:
    """`q`, `k`, `v` agree in heads, size, dtype and device, and `k`, `v` in rows."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.check_floating(name, tensor, 3, f"[{rows}, heads, head_dim]")
    for name, tensor in (("k", k), ("v", v)):
        checks.check_same(name, tensor, "q", q)
        if tensor.shape[1:] != q.shape[1:]:
            raise ValueError(
                f"{name} must have {list(q.shape[1:])} (heads, head_dim) as q has, got {list(tensor.shape[1:])}"
            )
    if k.shape != v.shape:
        raise ValueError(f"k and v must have the same shape, got {list(k.shape)} and {list(v.shape)}")
    if q.shape[2] == 0:
        raise ValueError(f"head_dim must be at least 1, got q of shape {list(q.shape)}")


def check_scale(scale: float | None, q: Tensor) -> float:
    """The scale of the logits, by default that of the heads' size."""
    if scale is None:
        return q.shape[2] ** -0.5
    checks.check_number("scale", scale)
    return scale
