"""The arithmetic of SCALING.md: work of a corpus, over rates measured on a CPU and published ones of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from records.record import Row

LAYERS, HIDDEN, INNER = 12, 768, 3072
# NVIDIA H200 SXM, data sheet: dense bfloat16, memory bandwidth; and the share of the first that is assumed.
PEAK_FLOPS, PEAK_BYTES, ASSUMED = 989e12, 4.8e12, 0.5
GPUS = (1, 8, 64, 512)
DOCUMENTS, LENGTH, CLUSTER = 1_000_000, 512, 1000
RATES_COLUMNS = ("two threads of that processor", "a second", "of")
COSTS_COLUMNS = ("", "operations", "measured CPU rate", *(f"{n} H200{'s' * (n > 1)}" for n in GPUS))


def encoder_operations(tokens: float, length: float) -> float:
    """Forward: two for each weight of a layer and token, four for each pair of tokens of a document and column."""
    weights = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER
    return LAYERS * tokens * (2 * weights + 4 * length * HIDDEN)


def attention_operations(rows: float) -> float:
    """Of one layer: every row of a cluster with every row."""
    return 4 * rows * rows * HIDDEN


@dataclass(frozen=True)
class Job:
    """Operations of a job, and the workload whose measured rate says what they take on a CPU."""

    name: str
    operations: float
    suite: str
    workload: str


ENCODER = ("encoder", "5 documents of gum, up to 512 tokens")
JOBS = (
    Job("encode 10 million tokens, documents of 512", encoder_operations(1e7, LENGTH), *ENCODER),
    Job("encode a million documents of 512 tokens", encoder_operations(DOCUMENTS * LENGTH, LENGTH), *ENCODER),
    Job(
        "their anchors, clusters of 1,000 documents, one layer",
        DOCUMENTS / CLUSTER * attention_operations(CLUSTER),
        "cross_document_attention",
        "8 clusters x 10 documents x 64 tokens",
    ),
    Job(
        "all their tokens, clusters of 1,000 documents, one layer",
        DOCUMENTS / CLUSTER * attention_operations(CLUSTER * LENGTH),
        "cross_document_attention",
        "8 clusters x 10 documents x 64 tokens",
    ),
)


def duration(seconds: float) -> str:
    """Two digits in the unit that suits.

    Example:
        >>> duration(0.000012), duration(0.0123), duration(75.0), duration(7200.0), duration(4e7)
        ('12 µs', '12 ms', '75 s', '2.0 h', '460 days')
    """
    units = (
        ("years", 31_557_600.0, 2.0),
        ("days", 86400.0, 2.0),
        ("h", 3600.0, 1.0),
        ("s", 1.0, 1.0),
        ("ms", 1e-3, 1.0),
    )
    for unit, scale, least in units:
        if seconds >= least * scale:
            return f"{_two_digits(seconds / scale)} {unit}"
    return f"{_two_digits(seconds * 1e6)} µs"


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{float(f'{value:.2g}'):,.0f}"


def rates(row: Callable[[str, str], Row], ceilings: Mapping[str, float]) -> Iterator[list[str]]:
    """Measured: things a second, operation by operation."""
    measured = (
        ("encoder (BERT-base), documents of 8 to 384 tokens", row("encoder", "16 documents"), "tokens"),
        ("encoder, documents of up to 512 tokens", row(*ENCODER), "tokens"),
        ("sub-layer between documents", row("cross_document_mixer", "anchors of 200 clusters"), "documents"),
        ("`span_score`, all spans up to 30", row("span_score", "3000 units"), "tokens"),
        ("`span_pool` mean, all spans up to 30", row("span_pool", "mean, all spans up to 30 of 512"), "spans"),
    )
    for name, found, axis in measured:
        assert found.ours.milliseconds is not None
        yield [name, f"{float(f'{found.axes[axis] / found.ours.milliseconds * 1e3:.3g}'):,.0f}", axis]
    yield ["copy, read and written", f"{ceilings['copy, GB/s']:.1f}", "GB"]
    yield ["matrix product, float32", f"{ceilings['float32, GFLOP/s']:.0f}", "GFLOP"]


def costs(row: Callable[[str, str], Row]) -> Iterator[list[str]]:
    """Of each job: operations, the time at the measured rate of a CPU, and at the assumed one of GPUs."""
    for job in JOBS:
        found = row(job.suite, job.workload)
        assert found.ours.milliseconds is not None
        rate = found.operations / found.ours.milliseconds * 1e3
        on_gpus = (duration(job.operations / (count * ASSUMED * PEAK_FLOPS)) for count in GPUS)
        yield [job.name, f"{job.operations:.2g}", duration(job.operations / rate), *on_gpus]
