"""encoder_stack: values by the design's rule on every instruction set, and the same bits whatever runs beside."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import children
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import isas_of
from stack_cases import Shape, drawn
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.ops import library
from spanbert_kernels.ops.choices import PRECISIONS
from spanbert_kernels.ops.encoder_stack import (
    Attend,
    EncoderStack,
    FeedForward,
    Merge,
    Normalize,
    Precision,
    Project,
    Rotary,
    encoder_stack,
    encoder_stack_refusal,
    reference,
)
from spanbert_kernels.ops.encoder_stack.operators import encoder_stack_forward
from spanbert_kernels.ops.encoder_stack.steps import ACTIVATIONS
from spanbert_kernels.testing import deviation

pytestmark = pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built")
EVERY_ISA = isas_of("encoder_stack")
# What one layer may have beside BERT's: each family has some of it.
EVERYTHING: dict[str, Any] = {
    "keeps": True,
    "norm": "rms",
    "gated": True,
    "kv_heads": 2,
    "rotary": "halves",
    "window": 30,
    "relative": ("bias", "keys", "queries"),
    "reach": 20,
}
# One rounding of what enters a product.
EPSILON = {"float32": torch.finfo(torch.float32).eps, "bfloat16": torch.finfo(torch.bfloat16).eps, "int8": 1 / 127}


@contextmanager
def kernels_of(isa: str, threads: int | None = None) -> Iterator[None]:
    before, threads_before = torch.ops.spanbert_kernels.cpu_isa(), torch.get_num_threads()
    try:
        torch.ops.spanbert_kernels.set_cpu_isa(isa)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.ops.spanbert_kernels.set_cpu_isa(before)
        torch.set_num_threads(threads_before)


def skip_if_refused(precision: Precision) -> None:
    reason = encoder_stack_refusal(precision)
    if reason is not None:
        pytest.skip(reason)


def on_cpu(
    shape: Shape, precision: Precision = "float32", dtype: torch.dtype = torch.float32, **options: Any
) -> Tensor:
    stack = EncoderStack(shape.steps(), shape.hidden, precision)
    with ops.backends.record() as ran:
        result = encoder_stack(shape.tokens(dtype), shape.cu_seqlens(), stack, backend="cpu", **options)
    assert ran == [("encoder_stack", "cpu")]
    assert result.dtype == dtype
    return result


def check(shape: Shape, precision: Precision, dtype: torch.dtype = torch.float32) -> None:
    """Twice the definition's error in this precision, and one rounding of it.

    The norm of few columns can make much of a rounding, which one draw shows and another doesn't: so the definition's
    error is also that of inputs that are one float32 apart.
    """
    steps, tokens, cu_seqlens = shape.steps(), shape.tokens(dtype), shape.cu_seqlens()
    exact = reference.encoder_stack(tokens.double(), cu_seqlens, steps, "float32")
    inputs = [tokens.float(), *(torch.nextafter(tokens.float(), torch.tensor(way * torch.inf)) for way in (-1, 1))]
    eager = [reference.encoder_stack(each, cu_seqlens, steps, precision) for each in inputs]
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    rounding = max(EPSILON[precision], torch.finfo(dtype).eps)
    error = deviation(on_cpu(shape, precision, dtype), exact)
    allowed = 2 * max(deviation(each, exact) for each in eager) + rounding * largest
    assert error <= allowed, f"{shape}, {precision}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("isa", EVERY_ISA)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(shape=drawn(), data=st.data())
def test_values(isa: str, shape: Shape, data: st.DataObject) -> None:
    with kernels_of(isa, data.draw(st.sampled_from((1, 2, 3)))):
        here = [precision for precision in PRECISIONS if encoder_stack_refusal(precision) is None]
        precision = data.draw(st.sampled_from(here))
        check(shape, precision, data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16))))


@pytest.mark.slow
@pytest.mark.parametrize("isa", EVERY_ISA)
@settings(max_examples=600, deadline=None)
@given(shape=drawn(), data=st.data())
def test_more_values(isa: str, shape: Shape, data: st.DataObject) -> None:
    with kernels_of(isa, data.draw(st.sampled_from((1, 2, 3, 8)))):
        here = [precision for precision in PRECISIONS if encoder_stack_refusal(precision) is None]
        check(shape, data.draw(st.sampled_from(here)))


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_the_sizes_of_bert(isa: str) -> None:
    with kernels_of(isa):
        for precision in PRECISIONS:
            if encoder_stack_refusal(precision) is None:
                check(Shape(1, 768, 12, 64, 3072, (70, 3)), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", [3, 150])
def test_products_of_small_integers_are_exact(precision: Precision, tokens: int) -> None:
    """Every precision holds them; for int8, 127 stands in each row of inputs and weights, so that its steps are 1."""
    skip_if_refused(precision)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(-3, 4, (tokens, 50), generator=generator).float()
    up = torch.nn.functional.one_hot(torch.arange(900) % 49, 50).float()  # hands a column on
    down = torch.randint(-3, 4, (50, 900), generator=generator).float()
    hidden[:, -1], down[:, 0], down[:, 768] = 127.0, 127.0, 0.0
    up[0], up[768] = up.new_zeros(50), up.new_zeros(50)
    up[0, -1] = up[768, -1] = 1.0  # 127 in the first chunk, and in the second
    if precision == "int8":
        up *= 127.0
    stack = EncoderStack([FeedForward(up, None, down, None, "identity")], 50, precision)
    found = encoder_stack(hidden, torch.tensor([0, tokens]), stack, backend="cpu")
    exact = hidden.double() + hidden.double() @ up.double().t() @ down.double().t()
    assert torch.equal(found.double(), exact)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: Any) -> None:
    """To the last digits, from large negative to large positive numbers, and at infinity."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 1e4, -1e-3, 1e-6, 0.0])])
    steps = [FeedForward(torch.eye(1), None, torch.eye(1), None, activation)]
    rows, offsets = x[:, None], torch.tensor([0, len(x)])
    exact = reference.encoder_stack(rows.double(), offsets, steps, "float32") - rows.double()
    for isa in EVERY_ISA:
        with kernels_of(isa):
            found = encoder_stack(rows, offsets, EncoderStack(steps, 1), backend="cpu") - rows
        # The stream that it is added to rounds it once more.
        allowed = 4e-7 + 2 * torch.finfo(torch.float32).eps * (rows.abs().double() + exact.abs())
        assert ((found - exact).abs() <= allowed).all(), (isa, activation)
    inf = encoder_stack(torch.tensor([[torch.inf], [torch.nan]]), torch.tensor([0, 2]), EncoderStack(steps, 1))
    assert not inf.isfinite().any()


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.nan_to_num(nan=12345.0), second.nan_to_num(nan=12345.0))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lengths", [(20, 3), (150, 90, 7)])
@pytest.mark.parametrize(
    ("options", "counts"), [({}, (1, 2, 3, 8, 2)), (EVERYTHING, (1, 3))], ids=["plain", "everything"]
)
def test_the_number_of_threads_changes_no_bit(
    precision: Precision, lengths: tuple[int, ...], options: dict[str, Any], counts: tuple[int, ...]
) -> None:
    skip_if_refused(precision)
    # Enough work for all of them.
    shape = Shape(hidden=200, heads=4, head_dim=50, wide=3000, lengths=lengths)._replace(**options)
    results = []
    for threads in counts:
        with kernels_of(torch.ops.spanbert_kernels.cpu_isa(), threads):
            results.append(on_cpu(shape, precision))
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_what_stands_beside_a_document_changes_no_bit(precision: Precision, options: dict[str, Any]) -> None:
    """Few rows and many go different ways."""
    skip_if_refused(precision)
    shape = Shape(hidden=50, heads=4, head_dim=10, wide=900, lengths=(20, 300, 1))._replace(**options)
    stack, hidden = EncoderStack(shape.steps(), shape.hidden, precision), shape.tokens()
    alone = encoder_stack(hidden[:20], torch.tensor([0, 20]), stack, backend="cpu")
    assert torch.equal(encoder_stack(hidden, shape.cu_seqlens(), stack, backend="cpu")[:20], alone)


@pytest.mark.parametrize("keeps", [False, True])
def test_steps_in_pieces_are_the_steps(keeps: bool) -> None:
    shape = Shape(layers=3, keeps=keeps, lengths=(30, 60))
    stack, hidden = EncoderStack(shape.steps(), shape.hidden), shape.tokens()
    whole = encoder_stack(hidden, shape.cu_seqlens(), stack, backend="cpu")
    for first in range(0, len(stack.steps), 6):
        last = min(first + 6, len(stack.steps))
        hidden = encoder_stack(hidden, shape.cu_seqlens(), stack, first=first, last=last, backend="cpu")
    assert torch.equal(hidden, whole)


def test_memory_to_work_in_is_kept_and_what_is_in_it_means_nothing() -> None:
    everything = Shape(lengths=(150, 9, 45), heads=4)._replace(**EVERYTHING)
    for shape in (Shape(lengths=(9,)), Shape(lengths=(150,), head_dim=7, heads=1), everything):
        stack = EncoderStack(shape.steps(), shape.hidden)
        first = encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu")
        (arena,) = stack.packed().arenas
        arena.fill_(0xFF)  # NaN in every format
        assert torch.equal(encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu"), first)
        assert stack.packed().arenas[0] is arena


def arena_bytes(length: int, **options: Any) -> int:
    shape = Shape(lengths=(length,), heads=4)._replace(**options)
    packed = EncoderStack(shape.steps(), shape.hidden).packed()
    return packed.take_arena(shape.tokens(), shape.cu_seqlens(), 0).numel()


@pytest.mark.parametrize("options", [{"relative": EVERYTHING["relative"]}, EVERYTHING], ids=["relative", "everything"])
def test_memory_to_work_in_grows_with_the_longest_document_not_with_its_square(options: dict[str, Any]) -> None:
    with kernels_of(torch.ops.spanbert_kernels.cpu_isa(), 1):
        small, middle, large = (arena_bytes(length, **options) for length in (3000, 6000, 12000))
    assert large - middle <= 2.01 * (middle - small)


def test_layers_share_a_packed_table() -> None:
    one, three = (
        EncoderStack(Shape(layers=layers, rotary="halves", lengths=(4000,)).steps(), 24).packed().region.numel()
        for layers in (1, 3)
    )
    assert three - one < one / 2


def test_turned_by_complex_numbers() -> None:
    """The definition: neighbours are a complex number, halves are neighbours in another order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 6, generator=generator, dtype=torch.float64)
    angles = torch.rand(9, 3, generator=generator, dtype=torch.float64)
    places = torch.tensor([0, 8, 1, 2, 0])
    turn = torch.polar(torch.ones_like(angles), angles)[places, None]
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(2, (3, 2))) * turn).flatten(2)
    pairs = [each.repeat_interleave(2, 1) for each in (angles.cos(), angles.sin())]
    torch.testing.assert_close(reference.turned(x, places, Rotary(*pairs, interleaved=True)), expected)
    halves = [torch.cat([each, each], 1) for each in (angles.cos(), angles.sin())]
    order = [0, 2, 4, 1, 3, 5]
    torch.testing.assert_close(reference.turned(x[..., order], places, Rotary(*halves)), expected[..., order])


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_document_longer_than_the_rotary_tables(backend: Any) -> None:
    shape = Shape(rotary="halves", lengths=(3, 9))
    stack, offsets = EncoderStack(shape.steps(), shape.hidden), torch.tensor([0, 2, 12])
    with pytest.raises(ValueError, match="a document has 10 tokens, but the stack's rotary tables end at 9"):
        encoder_stack(shape.tokens(), offsets, stack, backend=backend)
    packed = stack.packed()
    arguments = (packed.region, packed.rows, packed.constants, None, 0, 0, len(packed.rows))
    with pytest.raises(RuntimeError, match="a document has 10 tokens, and the rotary tables end at 9"):
        encoder_stack_forward("cpu", shape.tokens(), offsets, *arguments)


def test_weights_in_float64() -> None:
    shape = Shape()
    steps = [type(step)(*(x.double() if isinstance(x, Tensor) else x for x in step)) for step in shape.steps()]
    found = encoder_stack(shape.tokens(), shape.cu_seqlens(), EncoderStack(steps, shape.hidden), backend="cpu")
    assert torch.equal(found, on_cpu(shape))


def test_threads_of_python_side_by_side() -> None:
    shapes = [Shape(hidden=100, wide=1600, lengths=(n, 3 * n)) for n in (2, 9, 30, 50)]
    stack = EncoderStack(shapes[0].steps(), shapes[0].hidden)
    expected = [encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu") for shape in shapes]
    wrong: list[str] = []

    def call(index: int) -> None:
        shape = shapes[index % len(shapes)]
        for _ in range(10):
            found = encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu")
            if not torch.equal(found, expected[index % len(shapes)]):
                wrong.append(str(shape))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FEWER_THREADS = """
import sys, torch
sys.path[:0] = {path!r}
from stack_cases import Shape
from spanbert_kernels.ops.encoder_stack import EncoderStack, encoder_stack
shape = Shape(hidden=100, wide=1600, lengths=(150, 90, 7))
results = []
for threads in (1, 5):
    torch.set_num_threads(threads)
    stack = EncoderStack(shape.steps(), shape.hidden)
    results.append(encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu"))
assert torch.equal(*results)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_fewer_threads_than_were_asked_for(limit: int) -> None:
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(limit)}
    code = FEWER_THREADS.format(path=sys.path)
    children.run([sys.executable, "-c", code], env=environment, check=True)


FORKED = """
import os, sys, torch
sys.path[:0] = {path!r}
from stack_cases import Shape
from spanbert_kernels.ops.encoder_stack import EncoderStack, encoder_stack
shape = Shape(hidden=100, wide=1600, lengths=(150, 90, 7))
stack = EncoderStack(shape.steps(), shape.hidden)
torch.set_num_threads(2)
before = encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu")
child = os.{fork}()
if child == 0:
    torch.set_num_threads(1)
    after = encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu")
    os._exit(0 if torch.equal(before, after) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(before, encoder_stack(shape.tokens(), shape.cu_seqlens(), stack, backend="cpu"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork() -> None:
    children.run([sys.executable, "-c", FORKED.format(path=sys.path, fork="fork")], check=True)


def test_a_document_that_is_not_finite_stays_alone() -> None:
    for precision in PRECISIONS:
        if encoder_stack_refusal(precision) is None:
            shape = Shape(lengths=(4, 7, 3))
            stack, hidden = EncoderStack(shape.steps(), shape.hidden, precision), shape.tokens()
            clean = encoder_stack(hidden, shape.cu_seqlens(), stack, backend="cpu")
            hidden[5, 3] = torch.nan
            found = encoder_stack(hidden, shape.cu_seqlens(), stack, backend="cpu")
            assert found[4:11].isnan().all()
            assert torch.equal(found[:4], clean[:4])
            assert torch.equal(found[11:], clean[11:])


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_nothing_to_do(backend: Any) -> None:
    shape = Shape()
    stack, hidden = EncoderStack(shape.steps(), shape.hidden), shape.tokens()
    assert torch.equal(encoder_stack(hidden, shape.cu_seqlens(), stack, first=3, last=3, backend=backend), hidden)
    nothing = encoder_stack(hidden[:0], torch.tensor([0, 0, 0]), stack, backend=backend)
    assert nothing.shape == (0, shape.hidden)


def test_any_strides_and_a_plan() -> None:
    shape = Shape()
    stack, hidden = EncoderStack(shape.steps(), shape.hidden), shape.tokens()
    expected = encoder_stack(hidden, shape.cu_seqlens(), stack, backend="cpu")
    wide = torch.zeros(hidden.shape[0], 2 * shape.hidden)
    wide[:, ::2] = hidden
    plan = ops.plan_attention(shape.cu_seqlens())
    for each in (wide[:, ::2], hidden.t().contiguous().t()):
        assert torch.equal(encoder_stack(each, plan, stack, backend="cpu"), expected)


def test_raw_operator() -> None:
    shape = Shape()
    packed = EncoderStack(shape.steps(), shape.hidden).packed()
    arguments = (packed.region, packed.rows, packed.constants, None, 0, 0, len(packed.rows))
    operator = torch.ops.spanbert_kernels.encoder_stack_forward.default
    torch.library.opcheck(operator, (shape.tokens(), shape.cu_seqlens(), *arguments))
    assert encoder_stack_forward("cpu", shape.tokens(), shape.cu_seqlens(), *arguments).shape == shape.tokens().shape


def test_float64_and_refused_precisions_run_the_definition() -> None:
    shape = Shape()
    stack = EncoderStack(shape.steps(), shape.hidden)
    with ops.backends.record() as ran:
        encoder_stack(shape.tokens(torch.float64), shape.cu_seqlens(), stack)
    assert ran == [("encoder_stack", "eager")]
    with kernels_of("portable"):
        assert "portable" in str(encoder_stack_refusal("bfloat16"))
        with pytest.raises(ops.backends.BackendUnavailable, match="portable does not have"):
            on_cpu(shape, "bfloat16")
    with pytest.raises(ops.backends.BackendUnavailable, match="do not take float64"):
        on_cpu(shape, dtype=torch.float64)


def test_it_has_no_gradient_and_says_so() -> None:
    shape = Shape()
    stack = EncoderStack(shape.steps(), shape.hidden)
    with pytest.raises(RuntimeError, match="encoder_stack has no gradient"):
        encoder_stack(shape.tokens().requires_grad_(), shape.cu_seqlens(), stack)
    frozen = EncoderStack([Normalize(nn.Parameter(torch.ones(24)), None, 1e-5)], 24)
    assert not encoder_stack(shape.tokens(), shape.cu_seqlens(), frozen).requires_grad


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


STACK = Shape().steps()


def good_call() -> dict[str, Any]:
    stack = EncoderStack(STACK, 24)
    return {"hidden": Shape().tokens(), "cu_seqlens": Shape().cu_seqlens().long(), "stack": stack}


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, r"hidden must have shape \[T, H\], got \[15\]", hidden=torch.zeros(15)),
        bad(ValueError, r"hidden must have the stack's 24 columns, got \[15, 23\]", hidden=torch.zeros(15, 23)),
        bad(TypeError, "hidden must be floating point, got torch.int64", hidden=torch.zeros(15, 24).long()),
        bad(TypeError, "stack must be an EncoderStack, got list", stack=STACK),
        bad(ValueError, "cu_seqlens must end with the number of tokens, 15", cu_seqlens=torch.tensor([0, 14])),
        bad(ValueError, "cu_seqlens must ascend", cu_seqlens=torch.tensor([0, 9, 5, 15])),
        bad(ValueError, "not one of documents of 15 tokens", cu_seqlens=ops.plan_attention(torch.tensor([0, 14]))),
        bad(ValueError, "last must be at least 3, got 2", first=3, last=2),
        bad(ValueError, "last must be at most 12, got 13", last=13),
        bad(ValueError, "encoder_stack has no backend 'triton'", backend="triton"),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        encoder_stack(**{**good_call(), **changes})


@pytest.mark.parametrize(
    ("error", "text", "step"),
    [
        (
            ValueError,
            r"step 0 \(Project\): weight must be \['any', 24\], got \[3, 23\]",
            Project(torch.ones(3, 23), None),
        ),
        (ValueError, "step 0 .Attend.: 3 heads of 8 do not follow their Project", Attend(3, 8, 1.0)),
        (ValueError, "step 0 .Merge. does not follow an Attend", Merge(torch.ones(24, 24), None)),
        (ValueError, r"bias must be \[24\], got \[1\]", Normalize(None, torch.ones(1), 1e-5)),
        (TypeError, "step 0 is a Linear, none of", nn.Linear(24, 24)),
        (ValueError, "kind must be .layer. or .rms., got 'batch'", Normalize(None, None, 1e-5, kind="batch")),  # type: ignore[arg-type]
        (
            ValueError,
            "gate_bias without a gate",
            FeedForward(torch.ones(2, 24), None, torch.ones(24, 2), None, "relu", gate_bias=torch.ones(2)),
        ),
        (
            ValueError,
            "the activation must be one of .*, got 'swish'",
            FeedForward(torch.ones(2, 24), None, torch.ones(24, 2), None, "swish"),  # type: ignore[arg-type]
        ),
    ],
)
def test_bad_steps(error: type[Exception], text: str, step: Any) -> None:
    with pytest.raises(error, match=text):
        EncoderStack([step], 24)


TABLE = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("text", "head_dim", "options"),
    [
        ("the scale must be positive, got -1.0", 2, {"scale": -1.0}),
        (r"step 1 .Attend.: window must be at least 0, got -2", 2, {"window": -2}),
        (r"rotary turns pairs of columns, and the heads have 3", 3, {"rotary": Rotary(TABLE, TABLE)}),
        (r"rotary.cos must be \['any', 2\], got \[4, 3\]", 2, {"rotary": Rotary(TABLE, TABLE)}),
        (r"rotary.sin must be \[4, 2\], got \[4, 3\]", 2, {"rotary": Rotary(TABLE[:, :2], TABLE)}),
        ("1 heads do not share 2 heads of keys evenly", 2, {"kv_heads": 2}),
        (
            r"relative.keys must be \[rows, heads, head_dim\] with \[1, 2\]",
            2,
            {"relative": ops.RelativeTerms(torch.zeros(1, dtype=torch.int32), keys=torch.ones(1, 1, 3))},
        ),
    ],
)
def test_bad_attention(text: str, head_dim: int, options: dict[str, Any]) -> None:
    heads = 1 + 2 * options.get("kv_heads", 1)
    with pytest.raises(ValueError, match=text):
        EncoderStack(
            [Project(torch.ones(heads * head_dim, 2), None), Attend(1, head_dim, **{"scale": 1.0, **options})], 2
        )
