"""The tables of the docs, from the record of encodings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .documents import MOST
from .plan import MAIN

Table = Callable[[Sequence[str], Iterator[list[str]]], str]
COLUMNS = (
    *("lengths", "documents", "engine", "workers", "documents/s", "tokens/s", "padding saved", "batches empty"),
    *("tokens/s of the bare model", "of which encode reaches"),
)
MEMORY = ("documents done", "seconds", "MB of the command's process", "MB with those that it started")


def _bare(measurements: Sequence[Mapping[str, Any]], of: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The bare model over the same documents."""
    same = ("mix", "documents", "model")
    found = (each for each in measurements if each["what"] == "bare" and all(each[name] == of[name] for name in same))
    return next(found, None)


def section(record: Mapping[str, Any], file: str, table: Table) -> str:
    """What was measured of `encode`: throughput, and memory over time."""
    measurements = record["measurements"]
    encodings = [each for each in measurements if each["what"] == "encode"]
    if not encodings:
        return "Not measured yet.\n"

    def lines() -> Iterator[list[str]]:
        for each in encodings:
            bare = _bare(measurements, each)
            yield [
                *(each["mix"], f"{each['documents']:,}", each["engine"], str(each["workers"])),
                *(f"{each['documents/s']:,.0f}", f"{each['tokens/s']:,}"),
                *(f"{100 * each['padding']:.0f} %", f"{100 * each['empty']:.1f} %"),
                *(("", "") if bare is None else (f"{bare['tokens/s']:,}", _share(each, bare))),
            ]

    largest = max(encodings, key=lambda each: (each["documents"], each["engine"] == "local", -each["workers"]))
    memory = ([f"{done:,}", *(f"{value:,.0f}" for value in more)] for done, *more in largest["memory"])
    about, versions = record["machine"], record["versions"]
    return (
        f"Documents of at most {MOST} tokens, made from English treebanks, through {largest['model']} in float32 "
        f"with batches of 8,192 tokens, on {about['processor']} ({about['vendor']}, {about['cores']}, "
        f"{about['vector instructions']}) with torch {versions['torch']} (`benchmarks/results/{file}`). The bare "
        "model is the accelerated one over the same batches, which lie ready, with as many threads in all; it "
        f"neither tokenises nor pools nor writes. Lengths called {MAIN} are few long ones and many short; sentences "
        "are as the texts have them.\n\n"
        f"{table(COLUMNS, lines())}\n"
        f"Resident memory of the largest run, {largest['documents']:,} documents ({largest['mix']}, "
        f"{largest['engine']}, workers: {largest['workers']}):\n\n"
        f"{table(MEMORY, iter(memory))}"
    )


def _share(encoding: Mapping[str, Any], bare: Mapping[str, Any]) -> str:
    """Of the bare model's throughput.

    Example:
        >>> _share({"tokens/s": 960}, {"tokens/s": 1000})
        '96 %'
    """
    return f"{100 * encoding['tokens/s'] / bare['tokens/s']:.0f} %"
