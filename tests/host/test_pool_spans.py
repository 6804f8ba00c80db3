"""Span pooling of numpy arrays: values and gradients are those of `ops.span_pool`, on both ways, on any threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spanbert_kernels import host, ops
from spanbert_kernels.host import layers, library

ALL = ["end", "start", "max", "mean", "sum"]
ONE, TWO = np.array([1]), np.array([0, 2])
TOKENS = np.zeros((3, 2))


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param and host.load() is not None:
        pytest.skip(str(host.load()))
    return bool(request.param)


def drawn(tokens: int, size: int, spans: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of few values, so that many are equal, and spans of which some are empty or end before they start."""
    generator = np.random.default_rng(0)
    starts = generator.integers(0, tokens, spans)
    ends = np.minimum(starts + generator.integers(-1, width + 1, spans), tokens)
    return generator.integers(-2, 3, (tokens, size)).astype(np.float64), starts, ends


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parts", [ALL, ["start"], ["max"], ["mean"], ["max", "sum"]])
def test_it_is_span_pool(compiled: bool, parts: list[Any], dtype: Any) -> None:
    hidden, starts, ends = drawn(tokens=19, size=37, spans=60, width=6)
    tensor = torch.tensor(hidden, requires_grad=True)
    spans = torch.tensor(np.stack([starts, np.maximum(starts, ends)], 1))
    expected = ops.span_pool(tensor, spans, parts, end_inclusive=False, backend="eager")
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected.backward(grad)

    pooled, backward = host.pool_spans(hidden.astype(dtype), starts, ends, parts, compiled=compiled)
    gradient = backward(grad.numpy())
    assert pooled.dtype == gradient.dtype == dtype
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(pooled, expected.detach().numpy(), **close)
    np.testing.assert_allclose(gradient, tensor.grad, **close)
    np.testing.assert_array_equal(backward(grad.numpy()), gradient)


@pytest.mark.parametrize("parts", [ALL, ["max"], ["start", "end", "mean"], ["max", "sum"]])
@pytest.mark.parametrize("spans", [7, 60], ids=["pooled first", "projected first"])
def test_a_linear_layer_over_pooled_spans(compiled: bool, spans: int, parts: list[Any]) -> None:
    hidden, starts, ends = drawn(tokens=19, size=5, spans=spans, width=6)
    generator = torch.Generator().manual_seed(0)
    weight, bias, grad = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((4, 5 * len(parts)), (4,), (spans, 4))
    )
    tensors = [torch.tensor(hidden), weight.clone(), bias.clone()]
    for tensor in tensors:
        tensor.requires_grad_()
    bounds = torch.tensor(np.stack([starts, np.maximum(starts, ends)], 1))
    pooled = ops.span_pool(tensors[0], bounds, parts, end_inclusive=False, backend="eager")
    expected = torch.nn.functional.linear(pooled, *tensors[1:])
    expected.backward(grad)

    arguments = (hidden, starts, ends, parts, weight.numpy())
    output, backward = host.span_linear(*arguments, bias.numpy(), compiled=compiled)
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-12, atol=1e-12)
    for found, tensor in zip(backward(grad.numpy()), tensors, strict=True):
        np.testing.assert_allclose(found, tensor.grad, rtol=1e-12, atol=1e-12)
    without, backward = host.span_linear(*arguments, compiled=compiled)
    np.testing.assert_allclose(without, output - bias.numpy(), rtol=1e-12, atol=1e-12)
    assert backward(grad.numpy())[2] is None


def test_threads_change_no_bit() -> None:
    hidden, starts, ends = drawn(tokens=300, size=70, spans=4000, width=5)
    hidden = hidden.astype(np.float32) / 3
    grad = np.random.default_rng(1).standard_normal((4000, 5 * 70), dtype=np.float32)
    results = []
    for threads in (1, 2, 5):
        pooled, backward = host.pool_spans(hidden, starts, ends, ALL, threads=threads)
        weight = np.eye(80, 3 * 70, dtype=np.float32)
        output, linear_backward = host.span_linear(
            hidden, starts, ends, ["mean", "start", "max"], weight, threads=threads
        )
        results.append((pooled, backward(grad), output, *linear_backward(grad[:, :80])[:2]))
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_span_depends_on_its_own_tokens_alone(compiled: bool) -> None:
    hidden = np.array([[1.0, 4.0], [np.nan, 3.0], [5.0, -np.inf], [2.0, np.inf], [6.0, 8.0]])
    pooled, backward = host.pool_spans(hidden, np.array([0, 0, 2, 4]), np.array([1, 3, 4, 5]), ALL, compiled=compiled)
    nan, inf = np.nan, np.inf
    # end, start, max, mean, sum
    np.testing.assert_array_equal(pooled[0], [1, 4, 1, 4, 1, 4, 1, 4, 1, 4])
    np.testing.assert_array_equal(pooled[1], [5, -inf, 1, 4, nan, 4, nan, -inf, nan, -inf])
    np.testing.assert_array_equal(pooled[2], [2, inf, 5, -inf, 5, inf, 3.5, nan, 7, nan])
    np.testing.assert_array_equal(pooled[3], [6, 8] * 5)
    grad = np.zeros_like(pooled)
    grad[1, 4:6] = 1.0  # of max: to the first NaN, and to the first largest
    grad[3] = np.nan
    np.testing.assert_array_equal(backward(grad), [[0, 1], [1, 0], [0, 0], [0, 0], [nan, nan]])


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_pooling_takes_any_layout_and_writes_to_none(compiled: bool, index: Any) -> None:
    hidden = np.arange(24, dtype=np.float16).reshape(4, 6)[::-1, ::2]
    spans = np.array([[0, 2], [1, 4], [3, 3]], dtype=index)
    grad = np.broadcast_to(np.float32(0.5), (3, 6))
    for array in (hidden, spans):
        array.setflags(write=False)
    pooled, backward = host.pool_spans(hidden, spans[:, 0], spans[:, 1], ["start", "sum"], compiled=compiled)
    assert pooled.dtype == np.float16
    assert pooled.tolist() == [[18, 20, 22, 30, 34, 38], [12, 14, 16, 18, 24, 30], [0] * 6]
    assert backward(grad).tolist() == [[1.0] * 3, [1.5] * 3, [0.5] * 3, [0.5] * 3]


def test_pooling_of_nothing(compiled: bool) -> None:
    none = np.zeros(0, dtype=np.int64)
    for tokens, size in ((3, 2), (0, 2), (3, 0)):
        pooled, backward = host.pool_spans(np.zeros((tokens, size)), none, none, ["mean", "max"], compiled=compiled)
        assert pooled.shape == (0, 2 * size)
        assert backward(pooled).tolist() == np.zeros((tokens, size)).tolist()


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, "hidden must be a numpy array, got list", ([[0.0]], ONE, ONE, ["max"])),
        (
            TypeError,
            "hidden must be float16, float32 or float64, got int64",
            (np.zeros((3, 2), int), ONE, ONE, ["max"]),
        ),
        (ValueError, r"hidden must have shape \[T, H\], got \[3\]", (np.zeros(3), ONE, ONE, ["max"])),
        (TypeError, "starts must be int32 or int64, got float64", (TOKENS, ONE / 2, ONE, ["max"])),
        (ValueError, r"ends must be of shape \[1\], got \[2\]", (TOKENS, ONE, TWO, ["max"])),
        (ValueError, "span 0 covers tokens 1 to 3, but there are 3 tokens", (TOKENS, ONE, ONE + 3, ["max"])),
        (ValueError, "span 0 covers tokens -1 to 0", (TOKENS, ONE - 2, ONE, ["max"])),
        (TypeError, "parts must be a sequence of names, got 'max'", (TOKENS, ONE, ONE, "max")),
        (ValueError, "parts is empty; it takes any of start, end, mean, sum, max", (TOKENS, ONE, ONE, [])),
        (ValueError, "unknown part 'width'", (TOKENS, ONE, ONE, ["width"])),
        (ValueError, "part 'max' is named twice", (TOKENS, ONE, ONE, ["max", "max"])),
    ],
)
def test_what_pooling_refuses(error: type[Exception], text: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=text):
        host.pool_spans(*arguments)


@pytest.mark.parametrize(
    ("error", "text", "weight", "bias"),
    [
        (ValueError, r"weight must have shape \[O, 2\], got \[2, 3\]", np.zeros((2, 3)), None),
        (TypeError, "weight must be float16, float32 or float64, got int64", np.zeros((2, 2), int), None),
        (ValueError, r"bias must be of shape \[4\], got \[2\]", np.zeros((4, 2)), np.zeros(2)),
    ],
)
def test_layers_that_do_not_fit(error: type[Exception], text: str, weight: np.ndarray, bias: Any) -> None:
    with pytest.raises(error, match=text):
        host.span_linear(TOKENS, ONE, ONE, ["max"], weight, bias)


def test_a_gradient_of_another_shape() -> None:
    backward = host.pool_spans(TOKENS, ONE, ONE + 1, ["max"])[1]
    with pytest.raises(ValueError, match=r"grad_output must have shape \[1, 2\], got \[2, 1\]"):
        backward(np.zeros((2, 1)))
    with pytest.raises(TypeError, match="grad_output must be float16, float32 or float64, got int64"):
        backward(np.zeros((1, 2), dtype=int))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_largest_of_some_pieces(compiled: bool, pieces: int, dtype: Any) -> None:
    """More columns than a block has; many numbers are equal, and one is NaN."""
    generator = np.random.default_rng(0)
    rows = generator.integers(-2, 3, (7, 70 * pieces)).astype(dtype)
    rows[2, 5] = np.nan
    bias = generator.integers(-1, 2, 70 * pieces).astype(dtype)
    each = (rows + bias).reshape(7, 70, pieces)
    best, which = layers.maxout(rows, bias, pieces, compiled=compiled)
    assert best.dtype == dtype
    np.testing.assert_array_equal(best, each.max(-1))
    np.testing.assert_array_equal(which, each.argmax(-1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 70), (3, 1), (0, 4)])
def test_normalised_rows(compiled: bool, shape: tuple[int, int], dtype: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, shape[1:], shape[1:], shape)
    *tensors, grad = (torch.randn(size, dtype=torch.float64, generator=generator) for size in sizes)
    for tensor in tensors:
        tensor.requires_grad_()
    expected = torch.nn.functional.layer_norm(tensors[0], shape[1:], *tensors[1:], eps=1e-3)
    expected.backward(grad)
    arrays = [tensor.detach().numpy().astype(dtype) for tensor in tensors]
    found, backward = layers.layer_norm(*arrays, 1e-3, compiled=compiled)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found, expected.detach(), **close)
    for given, tensor in zip(backward(grad.numpy().astype(dtype)), tensors, strict=True):
        assert given.dtype == dtype
        np.testing.assert_allclose(given, tensor.grad, **close)


def test_the_module_refuses_shapes_that_do_not_fit() -> None:
    """Nothing reaches the C++ code that would be read out of bounds."""
    if host.load() is not None:
        pytest.skip(str(host.load()))
    module, row, rows = library.module(), np.zeros(4), np.zeros((3, 4))
    for name, arguments in {
        "maxout": (rows, row, 3, 1),
        "layer_norm": (rows, row[:2], row, 0.0, 1),
        "layer_norm_backward": (rows[:2], rows, row, row[:3], row[:3], 1),
        "pool_spans_backward": (rows, rows, ONE, ONE, [0], 1),
        "add_spans": (rows, ONE, ONE, [0], 1, rows),
        "add_spans_backward": (rows, 3, ONE, ONE, [0], 1),
    }.items():
        with pytest.raises(ValueError, match="must"):
            getattr(module, name)(*arguments)
        with pytest.raises(TypeError, match="incompatible function arguments"):
            getattr(module, name)(rows.astype(int), *arguments[1:])
