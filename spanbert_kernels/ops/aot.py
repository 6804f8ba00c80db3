"""What the Triton kernels are compiled for ahead of time, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AotConfiguration:
    """One kernel as one launch compiles it. Every `ops/<op>/triton.py` lists its own in `aot_configurations()`.

    Attributes:
        name: unique in its operation, e.g. `forward bf16`.
        kernel: the function under `triton.jit`.
        signature: Triton's type of every argument, by name and in any order: `*bf16` (a pointer), `i64`, `fp32`, or
            `constexpr`.
        constexprs: the value of every `constexpr` argument.
        num_warps, num_stages: as the launch passes them.
        divisible: integer arguments that a typical call passes as multiples of 16 (a row's stride): the compiler then
            reads whole vectors. Pointers always count as aligned.

    Example:
        >>> AotConfiguration("copy", None, {"x": "*fp32", "n": "i64", "stride": "i64"}, {}, 4, 2, ("stride",)).aligned()
        ('x', 'stride')
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()

    def aligned(self) -> tuple[str, ...]:
        """The arguments that are multiples of 16: the pointers and what `divisible` names."""
        return tuple(name for name, kind in self.signature.items() if kind.startswith("*") or name in self.divisible)
