"""The checks that every operation and backend passes. A test file lists its cases and inherits the checks:

    class TestShared(OpChecks):
        operation = "span_pool"
        cases = (Case("mean", inputs, partial(span_pool, parts=["mean"]), oracle), ...)

A new case is a new row.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import places
import pytest
import torch
from layouts import CHANGING, LAYOUTS, fits
from places import ISAS, PLACES, Place, places_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import spanbert_kernels.ops  # noqa: F401  (fills the registry)
from spanbert_kernels.ops import backends
from spanbert_kernels.testing import allowed_error, deviation

Tensors = dict[str, Tensor]
Layouts = tuple[tuple[str, str], ...]
# Machine epsilons of a sum that are allowed for drawn values, and for those that are equal by their layout: n equal
# terms, one after the other, round alike, and their errors come to at most n / 4.
ROUNDINGS, ROUNDINGS_ALIKE = 16, 400 / 4
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def place_parameters(
    names: tuple[str, ...], places: tuple[Place, ...] = PLACES, emulated_slow: bool = False, isas_slow: bool = False
) -> list[Any]:
    """The places of an operation's backends, as parameters of the fixture `backend`.

    `isas_slow`: of the CPU kernels only those that every processor runs are for every test run.
    """

    def marks(place: Place) -> list[pytest.MarkDecorator]:
        if place.device == "cuda":
            return [pytest.mark.gpu]
        is_one_of_many = place.backend == "cpu" and place.kind != ISAS[0]
        slow = (place.emulated and emulated_slow) or (is_one_of_many and isas_slow)
        return [pytest.mark.slow] if slow else []

    return [pytest.param(place, id=str(place), marks=marks(place)) for place in places if place.backend in names]


def every_backend(operation: str, emulated_slow: bool = False) -> pytest.MarkDecorator:
    """Runs a test, which makes its tensors on a CPU, over the operation's backends, the CPU kernels at their best."""
    names = backends._registry[operation]
    places = (Place("cpu"), *(place for place in PLACES if place.backend != "cpu" and place.device == "cpu"))
    return pytest.mark.parametrize("backend", place_parameters(names, places, emulated_slow), indirect=True)


def unchanged(tensors: Tensors) -> dict[str, Any]:
    return dict(tensors)


def no_terms(tensors: Tensors, gradients: Tensors, incoming: list[Tensor]) -> dict[str, float]:
    return {}


def no_logits(tensors: Tensors) -> float:
    return 0.0


@dataclass(frozen=True)
class Case:
    """One row of an operation's table.

    Attributes:
        name: the test's id.
        inputs: tensors by name for a size (1, 2, ...: the shapes must differ); floating ones are float64 and are
            cast to each dtype and differentiated, index tensors are passed as they are.
        call: the public function; takes what `arguments` returns, and `backend`.
        oracle: the same result by an independent loop over plain PyTorch; takes the tensors.
        arguments: what the caller prepares once outside the call (a plan); by default the tensors themselves.
        twice: backends that have a second derivative; the others must refuse it.
        terms: for gradients that are small differences of large terms (those of a softmax's scores), the size of the
            terms, from the tensors, the oracle's gradients and the incoming ones: the machine epsilon is taken of it.
        compiled: backends on which every test run compiles it (seconds each); the slow tests compile the rest.
        operators: raw operators that it calls, if not the operation's own forward and backward.
        exponents: tensors that stand in a softmax's exponent.
        logits: the size of those exponents' terms: of so many machine epsilons is a weight.
        drawn: by the fuzzer, which meets every kind of cancellation.
        lacking: backends that have the operation, but not for this call.
        large: reaches the kernels' blocks and is left out where only the logic around them is checked.
    """

    name: str
    inputs: Callable[[int], Tensors]
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    oracle: Callable[..., Tensor | tuple[Tensor, ...]]
    _: KW_ONLY
    arguments: Callable[[Tensors], dict[str, Any]] = unchanged
    twice: tuple[str, ...] = ()
    terms: Callable[[Tensors, Tensors, list[Tensor]], dict[str, float]] = no_terms
    compiled: tuple[str, ...] = ("cpu",)
    operators: tuple[str, ...] = ()
    exponents: tuple[str, ...] = ()
    logits: Callable[[Tensors], float] = no_logits
    drawn: bool = False
    lacking: tuple[str, ...] = ()
    large: bool = False


class Result(NamedTuple):
    outputs: tuple[Tensor, ...]
    grads: Tensors


# Running a case.


def laid_out(tensors: Tensors, layouts: Layouts) -> Tensors:
    """The tensors, those that are named in the layout named beside them."""
    chosen = dict(layouts)
    return {n: LAYOUTS[chosen[n]](t) if n in chosen else t.clone() for n, t in tensors.items()}


def arrangements(case: Case) -> list[Layouts]:
    """Every layout of every tensor and every incoming gradient, one at a time, then of all together."""
    exact = oracle(Setting(case), torch.float64)
    grads = incoming(exact.outputs, torch.float32)
    tensors = {**Setting(case).tensors("cpu"), **{f"incoming {i}": grad for i, grad in enumerate(grads)}}
    table = {layout: [name for name, t in tensors.items() if fits(layout, name, t)] for layout in LAYOUTS}
    alone = [((name, layout),) for layout, names in table.items() for name in names]
    return alone + [tuple((name, layout) for name in names) for layout, names in table.items() if len(names) > 1]


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    # float64 tensors hold float32 values, so that every dtype from float32 up can be given the same numbers.
    rounded = torch.float32 if dtype == torch.float64 else dtype
    return {n: t.to(rounded).to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def differentiable(tensors: Tensors, frozen: tuple[str, ...] = ()) -> Tensors:
    return {n: t.detach().requires_grad_(t.is_floating_point() and n not in frozen) for n, t in tensors.items()}


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def forward(case: Case, tensors: Tensors, backend: str) -> tuple[Tensor, ...]:
    with backends.record() as calls:
        outputs = as_tuple(case.call(**case.arguments(tensors), backend=backend))
    assert [name for _, name in calls] == [backend], f"asked for {backend}, but {calls} ran"
    return outputs


def incoming(outputs: tuple[Tensor, ...], dtype: torch.dtype, layouts: Layouts = ()) -> list[Tensor]:
    """Seeded gradients, with values of `dtype`, for the outputs that have one; `incoming 0` names the first's."""
    generator = torch.Generator().manual_seed(5)
    grads = {}
    for output in outputs:
        if output.requires_grad:
            values = torch.randn(output.shape, generator=generator)
            grads[f"incoming {len(grads)}"] = values.to(output.device)
    return list(laid_out(cast(grads, dtype), layouts).values())


def gradients(outputs: tuple[Tensor, ...], tensors: Tensors, grads: list[Tensor]) -> Tensors:
    wanted = {n: t for n, t in tensors.items() if t.requires_grad}
    sources = [output for output in outputs if output.requires_grad]
    found = torch.autograd.grad(sources, list(wanted.values()), grads, allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), found, strict=True)}


def dtype_of(tensors: Tensors) -> torch.dtype:
    return next(t.dtype for t in tensors.values() if t.is_floating_point())


# Comparing.


class Setting(NamedTuple):
    """What a result depends on besides the backend.

    Attributes:
        layouts: by the names of tensors and incoming gradients; all others are dense.
        frozen: tensors that need no gradient.
    """

    case: Case
    size: int = 1
    dtype: torch.dtype = torch.float32
    layouts: Layouts = ()
    frozen: tuple[str, ...] = ()

    def tensors(self, device: str | None = None) -> Tensors:
        tensors = {name: t.to(device or places.current.device) for name, t in self.case.inputs(self.size).items()}
        return laid_out(cast(tensors, self.dtype), self.layouts)

    @property
    def same_values(self) -> Setting:
        """The setting of the same values, laid out dense where that changes none."""
        return self._replace(layouts=tuple(pair for pair in self.layouts if pair[1] in CHANGING))


def run_setting(setting: Setting, backend: str) -> Result:
    tensors = differentiable(setting.tensors(), setting.frozen)
    outputs = forward(setting.case, tensors, backend)
    return Result(outputs, gradients(outputs, tensors, incoming(outputs, setting.dtype, setting.layouts)))


@functools.lru_cache(maxsize=64)
def oracle(setting: Setting, dtype: torch.dtype) -> Result:
    """The oracle in `dtype`, on the values and the incoming gradients of `setting`."""
    # Dense: PyTorch's own attention goes wrong where rows overlap.
    values = {n: t.contiguous() for n, t in setting.tensors("cpu").items()}
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in values.items()}
    tensors = differentiable(tensors, setting.frozen)
    outputs = as_tuple(setting.case.oracle(**tensors))
    grads = [grad.contiguous().to(dtype) for grad in incoming(outputs, setting.dtype, setting.layouts)]
    return Result(outputs, gradients(outputs, tensors, grads))


@functools.lru_cache(maxsize=64)
def yardsticks(setting: Setting, backend: str) -> tuple[Result, ...]:
    """What the error is measured by: the eager backend in the same dtype and, as one draw of rounding errors can be a
    lucky one, the loop in float32; for the eager backend itself, the loop.

    Nothing is more exact than a float64 result: its yardsticks are float32 runs on the same values.
    """
    loop = oracle(setting, torch.float32)
    if backend == "eager":
        return (loop,)
    if torch.finfo(setting.dtype).bits == 16:
        return (run_setting(setting, "eager"),)
    return (loop, run_setting(setting._replace(dtype=torch.float32), "eager"))


@functools.lru_cache(maxsize=64)
def sizes_of_terms(setting: Setting) -> dict[str, float]:
    tensors = {n: t.double() if t.is_floating_point() else t for n, t in setting.tensors("cpu").items()}
    exact = oracle(setting._replace(frozen=()), torch.float64)
    grads = [grad.double() for grad in incoming(exact.outputs, setting.dtype, setting.layouts)]
    return setting.case.terms(tensors, exact.grads, grads)


@functools.lru_cache(maxsize=64)
def magnitudes(setting: Setting) -> dict[str, float]:
    """What the sums of outputs and gradients come to without their terms' signs: the loop on absolute values.

    Where values are equal by their layout, or drawn at will, sums cancel, rounding errors add up, and yardsticks that
    happen to have none say little.
    """
    case, exact = setting.case, oracle(setting._replace(frozen=()), torch.float64)
    signed = {n: t.double() if t.is_floating_point() else t for n, t in setting.tensors("cpu").items()}
    values = {n: t.abs() if t.is_floating_point() and n not in case.exponents else t for n, t in signed.items()}
    tensors = differentiable(values)
    outputs = as_tuple(case.oracle(**tensors))
    grads = [grad.double().abs() for grad in incoming(exact.outputs, setting.dtype, setting.layouts)]
    grown = gradients(outputs, tensors, grads)
    sizes = {f"output {i}": output for i, output in enumerate(outputs) if output.is_floating_point()} | grown
    factor, terms = 1 + case.logits(signed), case.terms(values, grown, grads)
    found = {n: factor * max(largest(t), terms.get(n, 0.0)) for n, t in sizes.items()}
    # A log-sum-exp has the error of its logits, however small it is.
    logs = [f"output {i}" for i, output in enumerate(outputs) if not output.requires_grad]
    return {n: max(size, factor - 1) if n in logs else size for n, size in found.items()}


def largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def check_error(
    name: str, value: Tensor, ref: Tensor, others: list[Tensor], size: float | None = None, terms: float = 0.0
) -> None:
    """The rule of `spanbert_kernels.testing`, the worst of several yardsticks for the eager result.

    `terms`, the size of what is summed times how often, is rounded as sums are: in float32 for 16-bit numbers.
    Nothing is nearer than half of the distance between the smallest numbers, which float16 has within reach.

    The yardsticks of a float64 result are of float32: their error is scaled by the ratio of the machine epsilons. Its
    reference is rounded as much as itself, which adds the scaled error of the loop, the first yardstick, and a rounding
    of each.
    """
    if not ref.is_floating_point():
        assert torch.equal(value.cpu(), ref), name
        return
    eps, eps_of_float32 = torch.finfo(value.dtype).eps, torch.finfo(torch.float32).eps
    errors = [deviation(other, ref) for other in others]
    yardstick = max(errors)
    if value.dtype == torch.float64:
        yardstick = (yardstick + errors[0] / 2) * eps / eps_of_float32 + 2 * eps * largest(ref)
    allowed = allowed_error(yardstick, value.dtype, largest(ref) if size is None else size)
    allowed += min(eps, eps_of_float32) * terms + torch.finfo(value.dtype).tiny * eps / 2
    found = deviation(value, ref)
    assert found <= allowed, f"{name}: error {found:.3e}, allowed {allowed:.3e}"


def check_result(setting: Setting, backend: str, result: Result) -> None:
    """A result against the oracle in float64."""
    setting = setting.same_values
    exact, others, sizes = oracle(setting, torch.float64), yardsticks(setting, backend), sizes_of_terms(setting)
    roundings = ROUNDINGS_ALIKE if setting.layouts else ROUNDINGS  # of the layouts, those that change values are left
    sizes_of_sums = magnitudes(setting) if setting.case.drawn or setting.layouts else {}
    terms = {name: roundings * size for name, size in sizes_of_sums.items()}
    assert len(result.outputs) == len(exact.outputs)
    for i, (value, ref) in enumerate(zip(result.outputs, exact.outputs, strict=True)):
        # Of parts that need no gradient alone, a drawn call's output may have a graph or none.
        assert value.requires_grad == ref.requires_grad or setting.frozen, f"output {i} and its gradient graph"
        measures, name = [other.outputs[i] for other in others], f"output {i}"
        check_error(f"{name}, size {setting.size}", value, ref, measures, sizes.get(name), terms.get(name, 0.0))
    for name, grad in result.grads.items():
        assert grad.dtype == setting.dtype
        ref, measures = exact.grads[name], [other.grads[name] for other in others]
        found = f"gradient of {name}, size {setting.size}"
        check_error(found, grad, ref, measures, sizes.get(name), terms.get(name, 0.0))


def check_identical(first: Result, second: Result, what: str) -> None:
    pairs = [*zip(first.outputs, second.outputs, strict=True)]
    pairs += [(grad, second.grads[name]) for name, grad in first.grads.items()]
    for a, b in pairs:
        assert torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)), f"other bits {what}"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, and so does fresh memory of the C library where it can do that."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # On a GPU some of PyTorch's own functions have no deterministic form and only warn.
    torch.use_deterministic_algorithms(True, warn_only=places.current.device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = True
    if mallopt is not None:
        mallopt(-6, 0x100)  # M_PERTURB: memory handed out is filled with the byte 0x00 ^ 0xff, NaN in every format
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(-6, 0)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic)


class RecordRawCalls(TorchDispatchMode):
    """Keeps the calls of the package's raw operators with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "spanbert_kernels":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


# What every test run checks of the emulated places, which are slow; the slow tests check the rest of them.
EVERYDAY = ("test_values_and_gradients", "test_second_derivative")
# What it checks of one instruction set: how tensors lie is read by the same lines in all.
AT_ONE_INSTRUCTION_SET = ("test_layouts",)


class OpChecks:
    """The checks. `backend` runs over the operation's backends, the CPU kernels with every instruction set."""

    operation: ClassVar[str]
    cases: ClassVar[tuple[Case, ...]]
    emulated: ClassVar[tuple[str, ...]] = ()  # if any: cases that every test run checks at emulated places
    once_only: ClassVar[str] = ""  # who says that there is no second derivative, if not the operation: a pattern

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        cases: tuple[Case, ...] = metafunc.cls.cases
        if "logic" in metafunc.fixturenames:
            metafunc.parametrize("logic", [c for c in cases if not c.large], ids=lambda c: c.name)
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", cases, ids=lambda c: c.name)
        names = tuple(
            name
            for name in backends._registry[metafunc.cls.operation]
            if not all(name in case.lacking for case in cases)
        )
        if "backend" in metafunc.fixturenames:
            name, here = metafunc.function.__name__, places_of(metafunc.cls.operation)
            marked = place_parameters(names, here, name not in EVERYDAY, name in AT_ONE_INSTRUCTION_SET)
            metafunc.parametrize("backend", marked, indirect=True)
        if "best_backend" in metafunc.fixturenames:
            best = (Place("cpu"), *(place for place in PLACES if place.backend != "cpu" and place.kind != "fibers"))
            metafunc.parametrize("best_backend", place_parameters(names, best, emulated_slow=True), indirect=True)

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
    def test_values_and_gradients(self, case: Case, backend: str, dtype: torch.dtype) -> None:
        if dtype not in backends.DTYPES.get(backend, DTYPES):
            pytest.skip(f"{backend} takes no {dtype}")
        setting = Setting(case, dtype=dtype)
        result = run_setting(setting, backend)
        assert result.outputs[0].dtype == dtype
        check_result(setting, backend, result)

    def test_layouts(self, logic: Case, backend: str) -> None:
        for layouts in arrangements(logic):
            setting = Setting(logic, layouts=layouts)
            try:
                check_result(setting, backend, run_setting(setting, backend))
            except Exception as error:
                raise AssertionError(f"{dict(layouts)}: {error}") from error

    def test_same_bits_every_time(self, case: Case, backend: str) -> None:
        setting = Setting(case)
        first = run_setting(setting, backend)
        # PyTorch's own reductions may depend on the number of threads; GPU kernels have none.
        for threads in (1, 2, 3) if backend == "cpu" else (1,):
            torch.set_num_threads(threads)
            check_identical(first, run_setting(setting, backend), f"in another run, with {threads} threads")

    def test_reads_no_memory_that_it_did_not_write(self, case: Case, backend: str) -> None:
        setting = Setting(case)
        expected = run_setting(setting, backend)
        with poisoned_memory():
            poisoned = run_setting(setting, backend)
        check_identical(expected, poisoned, "when memory is poisoned with NaN")

    def test_inputs_and_incoming_gradients_are_left_alone(self, case: Case, backend: str) -> None:
        tensors = differentiable(Setting(case).tensors())
        copies = {name: t.detach().clone() for name, t in tensors.items()}
        outputs = forward(case, tensors, backend)
        grads = incoming(outputs, torch.float32)
        grad_copies = [grad.clone() for grad in grads]
        found = gradients(outputs, tensors, grads)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, copies[name]), name
            assert tensor._version == 0, f"{name} was written to"
        for grad, copy in zip(grads, grad_copies, strict=True):
            assert torch.equal(grad, copy)
        storages = {t.untyped_storage().data_ptr() for t in (*tensors.values(), *grads) if t.numel()}
        for result in (*outputs, *found.values()):
            assert not result.numel() or result.untyped_storage().data_ptr() not in storages, "a result is an input"

    def test_gradcheck(self, logic: Case, backend: str) -> None:
        """In a drawn direction, against differences."""
        self.check_gradients(logic, backend, fast_mode=True)

    @pytest.mark.slow
    def test_gradcheck_entry_by_entry(self, logic: Case, backend: str) -> None:
        self.check_gradients(logic, backend, fast_mode=False)

    def check_gradients(self, case: Case, backend: str, fast_mode: bool) -> None:
        if torch.float64 not in backends.DTYPES.get(backend, DTYPES):
            pytest.skip(f"{backend} takes no float64")
        function, values = self.function_of(case, backend)
        if not function(*values):
            pytest.skip("no output with a gradient")
        assert torch.autograd.gradcheck(function, values, fast_mode=fast_mode)

    def test_second_derivative(self, logic: Case, backend: str) -> None:
        in_float64 = torch.float64 in backends.DTYPES.get(backend, DTYPES)
        function, values = self.function_of(logic, backend, torch.float64 if in_float64 else torch.float32)
        if backend in logic.twice and in_float64:
            assert torch.autograd.gradgradcheck(function, values, fast_mode=True)
            return
        outputs = function(*values)
        if not outputs or not values[0].numel():
            pytest.skip("no gradient, or no element to differentiate")
        if backend in logic.twice:
            with_eager, _ = self.function_of(logic, "eager", torch.float32)
            torch.testing.assert_close(*(self.twice(each, values) for each in (function, with_eager)))
            return
        (grad,) = torch.autograd.grad(outputs, values[:1], incoming(outputs, values[0].dtype), create_graph=True)
        with pytest.raises(RuntimeError, match=f"{self.once_only or self.operation} has .*second derivative"):
            torch.autograd.grad(grad.sum(), values)

    def twice(self, function: Callable[..., tuple[Tensor, ...]], values: list[Tensor]) -> tuple[Tensor, ...]:
        """The derivative, in the incoming gradients, of the gradients weighed with the values themselves."""
        outputs = function(*values)
        grads = [grad.requires_grad_() for grad in incoming(outputs, values[0].dtype)]
        first = torch.autograd.grad(outputs, values, grads, create_graph=True)
        weighed = sum((grad * value.detach()).sum() for grad, value in zip(first, values, strict=True))
        assert isinstance(weighed, Tensor)
        return torch.autograd.grad(weighed, grads)

    def function_of(
        self, case: Case, backend: str, dtype: torch.dtype = torch.float64
    ) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
        """The case as a function of its floating tensors, to its differentiable outputs."""
        tensors = differentiable(Setting(case, dtype=dtype).tensors())
        names = [n for n, t in tensors.items() if t.is_floating_point()]

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            outputs = forward(case, {**tensors, **dict(zip(names, values, strict=True))}, backend)
            return tuple(output for output in outputs if output.requires_grad)

        return function, [tensors[n] for n in names]

    def test_raw_operators(self, logic: Case, best_backend: str) -> None:
        with RecordRawCalls() as record:
            result = run_setting(Setting(logic), best_backend)
        directions = ("forward", "backward") if result.outputs[0].requires_grad else ("forward",)
        names = logic.operators or tuple(f"{self.operation}_{direction}" for direction in directions)
        suffix = "_triton" if best_backend == "triton" else ""
        expected = [f"spanbert_kernels::{name}{suffix}" for name in names] if best_backend != "eager" else []
        calls = [call for call in record.calls if logic.operators or "ward" in call[0].name()]
        assert [func.name() for func, _, _ in calls] == expected
        for func, args, kwargs in calls:
            detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
            torch.library.opcheck(func, detached, kwargs)

    def test_compile(self, logic: Case, best_backend: str) -> None:
        if best_backend not in logic.compiled:
            pytest.skip("compiled by the slow tests")
        self.check_compiled(logic, best_backend, "aot_eager")

    @pytest.mark.slow
    def test_compile_the_rest(self, logic: Case, best_backend: str) -> None:
        if best_backend in logic.compiled:
            pytest.skip("compiled in every test run")
        self.check_compiled(logic, best_backend, "aot_eager")

    @pytest.mark.slow
    def test_inductor(self, best_backend: str) -> None:
        compiled = [case for case in self.cases if best_backend in case.compiled]
        self.check_compiled((compiled or self.cases)[0], best_backend, "inductor")

    def check_compiled(self, case: Case, backend: str, compiler: str) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(case.call, fullgraph=True, dynamic=True, backend=compiler)
        # Sizes that depend on values (the widest span, the packed tokens) stay inside the graph.
        with torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
            for size in (2, 3):
                setting = Setting(case, size)
                leaves = differentiable(setting.tensors())
                with backends.record() as calls:
                    outputs = as_tuple(compiled(**case.arguments(leaves), backend=backend))
                assert [name for _, name in calls] == [backend]
                grads = incoming(outputs, torch.float32)
                check_result(setting, backend, Result(outputs, gradients(outputs, leaves, grads)))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_autocast_changes_nothing(self, logic: Case, best_backend: str, dtype: torch.dtype) -> None:
        setting = Setting(logic, dtype=dtype)
        leaves = differentiable(setting.tensors())
        with torch.autocast(places.current.device, torch.bfloat16):
            outputs = forward(logic, leaves, best_backend)
        result = Result(outputs, gradients(outputs, leaves, incoming(outputs, dtype)))
        check_identical(run_setting(setting, best_backend), result, "under autocast")
