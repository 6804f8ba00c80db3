"""Least times of kernels: the model on code whose cycles are counted by hand, recordings, the kept figures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from roof import keeping, model, running, sass, source, table
from roof.card import H200
from roof.compiling import CompiledKernel
from roof.flow import Flow
from roof.pipes import ALU, FMA, ISSUE, SHARED, TENSOR, XU, cycles
from roof.recording import LibraryLaunch, recorded
from roof.rows import LaunchRoof, RoofRow
from roof.trips import Trips
from roof.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
FILE = f"{ROOT}/spanbert_kernels/ops/attention/triton_tiles.py"
LOOP = "for block in tl.range(0, blocks)"


def line_of(text: str) -> int:
    """Where the source has a loop."""
    found = source.read_loops(Path(FILE).read_text()).headers
    return next(number for number, header in found.items() if header == text)


def code_of(*rows: str) -> str:
    """What nvdisasm would write: labels end with a colon, numbers name a line of the source."""
    lines = []
    for row in rows:
        if row.isdigit():
            lines.append(f'\t//## File "{FILE}", line {row}')
        else:
            lines.append(row if row.endswith(":") else f"        /*0010*/                   {row} ;")
    return "\n".join(lines)


# Eight FFMA, two LDS.128 and the branch: 11 slots, 8 cycles of FMA of a scheduler, 2 x 512 bytes of shared memory.
EIGHT_AND_TWO = code_of(
    "S2R R0, SR_CTAID.X",
    ".L_x_0:",
    *["FFMA R1, R2, R3, R1"] * 8,
    *["LDS.128 R4, [R8]"] * 2,
    str(line_of(LOOP)),
    "@P0 BRA `(.L_x_0)",
    "EXIT",
)


def test_a_loop_of_eight_products_and_two_loads_of_16_bytes() -> None:
    code = Flow(sass.parse(EIGHT_AND_TWO))
    (loop,) = code.loops
    assert (len(code.instructions), len(loop.places)) == (13, 11)
    found = model.sums(code, Trips(10, {LOOP: 700}), programs=10, warps=4)
    # A warp a scheduler: 11 slots a step, 2 outside of the loop.
    assert found[ISSUE] == 700 * 11 + 10 * 2
    assert found[FMA] == 700 * 8
    # Four warps read 2 x 16 bytes of 32 lanes each, 128 a cycle.
    assert found[SHARED] == 700 * 4 * 2 * 16 * 32 / 128
    assert (found[ALU], found[XU], found[TENSOR]) == (0, 0, 0)


def test_what_takes_longest_decides() -> None:
    kernel, code = (
        CompiledKernel(b"", 4, registers=40, stack=0, local=0, shared=20_000),
        Flow(sass.parse(EIGHT_AND_TWO)),
    )
    steps = 132 * 1_900_000  # 1,000 microseconds of a cycle each
    launch = model.of_code("kernel", kernel, code, Trips(0, {LOOP: steps}), 0, moved=480_000_000, card=H200)
    assert launch.pipes == pytest.approx({ISSUE: 11_000, FMA: 8_000, SHARED: 32_000, ALU: 0, XU: 0, TENSOR: 0})
    assert launch.memory == pytest.approx(100)
    assert (launch.limit, launch.predicted) == (SHARED, pytest.approx(32_000 / 0.65))
    # 48 registers would do for 10 blocks of 4 warps, shared memory is for 11, 64 warps are 16.
    assert launch.blocks == 11


@pytest.mark.parametrize(
    ("text", "pipe", "taken"),
    [
        # 16 x 8 x 16 products, 512 a cycle at best; the older instruction reaches 62 % of that.
        ("HMMA.16816.F32.BF16 R1, R2, R3, R1", TENSOR, 4 / 0.62 / 4),
        ("HMMA.1688.F32.TF32 R1, R2, R3, R1", TENSOR, 4 / 0.62 / 4),
        # 64 x 64 x 16 products of four warps, 2048 a cycle; both sides of 2 KB from shared memory, or one.
        ("HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24", TENSOR, 32 / 4),
        ("HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24", SHARED, 32 / 4),
        ("HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR8].tnspB, R24", SHARED, 16 / 4),
        ("LDSM.16.M88.4 R4, [R1]", SHARED, 4),
        ("STS.U16 [R1], R2", SHARED, 1),
        ("SHFL.BFLY PT, R1, R2, 0x1, 0x1f", SHARED, 1),
        ("MUFU.EX2 R1, R2", XU, 2),
        ("IMAD.WIDE.U32 R2, R4, R5, RZ", FMA, 0.5),
        ("FMNMX R1, R2, R3, !PT", ALU, 0.5),
        ("UIADD3 UR4, UR4, 0x1, URZ", ISSUE, 0.25),
    ],
)
def test_an_instruction(text: str, pipe: str, taken: float) -> None:
    (instruction,) = sass.parse(code_of(text))
    found = cycles(instruction)
    assert found[pipe] == pytest.approx(taken)
    assert found[ISSUE] == 0.25


def test_loops_in_loops_and_predicates() -> None:
    text = code_of(
        ".L_x_0:", "MOV R1, R2", ".L_x_1:", "@!P1 FADD R1, R1, R2", "@P0 BRA `(.L_x_1)", ".L_x_2:", "MUFU.RCP R1, R2",
        "@P2 BRA `(.L_x_2)", "@!UP0 BRA `(.L_x_0)", "EXIT", ".L_x_3:", "BRA `(.L_x_3)",
    )  # fmt: skip
    code = Flow(sass.parse(text))
    (loop,) = code.loops
    assert (loop.first, loop.last, sorted(loop.own())) == (0, 5, [0, 5])
    assert [(each.first, each.last, sorted(each.places)) for each in loop.inner] == [(1, 2, [1, 2]), (3, 4, [3, 4])]
    assert sorted(code.straight()) == [6]  # what fills up the end is never reached
    assert code.instructions[1] == sass.Instruction("FADD", "R1, R1, R2", "!P1")


def test_a_kernel_of_several_and_who_leaves_early() -> None:
    text = f"\t.section\t.text.one\n.text.one:\n{code_of('NOP')}\n.text.two:\n" + code_of(
        "ISETP.GE.AND P0, PT, R1, R2, PT", "@P0 EXIT", "FADD R1, R1, R2", "EXIT"
    )
    code = Flow(sass.parse(text, "two"))
    # 100 programs look whether they have something to do, and 30 have.
    assert model.sums(code, Trips(30), programs=100, warps=1) == pytest.approx(
        {ISSUE: (100 + 100 + 30 + 30) / 4, ALU: 50, FMA: 30 / 4, XU: 0, TENSOR: 0, SHARED: 0}
    )


def test_what_is_passed_over_is_not_counted() -> None:
    """A loop for what is not finite, and the way to it."""
    text = code_of(
        "@P0 BRA `(.L_x_9)", "FADD R1, R1, R2", ".L_x_1:", str(line_of("while done < head_dim")), "MUFU.RCP R1, R2",
        "@P1 BRA `(.L_x_1)", "FADD R1, R1, R2", ".L_x_9:", "EXIT",
    )  # fmt: skip
    code = Flow(sass.parse(text))
    never = model.sums(code, Trips(8, {"while done < head_dim": 0.0}), programs=8, warps=4)
    assert (never[ISSUE], never[FMA], never[XU]) == (8 * 2, 0, 0)
    often = model.sums(code, Trips(8, {"while done < head_dim": 24}), programs=8, warps=4)
    assert (often[ISSUE], often[FMA], often[XU]) == (8 * 4 + 24 * 2, 8 * 2, 24 * 8)


def test_code_that_stands_behind_the_end_and_goes_back_is_no_loop() -> None:
    text = code_of(
        "@P0 BRA `(.L_x_1)", ".L_x_0:", "FADD R1, R1, R2", "EXIT", ".L_x_1:", "MUFU.RCP R1, R2", "BRA `(.L_x_0)",
    )  # fmt: skip
    flow = Flow(sass.parse(text))
    assert flow.loops == ()
    assert sorted(flow.straight()) == [0, 1, 2, 3, 4]


def test_lines_that_not_all_warps_execute() -> None:
    """An instruction has its own line, and those of the calls that put it there."""
    own, call = line_of(LOOP), line_of("while place < behind")
    inline = f'\t//## File "{FILE}", line {own} inlined at "{FILE}", line {call}'
    rows = (inline, code_of(str(call), "MUFU.RCP R1, R2"), code_of("1", "FADD R1, R1, R2"))
    flow = Flow(sass.parse("\n".join(rows)))
    assert [each.number for each in flow.instructions[0].lines] == [own, call]
    assert [each.number for each in flow.instructions[1].lines] == [1]
    for part, share in ((LOOP, 0.25), (f"{LOOP} < while place", 0.25), ("while place", 0.25), ("while place < for", 1)):
        found = model.sums(flow, Trips(100, {}, {part: 0.25}), programs=100, warps=4)
        assert (found[XU], found[FMA]) == (800 * share, 100), part


def test_a_loop_goes_by_the_line_that_it_was_put_into() -> None:
    own, call = line_of(LOOP), line_of("while place < behind")
    text = ".L_x_0:\n" + code_of("FADD R1, R1, R2") + f'\n\t//## File "{FILE}", line {own} inlined at "{FILE}"\n'
    flow = Flow(sass.parse(text + code_of(str(call), "@P0 BRA `(.L_x_0)")))
    (loop,) = flow.loops
    assert source.headers_of(flow, loop) == [f"{LOOP} < while place < behind:", LOOP]


def test_a_loop_that_nobody_counted_is_an_error() -> None:
    kernel, code = CompiledKernel(b"", 4, 40, 0, 0, 0), Flow(sass.parse(EIGHT_AND_TWO))
    told = r"kernel: it has a loop 'for block in tl.range\(0, blocks\)'; trips.py knows while True"
    with pytest.raises(model.UnknownLoop, match=told):
        model.of_code("kernel", kernel, code, Trips(1, {"while True": 1}), 1, 0, H200)


def test_narrow_copies_are_seen() -> None:
    text = code_of("LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E R4, desc[UR4][R2.64]", "STG.E.U16 desc[UR4][R2.64], R4")
    assert model.copies(Flow(sass.parse(text)), Trips(1), 1) == {"LDG": 0.8, "STG": 0.0}


def test_what_pytorch_launches_is_noted_and_not_computed() -> None:
    with recorded() as recording:
        x = torch.empty(3000, 2000, dtype=torch.bfloat16)
        assert x.is_cuda
        assert x.device.type == torch.zeros(2, device="cuda").device.type == "cuda"
        product = x @ x.T
        (product[:, :8].float() + 1).add_(1)
        sizes = torch.arange(4, device=x.device).cumsum(0)
        assert sizes.tolist() == [0, 1, 3, 6]
        x[sizes]
    assert not x.is_cuda
    assert product.shape == (3000, 3000)
    noted = [each for each in recording.launches if isinstance(each, LibraryLaunch)]
    names = [each.name for each in noted]
    assert names == ["zeros", "mm", "_to_copy", "add", "add_", "arange", "cumsum", "index"]
    of_product, to_copy, rows = noted[1], noted[2], noted[-1]
    assert (of_product.operations, of_product.wide) == (2 * 3000 * 2000 * 3000, False)
    assert of_product.bytes == 2 * (2 * 3000 * 2000 + 3000 * 3000)
    assert to_copy.bytes == 3000 * 8 * (2 + 4)
    assert rows.bytes == 4 * 8 + 2 * 4 * 2000 * 2  # the rows, and not all of x


def row(**changes: Any) -> RoofRow:
    launch = LaunchRoof(
        "kernel", 10.0, 200.0, SHARED, {SHARED: 130.0}, (9, 8), 4, 128, 0, 1024, 4, {"LDG": 1.0, "STG": 0.5}
    )
    return RoofRow("row", 150.0, None, 9.0, (replace(launch, **changes),), 0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"pipes": {SHARED: 136.0}}, None),
        ({"pipes": {SHARED: 137.0}}, "row: takes 137.0 microseconds at least, 130.0 in the record"),
        ({"memory": 140.0}, "row: takes 140.0 microseconds at least, 130.0 in the record"),
        ({"spilled": 8}, "row: kernel spills 8 bytes, 0 in the record"),
        ({"copies": {"LDG": 0.9, "STG": 0.5}}, "row: kernel moves 90% by LDG of 16 bytes, 100% in the record"),
        ({"copies": {"STG": 1.0, "LDGSTS": 0.0}}, None),
    ],
)
def test_what_is_worse_than_in_the_record(changes: dict[str, Any], complaint: str | None) -> None:
    assert list(keeping.complaints(row(**changes), row())) == ([] if complaint is None else [complaint])


def test_a_record_of_another_triton_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "RESULTS", tmp_path)
    kept = keeping.new_record(tmp_path / "2026-01-01-roof-sm90.json", H200)
    kept.write()
    (name, *_) = WORKLOADS
    assert list(running.worse([name], H200)) == [f"{name}: the record has no such row"]
    kept.content["triton"] = "0.1"
    kept.write()
    assert list(running.worse([name], H200)) == []


def test_a_record_keeps_rows_and_makes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "RESULTS", tmp_path)
    kept = keeping.new_record(tmp_path / "2026-01-01-roof-sm90.json", H200)
    kept.keep("before", row(predicted=300.0), ["row"])
    kept.keep("now", row(), ["row"])
    kept.write()
    again = keeping.load(kept.path)
    assert again.rows("now") == {"row": row()}
    page = table.markdown(again, keeping.measured())
    assert page.startswith(
        "Predicted, not measured: microseconds on H200, reckoned with 132 multiprocessors at 1.9 GHz"
    )
    assert "| row | 150 |  | 300 | 200 | 130 | 10 | 9 | 1 | `kernel` | shared memory | 128 |  | 4 |" in page
    found = {"machine": {"gpu": "H200"}, "roof": {"row": {"measured": 212.4}}}
    (tmp_path / "2026-01-02-gpu.json").write_text(json.dumps(found))
    page = table.markdown(again, keeping.measured())
    assert page.startswith("Predicted, and measured on H200 (`benchmarks/results/2026-01-02-gpu.json`): microseconds")
    assert "| row | 150 | 212 | 300 | 200 |" in page


@pytest.mark.slow
def test_no_least_time_has_grown() -> None:
    """Of the headlines every test run makes sure, beside what it compiles: `tests/aot/launches.py`."""
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "benchmarks.roof", "--check"]
    done = children.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
