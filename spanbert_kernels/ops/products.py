"""Linear layers of training on a CPU, through the product that this processor multiplies by fastest.

In float32 PyTorch's own products are MKL's, which on some processors runs far below what they can do; oneDNN, which
PyTorch has as well, does not. Which one it is to be is measured (`ops/measured.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from spanbert_kernels.ops import large, onednn
from spanbert_kernels.ops.measured import Candidate, Choice

VARIABLE = "SPANBERT_KERNELS_PRODUCTS"
FEWEST_ROWS = 64  # below it a product reads its weight and little else, and packing of any kind decides
_MEASURED_SHAPE = (384, 768, 768)  # rows, in, out: a few milliseconds
_PLAIN = (Tensor, torch.nn.Parameter)

# Of x `[T, in]`, weight `[out, in]` and bias, `x W^T + b`. Weights may be transposed.
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By weights without gaps: others it multiplies a thousand times slower, or, where they overlap, not at all."""
    if bias is None and x.dim() == 2 and x.stride(1) != 1 and weight.stride(0) == 1:  # a weight's gradient
        return onednn.transposed_product(x.t(), weight.t().contiguous())
    dense = weight.t().contiguous().t() if weight.stride(0) == 1 else weight.contiguous()
    return onednn.linear(x, dense, bias)


def _torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's own, into memory on huge pages where that is large."""
    result = large.new_empty(x, *x.shape[:-1], len(weight))
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # no -1, as there may be no columns
    _multiply(rows, weight, bias, result.view(len(rows), len(weight)))
    return result


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, to: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(rows, weight.t(), out=to)
    return torch.addmm(bias, rows, weight.t(), out=to)


PRODUCTS: dict[str, Product] = {"torch": _torch, "onednn": _onednn}


def _on_tensor_cores(x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = torch.mm(x, weight.t(), out_dtype=torch.float32)
    return result


# Of x `[T, in]` and weight `[out, in]`, both in 16 bits, `x W^T` in float32, by the type of the device: those whose
# units for it are many times faster than their float32.
OF_16_BITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cuda": _on_tensor_cores}


# Of a gradient in float32 `[rows, columns]` and a dtype of 16 bits what `parts_of` returns, by the type of the device,
# where a kernel makes it in one pass.
PARTS_OF: dict[str, Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor | None]]] = {}


def parts_of(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Float32 in two numbers of 16 bits each: what rounding leaves of one is the other.

    Args:
        values: `[rows, columns]`.
        dtype: bfloat16, whose two hold 16 bits of a number, or float16, whose hold 22 of the largest ones; those of
            numbers that are 2^-18 of the largest get fewer.

    Returns:
        `[rows, 2 * columns]`, the second parts behind the first ones, and the number that they are multiples of, if it
        is not 1. Infinite numbers and NaN have no second part.

    Source: the split of Markidis et al. 2018 for products on tensor cores.

    Example:
        >>> parts_of(torch.tensor([[1.00390625 + 2**-12]]), torch.bfloat16)[0].tolist()
        [[1.0078125, -0.003662109375]]
    """
    unit = unit_of(values, dtype)
    scaled = values if unit is None else values / unit
    high = scaled.to(dtype)
    low = torch.where(scaled.isfinite(), scaled - high, 0.0).to(dtype)
    return torch.cat([high, low], 1), unit


def unit_of(values: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What numbers are divided by to be no larger than a dtype holds: a power of two, None where all float32 can be."""
    if dtype == torch.bfloat16 or values.numel() == 0:
        return None
    largest = torch.where(values.isfinite(), values, 0.0).abs().amax()
    return torch.exp2((torch.frexp(largest).exponent - 15).clamp(min=-110).to(values.dtype))


def gradients_of_16_bits(grad: Tensor, x: Tensor | None, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """`gradients` in float32 of x and weight in 16 bits, by products of 16 bits with both parts of `grad`.

    Args:
        grad: `[rows, out]`, float32.
        x: `[rows, in]`, where the gradient of the weight is wanted.
        weight: `[out, in]`, where that of x is.
    """
    known = weight if x is None else x
    assert known is not None
    product = OF_16_BITS[known.device.type]
    parts, unit = PARTS_OF.get(known.device.type, parts_of)(grad, known.dtype)
    of_x = of_weight = None
    if weight is not None:
        of_x = product(parts, torch.cat([weight, weight]).t())
    if x is not None:
        both = product(parts.t(), x.t())
        of_weight = both[: grad.shape[1]] + both[grad.shape[1] :]
    if unit is not None:
        of_x, of_weight = (None if found is None else found * unit for found in (of_x, of_weight))
    return of_x, of_weight


def gradients(
    product: Product, grad: Tensor, x: Tensor | None, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x, where `weight` is given, and of the weight, where `x` is; all `[rows, columns]`."""
    grad = grad.contiguous()
    return (
        None if weight is None else product(grad, weight.t(), None),
        None if x is None else product(grad.t(), x.t(), None),
    )


def _step(product: Product) -> Callable[[], object]:
    """A layer's three products, forward and backward."""
    rows, size, outputs = _MEASURED_SHAPE
    x, weight, grad = (
        torch.linspace(-1, 1, first * second).view(first, second)
        for first, second in ((rows, size), (outputs, size), (rows, outputs))
    )
    return lambda: (product(x, weight, weight[0]), gradients(product, grad, x, weight))


def _onednn_refusal() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    x, weight = torch.linspace(-1, 1, 32).view(2, 16), torch.linspace(-1, 1, 128).view(8, 16)
    with torch.inference_mode(False), torch.no_grad():
        try:
            found = [
                _onednn(x, weight, weight[:, 0].contiguous()),
                _onednn(weight[:2, :8], weight.t(), None),
                _onednn(weight[:2, :8].t(), x.t(), None),
            ]
        except (AttributeError, RuntimeError) as error:
            return f"oneDNN does not multiply here ({str(error).splitlines()[0]})"
        wanted = [F.linear(x, weight, weight[:, 0]), weight[:2, :8] @ weight, weight[:2, :8].t() @ x]
    right = all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))
    return None if right else "oneDNN's products are wrong here"


CHOICE = Choice(
    "products float32",
    VARIABLE,
    {
        "torch": Candidate(lambda: _step(F.linear)),
        "onednn": Candidate(lambda: _step(_onednn), _onednn_refusal),
    },
)


def products() -> dict[str, str]:
    """What multiplies in training on a CPU, by dtype: the way and why. Asking makes the choice, if it was not made.

    Example:
        >>> sorted(products())
        ['float32']
    """
    return {"float32": str(CHOICE)}


def product_for(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product | None:
    """What is to multiply in the place of PyTorch's own, or None where that stays.

    It stays in another dtype or on another device, for few rows, for tensors that are more than they seem, and where
    somebody watches PyTorch's operators: in compiled functions, function transforms and under autocast.
    """
    fits = _fits(x, weight, bias) and x.numel() >= FEWEST_ROWS * weight.shape[1]
    if not fits or not torch.backends.mkldnn.enabled:
        return None
    way = CHOICE.found().way
    return None if way == "torch" else PRODUCTS[way]


def product_of(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product:
    """What is to multiply, PyTorch's own included."""
    return product_for(x, weight, bias) or (_torch if _fits(x, weight, bias) else F.linear)


def between(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`product(x, weight, bias)` of `x [T, in]` for what is read soon and then gone (`large.new_rows`)."""
    if product is not _torch:
        return product(x, weight, bias)
    return _multiply(x, weight, bias, large.new_rows(x, len(x), len(weight)))


def pieces(product: Product, rows: int) -> list[slice]:
    """Of so many rows those that a product multiplies at once: what is made of a piece needs no copy.

    Example:
        >>> pieces(PRODUCTS["torch"], 1100), pieces(PRODUCTS["onednn"], 1100)
        ([slice(0, 1100, None)], [slice(0, 1024, None), slice(1024, 1100, None)])
    """
    if product is not _onednn or not rows:
        return [slice(0, rows)]
    counts = [count for _, count in onednn.sizes_of_rows(rows)]
    ends = itertools.accumulate(counts)
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this is a product of ordinary matrices in float32 on a CPU, whose shapes fit."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and ordinary(*tensors)
        and weight.dim() == 2
        and x.dim() > 0
        and x.shape[-1] == weight.shape[1]
        and weight.numel() > 0
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _is_large(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether PyTorch's own product, or the gradient of its weight, is better written to memory on huge pages."""
    results = x.numel() // max(weight.shape[-1], 1) * len(weight) if weight.dim() == 2 else 0
    gradients = weight.numel() if torch.is_grad_enabled() and weight.requires_grad else 0
    return max(results, gradients) * x.element_size() >= large.BYTES and _fits(x, weight, bias)


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether a call on tensors is no more than it seems: no subclass, no autocast, transform or tracing."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled(next(each.device.type for each in tensors if each is not None))
        or any(type(each) not in _PLAIN or each.layout != torch.strided for each in tensors if each is not None)
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, through the product that is fastest here, with all its derivatives.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`.
        bias: `[out]`.

    Returns:
        `[..., out]`, equal to PyTorch's up to rounding, and the same bits in every run.

    Raises:
        ValueError: the environment variable SPANBERT_KERNELS_PRODUCTS names no product.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)).tolist()
        [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]
    """
    product = product_for(x, weight, bias)
    if product is None and not _is_large(x, weight, bias):
        return F.linear(x, weight, bias)
    output: Tensor = _Linear.apply(x, weight, bias, product or _torch)
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, product: Product) -> Tensor:
        of_x, of_weight, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        ctx.product = product
        return product(x, weight, None if bias is None else bias.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        # A second derivative, or many gradients at once, are PyTorch's own business.
        plain = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        with torch.autocast("cpu", enabled=False):
            of_x, of_weight = gradients(
                F.linear if plain else ctx.product, rows, None if x is None else x.reshape(-1, x.shape[-1]), weight
            )
            of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        of_x = None if of_x is None else of_x.view(*grad.shape[:-1], -1)
        return of_x, of_weight, of_bias, None
