"""Peak memory as inputs grow, each way in a process of its own, and where each runs out of 3,000 MB.

The workloads are those of other suites, at sizes that their own tables leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import bench_cross_document_attention
import bench_span_pool
import bench_span_score
import torch
from registry import BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Way, Work, Workload, register

LIMIT = 3000.0
UNITS = {"length": "tokens", "clusters": "clusters of 10 x 64 tokens"}
SUITES = {each.SUITE.name: each.SUITE for each in (bench_span_pool, bench_cross_document_attention, bench_span_score)}
EAGER = {
    "span_pool": bench_span_pool.EAGER,
    "cross_document_attention": bench_cross_document_attention.CLUSTERS,
    "span_score": bench_span_score.EAGER,
}


def suite_of(workload: Workload) -> Suite:
    return SUITES[workload.options["suite"]]


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    return suite_of(workload).inputs(workload, dtype)


def work(workload: Workload, inputs: Inputs) -> Work:
    return suite_of(workload).work(workload, inputs)


def build(name: str, workload: Workload, inputs: Inputs) -> Way | Prepared:
    suite = suite_of(workload)
    names = {"eager": EAGER[suite.name], "in float64": suite.reference}
    return suite.providers[names.get(name, name)].build(workload, inputs)


KINDS = {"ours": "ours", "eager": "eager"}
OTHERS = (bench_span_pool.BAG, "dense product", bench_cross_document_attention.DENSE, bench_span_score.BEST)
PROVIDERS = {name: Provider(partial(build, name), KINDS.get(name, "peer")) for name in (*KINDS, *OTHERS, "in float64")}


def points(name: str, suite: str, axis: str, others: tuple[str, ...], direction: str, **options: Any) -> list[Workload]:
    """A curve along an axis of `Work`: one workload for each value of the option that has several."""
    key, values = next((key, value) for key, value in options.items() if isinstance(value, list))
    named = ("ours", "eager", *others)
    return [
        Workload(
            f"{name}, {value:,} {UNITS[key]}",
            direction,
            options={**options, "suite": suite, "providers": named, key: value},
            seconds=1.0,
            curve=name,
            scaling=axis,
            peaks=named,
            memory_limit=LIMIT,
        )
        for value in values
    ]


SUITE = register(
    Suite(
        "memory",
        (
            *points("span_pool mean", "span_pool", "tokens", (bench_span_pool.BAG, "dense product"), FORWARD,
                    pooled="mean", documents=1, width=30, length=[128, 512, 1536]),
            *points("attention between documents", "cross_document_attention", "rows",
                    (bench_cross_document_attention.DENSE,), FORWARD, side="tokens", clusters=[4, 12, 48]),
            *points("span_score", "span_score", "tokens", (bench_span_score.BEST,), BOTH, length=[32, 128, 384]),
        ),
        PROVIDERS,
        inputs,
        work,
        reference="in float64",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
