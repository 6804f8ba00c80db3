"""The choice of a backend: by the user, by the environment, by itself."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import children
import pytest
import torch

from spanbert_kernels.ops import backends, choices, library, operators, span_gather, span_pool
from spanbert_kernels.ops.backends import BackendUnavailable, Operation

CPU = torch.zeros(2, 3)
REASON = "the compiled extension was not built: no compiler found"


@pytest.fixture
def operation() -> Iterator[Operation]:
    yield Operation("tested", ("cuda", "triton", "cpu", "eager"))
    del backends._registry["tested"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SPANBERT_KERNELS_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends._warn_once.cache_clear()
    yield
    backends._warn_once.cache_clear()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._LOADERS, "cpu", lambda: None)


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._LOADERS, "cpu", lambda: REASON)


@pytest.mark.usefixtures("built")
class TestChoice:
    def test_the_first_that_can_take_the_call(self, operation: Operation) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what cannot be meant for this device is passed over silently
            assert operation.choose(CPU, None) == "cpu"

    def test_the_arguments_wish_comes_before_use_and_the_environment(
        self, operation: Operation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SPANBERT_KERNELS_BACKEND", "eager")
        assert operation.choose(CPU, None) == "eager"
        with backends.use("cpu"):
            assert operation.choose(CPU, None) == "cpu"
            assert operation.choose(CPU, "eager") == "eager"
        assert operation.choose(CPU, None) == "eager"

    def test_use_nests_and_ends_with_an_error(self, operation: Operation) -> None:
        with backends.use("eager"):
            with pytest.raises(KeyError), backends.use("cpu"):
                raise KeyError
            assert operation.choose(CPU, None) == "eager"
        assert operation.choose(CPU, None) == "cpu"

    @pytest.mark.parametrize("name", ["cuda", "triton"])
    def test_a_chosen_backend_for_another_device_raises(self, operation: Operation, name: str) -> None:
        text = f"tested: backend '{name}' cannot take this call: it takes tensors on cuda, not on cpu"
        with pytest.raises(BackendUnavailable, match=text):
            operation.choose(CPU, name)
        with pytest.raises(BackendUnavailable, match=text), backends.use(name):
            operation.choose(CPU, None)

    def test_tritons_interpreter_is_never_chosen_but_can_be_asked_for(
        self, operation: Operation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setitem(backends._LOADERS, "triton", lambda: None)
        imported: list[str] = []
        monkeypatch.setattr(backends.importlib, "import_module", imported.append)
        assert operation.choose(CPU, None) == "cpu"
        assert imported == []
        assert operation.choose(CPU, "triton") == "triton"
        assert imported == ["spanbert_kernels.ops.tested.triton"]

    def test_a_chosen_backend_that_lacks_the_dtype_raises(self, operation: Operation) -> None:
        with pytest.raises(
            BackendUnavailable, match=r"it takes float32, bfloat16, float16, float64, not torch\.float8"
        ):
            operation.choose(CPU.to(torch.float8_e4m3fn), "cpu")

    def test_an_unknown_backend_raises(self, operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "tested has no backend 'tpu'; it has cuda, triton, cpu, eager"
        with pytest.raises(ValueError, match=text):
            operation.choose(CPU, "tpu")
        monkeypatch.setenv("SPANBERT_KERNELS_BACKEND", "tpu")
        with pytest.raises(ValueError, match=text):
            operation.choose(CPU, None)
        with (
            pytest.raises(ValueError, match="no backend 'tpu'; there are cuda, triton, cpu, eager"),
            backends.use("tpu"),
        ):
            pass

    def test_every_call_is_recorded_in_order(self, operation: Operation) -> None:
        with backends.record() as outer:
            operation.choose(CPU, None)
            with backends.record() as inner:
                operation.choose(CPU, "eager")
            operation.choose(CPU, "cpu")
        operation.choose(CPU, None)
        assert inner == [("tested", "eager")]
        assert outer == [("tested", "cpu"), ("tested", "eager"), ("tested", "cpu")]


@pytest.mark.usefixtures("not_built")
class TestWithoutTheExtension:
    def test_one_warning_then_the_next_backend(self, operation: Operation) -> None:
        with pytest.warns(UserWarning, match=f"tested: backend 'cpu' is passed over: {REASON}") as caught:
            assert [operation.choose(CPU, None) for _ in range(3)] == ["eager"] * 3
        assert len(caught) == 1

    def test_chosen_by_the_user_it_raises_with_the_reason(
        self, operation: Operation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(BackendUnavailable, match=f"backend 'cpu' cannot take this call: {REASON}"):
            operation.choose(CPU, "cpu")
        monkeypatch.setenv("SPANBERT_KERNELS_BACKEND", "cpu")
        with pytest.raises(BackendUnavailable, match=REASON):
            span_pool(CPU, torch.zeros(1, 2, dtype=torch.int64), ["sum"])

    def test_a_call_still_works_and_says_what_ran(self) -> None:
        with pytest.warns(UserWarning, match="passed over"), backends.record() as calls:
            span_pool(CPU, torch.zeros(1, 2, dtype=torch.int64), ["sum"])
        assert calls == [("span_pool", "eager")]

    def test_the_report_names_the_reason(self) -> None:
        table = backends.refusals()
        assert table["cpu"]["span_pool"] == REASON
        assert table["cuda"]["packed_linear"] == "no kernel of this kind yet"
        assert set(table) == set(choices.BACKENDS)
        assert not any(table["eager"].values())


@pytest.mark.usefixtures("built")
def test_the_report_shows_what_works() -> None:
    assert backends.refusals()["cpu"]["span_pool"] is None
    with pytest.warns(DeprecationWarning, match="backends.report is called backends.refusals"):
        assert backends.report() == backends.refusals()  # type: ignore[deprecated]


def test_refusal_of_an_unknown_name() -> None:
    assert backends.refusal("tpu", "cpu", torch.float32) == "unknown backend; there are cuda, triton, cpu, eager"


def test_a_missing_library_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    load = library.load_cpu.__wrapped__
    assert "not installed by its setup.py" in load()
    (tmp_path / "build_info.json").write_text('{"cpu": null, "reason": "no compiler"}')
    assert load() == "the compiled extension was not built: no compiler"
    (tmp_path / "libspanbert_kernels_cpu.so").write_bytes(b"not a library")
    write_schemas(tmp_path)
    assert load().startswith("the compiled extension does not load: ")


def write_schemas(folder: Path, **others: str) -> None:
    schemas = {name: operator.schema for name, operator in operators.REGISTERED.items()} | others
    (folder / "build_info.json").write_text(json.dumps({"cpu": [], "schemas": schemas}))


def test_a_library_of_other_schemas_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not loaded at all: what it would do with arguments of another kind, nobody knows."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    load, refused = library.load_cpu.__wrapped__, "the compiled kernels are of another version of the package"
    (tmp_path / "libspanbert_kernels_cpu.so").write_bytes(b"not a library")
    schema = operators.REGISTERED["span_gather_forward"].schema
    write_schemas(tmp_path, span_gather_forward=schema.replace("Tensor hidden", "int hidden"))
    assert load() == f"{refused} (span_gather_forward differs): install it again"
    monkeypatch.setitem(backends._LOADERS, "cpu", load)
    with pytest.raises(BackendUnavailable, match="of another version"):
        span_pool(CPU, torch.zeros(1, 2, dtype=torch.int64), ["sum"], backend="cpu")
    write_schemas(tmp_path, of_an_operator_that_is_gone="() -> Tensor")
    assert load().startswith("the compiled extension does not load: ")
    (tmp_path / "build_info.json").write_text('{"cpu": []}')
    assert load().startswith(refused)


def test_the_environment_variable_reaches_a_real_call() -> None:
    code = (
        "import torch; from spanbert_kernels.ops import backends, span_pool\n"
        "with backends.record() as calls: span_pool(torch.ones(1, 1), torch.zeros(1, 2).long(), ['sum'])\n"
        "print(calls)"
    )
    environment = {**os.environ, "SPANBERT_KERNELS_BACKEND": "eager"}
    done = children.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[('span_pool', 'eager')]"


def chain(hidden: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    return span_pool(span_pool(hidden, spans, ["mean"]), spans, ["sum"])


def kernels(compiled: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> set[str]:
    """The package's operators that really ran in a call with its gradient."""
    with torch.profiler.profile() as profile:
        compiled(*inputs).sum().backward()
    names = {event.name for event in profile.events() if event.name.startswith("spanbert_kernels::")}
    return {name.removeprefix("spanbert_kernels::") for name in names}


class TestCompiled:
    """`use` and `record` reach a function that was compiled before; it stays one graph, with a variant for each."""

    def check(self, compiler: str) -> None:
        reason = backends.refusal("cpu", "cpu", torch.float32)
        if reason is not None:
            pytest.skip(reason)
        torch._dynamo.reset()
        compiled = torch.compile(chain, backend=compiler, fullgraph=True)
        inputs = torch.arange(6.0).view(3, 2).requires_grad_(), torch.tensor([[0, 1], [1, 2], [2, 2]])
        ran = {"span_pool_forward", "span_pool_backward"}
        stats = torch._dynamo.utils.counters["stats"]
        before = stats["unique_graphs"]
        for _ in range(2):
            assert kernels(compiled, *inputs) == ran
            with backends.use("eager"):
                assert kernels(compiled, *inputs) == set()
            with backends.record() as outer:
                compiled(*inputs)
                with backends.record() as inner, backends.use("eager"):
                    assert kernels(compiled, *inputs) == set()
                    compiled(*inputs)
                assert kernels(compiled, *inputs) == ran
        assert kernels(compiled, *inputs) == ran
        fast, slow = [("span_pool", "cpu")] * 2, [("span_pool", "eager")] * 4
        assert inner == slow
        assert outer == fast + slow + fast
        assert stats["unique_graphs"] - before == 4

    def test_by_dynamo_alone(self) -> None:
        self.check("eager")

    @pytest.mark.slow
    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_by_the_whole_compiler(self, compiler: str) -> None:
        self.check(compiler)

    def test_calls_in_graphs_and_outside_are_in_order(self) -> None:
        compiled = torch.compile(lambda x, s: span_pool(x, s, ["sum"], backend="eager"), backend="eager")
        inputs = CPU, torch.zeros(1, 2, dtype=torch.int64)
        with backends.record() as calls:
            compiled(*inputs)
            span_gather(*inputs, backend="eager")
            assert [name for name, _ in calls] == ["span_pool", "span_gather"]
            compiled(*inputs)
        compiled(*inputs)
        assert [name for name, _ in calls] == ["span_pool", "span_gather", "span_pool"]
