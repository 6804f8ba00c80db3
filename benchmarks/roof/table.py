"""Rows as text: for the terminal, and as the table of the docs."""

from __future__ import annotations

from collections.abc import Iterator

from .keeping import MeasuredRows, RoofRecord
from .rows import LaunchRoof, RoofRow

HEADER = (
    f"{'workload, microseconds':<48}{'launches':>9}{'pipes':>8}{'memory':>8}{'floor':>7}{'predicted':>11}{'goal':>6}"
    "  slowest launch: limit, registers, blocks, bytes spilled"
)
COLUMNS = (
    *("", "goal", "measured", "predicted before", "predicted", "by pipes", "by memory", "floor", "launches"),
    *("slowest kernel", "its limit", "registers", "spilled", "blocks"),
)


def line(row: RoofRow) -> str:
    slowest = row.slowest
    return (
        f"{row.name:<48}{len(row.launches):>9}{row.pipes:>8.0f}{row.memory:>8.0f}{row.floor:>7.0f}"
        f"{row.predicted:>11.0f}{_goal(row):>6}  {slowest.name}: {slowest.limit}, {slowest.registers}, "
        f"{slowest.blocks}, {slowest.spilled}"
    )


def launch_line(launch: LaunchRoof) -> str:
    pipes = ", ".join(f"{name} {time:.0f}" for name, time in launch.pipes.items())
    told = f"    {launch.name}: predicted {launch.predicted:.1f} ({launch.limit}), memory {launch.memory:.1f}, {pipes}"
    if not launch.warps:
        return told
    copies = ", ".join(f"{name} {part:.0%}" for name, part in launch.copies.items())
    return (
        f"{told}; programs {launch.programs[0]} ({launch.programs[1]} busy), {launch.warps} warps, "
        f"{launch.registers} registers, {launch.blocks} blocks, {launch.shared} shared, {launch.spilled} spilled; "
        f"16 bytes: {copies}"
    )


def _goal(row: RoofRow) -> str:
    if row.goal is not None:
        return f"{row.goal:.0f}"
    return "" if row.most_launches is None else f"{row.most_launches} L"


def markdown(record: RoofRecord, measured: MeasuredRows | None) -> str:
    """The table of the docs."""
    took = {} if measured is None else measured.rows
    before, card = record.rows("before"), record.content["card"]

    def rows() -> Iterator[tuple[str, ...]]:
        for name, row in record.rows("now").items():
            slowest, then = row.slowest, before.get(name)
            yield (
                *(name, _goal(row).replace(" L", " launches"), f"{took[name]:,.0f}" if name in took else ""),
                f"{then.predicted:,.0f}" if then else "",
                *(f"{value:,.0f}" for value in (row.predicted, row.pipes, row.memory, row.floor, len(row.launches))),
                *(f"`{slowest.name}`", slowest.limit, str(slowest.registers or ""), str(slowest.spilled or "")),
                str(slowest.blocks or ""),
            )

    real = (
        "not measured" if measured is None else f"and measured on {measured.gpu} (`benchmarks/results/{measured.file}`)"
    )
    about = (
        f"Predicted, {real}: microseconds on {card['name']}, reckoned with {card['multiprocessors']} "
        f"multiprocessors at {card['clock'] / 1e9:g} GHz and {card['bandwidth'] / 1e12:g} TB/s, from the machine code "
        f"for sm_{card['architecture']} (`benchmarks/results/{record.path.name}`).\n\n"
    )
    return about + "\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows())) + "\n"
