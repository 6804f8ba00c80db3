"""What SCALING.md says of 8 to 512 GPUs, written from the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from . import clusters, training
from .encoding import CorpusCosts
from .links import H200S, MACHINE, Links
from .predicted import BERT_BASE, DOCUMENTS, MINILM, TOKENS, PredictedTimes

GPUS = (8, 16, 32, 64, 128, 256, 512)
GOOD = 0.9  # efficiency, below which something counts as broken
FIXED = 1 << 20  # tokens of a step that does not grow with the GPUs
CLUSTER, LENGTH = 1000, 128
ROW = 2 * BERT_BASE.hidden * 2  # bytes of a key and its value, in bfloat16
Table = Callable[[Sequence[str], Iterator[list[str]]], str]


def percent(value: float) -> str:
    """An efficiency.

    Example:
        >>> percent(0.9754), percent(0.0123)
        ('98 %', '1.2 %')
    """
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.1f} %"


def three(value: float) -> str:
    """Three digits.

    Example:
        >>> three(181234.0), three(45.312), three(0.00123)
        ('181,000', '45.3', '0.00123')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def first_below(values: Mapping[int, float]) -> str:
    """The first size at which something is below `GOOD`.

    Example:
        >>> first_below({8: 0.95, 16: 0.8}), first_below({8: 0.95})
        ('at 16 GPUs (80 %)', 'nowhere up to 8 GPUs (95 %)')
    """
    for gpus, value in values.items():
        if value < GOOD:
            return f"at {gpus} GPUs ({percent(value)})"
    last = max(values)
    return f"nowhere up to {last} GPUs ({percent(values[last])})"


def encoding(times: PredictedTimes, stages: Mapping[str, float], file: str, processor: str, table: Table) -> str:
    """A corpus through `encode`."""
    costs = CorpusCosts.of(stages, times.inference / DOCUMENTS)
    enough = costs.tokenizers
    ways = ((1, False), (enough, False), (enough, True))

    def lines() -> Iterator[list[str]]:
        for gpus in (1, *GPUS):
            rate = 1 / costs.seconds(gpus, enough, True)
            shares = [percent(costs.efficiency(gpus, *way)) for way in ways]
            sizes = [three(rate * stages[name] / 1e9) for name in ("bytes read", "bytes written")]
            yield [str(gpus), *shares, three(rate), *sizes]

    columns = [
        *("GPUs", "local, 1 tokenising process a worker", f"local, {enough}", f"Ray, {enough}"),
        *("documents/s (Ray)", "GB/s read", "GB/s written"),
    ]
    apart = replace(costs, digest=0.0)
    hidden = replace(apart, work=0.0, receive=0.0)
    return (
        f"A document of {stages['tokens']:.0f} tokens takes a GPU {costs.gpu * 1e6:.0f} µs (BERT-base, predicted). "
        f"Beside the model it was measured to take, in microseconds of one thread of {processor} "
        f"(`benchmarks/results/{file}`): {stages['read']:.1f} to be read and hashed and {stages['send']:.1f} to be "
        f"sent by the one process that hands out work, {stages['tokenize']:.0f} to be tokenised, "
        f"{stages['receive'] + stages['work']:.0f} in the worker (batches, Parquet), {stages['digest']:.1f} to hash "
        f"its vector for the manifest at the end, in one process. Read are {stages['bytes read']:,.0f} bytes, "
        f"written {stages['bytes written']:,.0f}. The share of the time in which GPUs compute:\n\n"
        f"{table(columns, lines())}\n"
        "What breaks first is the worker itself: it fetches each batch's vectors before it begins the next batch, "
        f"so that its own work adds to the GPU's, {percent(costs.gpu / costs.worker)} on one GPU, and with one "
        f"tokenising process {percent(costs.efficiency(1, 1, False))}: give `--tokenizers {enough}`, "
        f"{enough * MACHINE} of a machine's processors for {MACHINE} GPUs. Next, on this machine's engine, is the "
        f"process that reads for all: at {three(1 / (costs.read + costs.send))} documents a second it keeps "
        f"{1 / (costs.read + costs.send) * costs.worker:.0f} workers busy. With Ray reading is spread, and what is "
        "left in one process is the hashing at the end: without it 512 GPUs would stand at "
        f"{percent(apart.efficiency(512, enough, True))} in place of {percent(costs.efficiency(512, enough, True))}, "
        f"and with the worker's own work beside the GPU's at {percent(hidden.efficiency(512, 9, True))} with 9 "
        "tokenising processes each. A network between GPUs is not used.\n"
    )


def training_step(times: PredictedTimes, links: Links, table: Table) -> str:
    """A step of BERT-base."""

    def of(gpus: int, tokens: float) -> list[float]:
        return training.efficiencies(times, BERT_BASE, links, gpus, tokens)

    grown = {gpus: of(gpus, gpus * TOKENS) for gpus in GPUS}
    fixed = {gpus: of(gpus, FIXED) for gpus in GPUS}

    def lines() -> Iterator[list[str]]:
        for gpus in GPUS:
            shares = [*map(percent, grown[gpus]), f"{FIXED // gpus:,}", *map(percent, fixed[gpus])]
            yield [str(gpus), f"{gpus * TOKENS:,}", *shares]

    columns = [
        *("GPUs", f"tokens a step at {TOKENS:,} a GPU", *training.WAYS),
        *(f"tokens a GPU at {FIXED:,} a step", *training.WAYS),
    ]
    step = training.StepOfOne.of(times, BERT_BASE, TOKENS)
    word = training.GRADIENT * BERT_BASE.embeddings[0]
    told = ", ".join(
        f"{way} {first_below({gpus: shares[place] for gpus, shares in grown.items()})}"
        for place, way in enumerate(training.WAYS)
    )
    also = ", ".join(
        f"{way} {first_below({gpus: shares[place] for gpus, shares in fixed.items()})}"
        for place, way in enumerate(training.WAYS)
    )
    instant = replace(links, base=0.0, ring=(0.0, 0.0), tree=(0.0, 0.0))
    without = training.efficiencies(times, BERT_BASE, instant, 512, 512 * TOKENS)
    return (
        f"A step of BERT-base on {TOKENS:,} tokens is predicted {step.seconds(BERT_BASE.layers) * 1e3:.1f} ms on one "
        "GPU, with dropout, AdamW and without a head. Gradients in float32 are "
        f"{training.GRADIENT * BERT_BASE.weights / 1e6:.0f} MB (MiniLM with 6 layers: "
        f"{training.GRADIENT * MINILM.weights / 1e6:.0f} MB), which DDP reduces in buckets of 25 MiB as they come, "
        "FSDP2 layer by layer, beside bfloat16 weights that it gathers a layer ahead. Efficiency against one GPU "
        "that takes all of a step's tokens:\n\n"
        f"{table(columns, lines())}\n"
        f"Where {TOKENS:,} tokens stay on each GPU, below {percent(GOOD)} is: {told}. Under DDP what shows is the "
        f"last bucket: the word embeddings' gradient, {word / 1e6:.0f} MB, is there when the backward is over, and "
        "nothing is left to hide it behind. FSDP2 over all GPUs breaks by latency: a ring over 512 takes "
        f"{links.gather(0.0, 512) * 1e3:.2f} ms before it has moved anything, three times a layer, where a layer "
        f"computes {(step.layer[0] + step.layer[1]) * 1e3:.1f} ms; without latencies it would stand at "
        f"{percent(without[1])}. Spread weights over the GPUs of a machine alone (a mesh of two dimensions) beyond "
        f"that. With a step of {FIXED:,} tokens, however many GPUs share it, below {percent(GOOD)} is: {also}.\n"
    )


def cluster_over_ranks(times: PredictedTimes, links: Links, table: Table) -> str:
    """One cluster over ranks."""

    def efficiency(keys: str, gpus: int) -> float:
        one, own = (clusters.seconds(times, links, keys, CLUSTER, LENGTH, each, ROW) for each in (1, gpus))
        return one / gpus / own

    shares = {keys: {gpus: efficiency(keys, gpus) for gpus in GPUS} for keys in ("anchors", "tokens")}

    def lines() -> Iterator[list[str]]:
        for gpus in GPUS:
            found = [str(gpus)]
            for keys in shares:
                own = clusters.sent(keys, -(-CLUSTER // gpus), LENGTH, gpus, ROW)
                found += [f"{three(own.forward / 1e6)} / {three(own.backward / 1e6)}", percent(shares[keys][gpus])]
            yield found

    columns = ["GPUs"]
    for keys in shares:
        columns += [f"{keys}: MB a rank sends, forward / backward", "efficiency, forward"]
    inside, between = (clusters.least_tokens(times, links, gpus, ROW) for gpus in (MACHINE, 2 * MACHINE))
    return (
        f"{CLUSTER:,} documents of {LENGTH} tokens, encoded and mixed in one layer, keys and values of {ROW:,} bytes "
        "a row in bfloat16; what a rank sends is what `DistributedPlan.bytes_sent` says:\n\n"
        f"{table(columns, lines())}\n"
        f"Below {percent(GOOD)} are anchors {first_below(shares['anchors'])}: each rank has so few documents that "
        f"launches and the latency of the gather remain; {CLUSTER:,} anchors are {CLUSTER * ROW / 1e6:.1f} MB. "
        f"Tokens are {first_below(shares['tokens'])}: a round of the ring hides behind the work on the one before it "
        f"where a rank has {three(inside)} tokens inside a machine, but {three(between)} where machines are crossed. "
        "The backward between tokens of several ranks is plain PyTorch, and its time is not predicted; it sends "
        "twice as much.\n"
    )


def efficiency(
    times: PredictedTimes, stages: Mapping[str, float], files: tuple[str, str], processor: str, table: Table
) -> str:
    """The whole section.

    Args:
        times: of the record of least times.
        stages: of the record of encodings.
        files: of both records.
        processor: of the second one.
        table: makes Markdown of columns and lines.
    """
    links = H200S
    parts = (
        f"All times of GPUs are **predicted** from compiled code (`benchmarks/results/{files[0]}`); none was "
        f"measured. Links: NVLink 4 with {links.nvlink / 1e9:.0f} GB/s each way inside a machine of {MACHINE} GPUs "
        f"([H200]), {links.network * 8 / 1e9:.0f} Gb/s InfiniBand a GPU between machines ([systems]), "
        f"{percent(links.reached)} of both reached; latencies of NCCL's own model ([NCCL], protocol LL128): "
        f"{links.base * 1e6:.0f} µs a call, then {links.ring[0] * 1e6:.1f} and {links.ring[1] * 1e6:.1f} a step of a "
        f"ring inside and between machines, {links.tree[0] * 1e6:.2f} and {links.tree[1] * 1e6:.1f} of a tree. What "
        "exchange takes away from the work that it "
        f"hides behind, and ranks that wait for slower ones, are not reckoned with.\n",
        "### A corpus\n",
        encoding(times, stages, files[1], processor, table),
        "### Training\n",
        training_step(times, links, table),
        "### A cluster over ranks\n",
        cluster_over_ranks(times, links, table),
        "[H200]: https://www.nvidia.com/en-us/data-center/h200/\n"
        "[systems]: https://github.com/mlcommons/inference_results_v4.1/tree/main/closed/NVIDIA/systems\n"
        "[NCCL]: https://github.com/NVIDIA/nccl/blob/master/src/graph/tuning.cc\n",
    )
    return "\n".join(parts)
