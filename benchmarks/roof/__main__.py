"""Predicts what the workloads take on a GPU, a line each; with --keep the record and the docs get what came out."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

# Kernels of the interpreter have other blocks; whoever set this did not mean it here.
os.environ.pop("TRITON_INTERPRET", None)

from . import keeping, table
from .card import H200
from .running import measurable, row_of
from .workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roof", description=__doc__)
    parser.add_argument("--row", action="append", help="a row's name, or a part of it; may be repeated; by default all")
    parser.add_argument("--launches", action="store_true", help="each launch on a line of its own, too")
    parser.add_argument("--headlines", action="store_true", help="only the rows that every test run compiles")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a row is worse than in the record")
    parser.add_argument("--keep", choices=("now", "before"), nargs="?", const="now", help="write the record and docs")
    arguments = parser.parse_args()
    wanted = [
        name
        for name, workload in WORKLOADS.items()
        if (not arguments.row or any(part in name for part in arguments.row))
        and (workload.headline or not arguments.headlines)
        and measurable(workload)
    ]
    if not wanted:
        sys.exit(f"no row has {' or '.join(arguments.row)} in its name; there are {', '.join(WORKLOADS)}")
    record = keeping.load(keeping.newest())
    kept = record.rows("now")
    wrong: list[str] = []
    print(table.HEADER)
    for name in wanted:
        row = row_of(name, WORKLOADS[name], H200)
        print(table.line(row), flush=True)
        if arguments.launches:
            print(*map(table.launch_line, row.launches), sep="\n", flush=True)
        if arguments.keep:
            record.keep(arguments.keep, row, list(WORKLOADS))
        if name in kept:
            wrong += keeping.complaints(row, kept[name])
        else:
            wrong.append(f"{name}: the record has no such row")
    if arguments.keep:
        record.write()
        subprocess.run([sys.executable, str(keeping.RESULTS.parent / "readme_tables.py")], check=True)
    elif arguments.check and wrong and record.is_of_this_triton:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
