"""Workers as actors of Ray Data, on this machine or on a cluster whose machines share the folders of input and output.

Ray Data reads groups of files in tasks, hands shards to a pool of actors, and begins an actor anew that dies: what
it was at is done again, and takes the place of what was there.
"""

from __future__ import annotations

import logging
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from spanbert_kernels import extras
from spanbert_kernels.scale.encoder import Throughput
from spanbert_kernels.scale.shards import ShardRecord
from spanbert_kernels.scale.units import InputFile
from spanbert_kernels.scale.work import EncodingJob, ReadingPlan, Worker

OF_WORKER = 0.9  # of a processor: where workers take all that there are, Ray waits for ever for one to read on
Hear = Callable[[int, Throughput], None]


def encode_on_ray(
    job: EncodingJob,
    groups: Sequence[tuple[InputFile, ...]],
    reading: ReadingPlan,
    workers: int,
    runs: Callable[[Sequence[str]], None],
    kept: Callable[[ShardRecord], None],
    hear: Hear,
) -> Iterator[ShardRecord]:
    """The records of the shards, in the order that they are finished.

    Args:
        job: what to do.
        groups: of files.
        reading: how they are read.
        workers: actors that work side by side.
        runs: hears of each shard's runs of documents of one cluster.
        kept: hears of what an earlier run has made.
        hear: of what went through each worker.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: there are fewer processors than workers.
    """
    extras.require("ray", "scale")
    import ray

    began = not ray.is_initialized()
    if began:
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    try:
        yield from _through(ray, job, groups, reading, workers, runs, kept, hear)
    finally:
        if began:
            ray.shutdown()


def _through(
    ray: Any,
    job: EncodingJob,
    groups: Sequence[tuple[InputFile, ...]],
    reading: ReadingPlan,
    workers: int,
    runs: Callable[[Sequence[str]], None],
    kept: Callable[[ShardRecord], None],
    hear: Hear,
) -> Iterator[ShardRecord]:
    there = ray.cluster_resources()
    if workers > there.get("CPU", 0):
        raise ValueError(f"Ray has {there.get('CPU', 0):.0f} processors, too few for {workers} workers")
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # a shard a block, which goes on as soon as it is read
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    on_gpu = there.get("GPU", 0) >= workers and job.device != "cpu"
    job = replace(job, threads=job.threads or (None if on_gpu else max(1, int(there["CPU"] // workers))))
    items = [{"number": number, "files": pickle.dumps(group)} for number, group in enumerate(groups)]
    rows = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .flat_map(read_group, fn_args=(job, reading), num_cpus=0, compute=ray.data.TaskPoolStrategy(size=workers))
        .map_batches(
            RayWorker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=OF_WORKER,
            num_gpus=1 if on_gpu else 0,
        )
    )
    numbers: dict[str, int] = {}
    for row in rows.iter_rows():
        record = ShardRecord.from_json(row["record"])
        runs(pickle.loads(row["clusters"]))
        if not row["worker"]:
            kept(record)
            continue
        hear(numbers.setdefault(row["worker"], len(numbers)), pickle.loads(row["counts"]))
        yield record


def read_group(item: dict[str, Any], job: EncodingJob, reading: ReadingPlan) -> Iterator[dict[str, Any]]:
    """The shards of a group that are missing, and the records of those that are there."""
    for shard, record in reading.shards(job, item["number"], pickle.loads(item["files"])):
        yield {
            "shard": b"" if record else pickle.dumps(shard),
            "record": record.to_json() if record else b"",
            "clusters": pickle.dumps(shard.clusters),
        }


class RayWorker:
    """An actor with a model.

    Args:
        job: what to do.
    """

    def __init__(self, job: EncodingJob) -> None:
        self.worker, self.name = Worker(job), uuid.uuid4().hex

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The records of shards."""
        records, names = list(batch["record"]), [""] * len(batch["record"])
        for place, data in enumerate(batch["shard"]):
            if data:
                (record,) = self.worker.run([pickle.loads(data)])
                records[place], names[place] = record.to_json(), self.name
        counts = [pickle.dumps(self.worker.counts)] * len(records)
        return {"record": records, "worker": names, "counts": counts, "clusters": list(batch["clusters"])}
