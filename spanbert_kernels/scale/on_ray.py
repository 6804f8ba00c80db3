"""Workers as actors of Ray Data, on this machine or on a cluster whose machines share the folders of input and output.

Ray Data reads groups of files in tasks, hands shards to a pool of actors, and begins an actor anew that dies: what
it was at is done again, and takes the place of what was there. An actor has several shards at once, so that its batches
are filled across them and its tokenisers do not stop between two.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from spanbert_kernels import extras
from spanbert_kernels.scale.encoder import Throughput
from spanbert_kernels.scale.shards import ShardRecord
from spanbert_kernels.scale.units import InputFile, Shard
from spanbert_kernels.scale.work import EncodingJob, ReadingPlan, Worker

OF_WORKER = 0.9  # of a processor: where workers take all that there are, Ray waits for ever for one to read on
AT_ONCE = 4  # shards in a worker
PATIENCE = 0.25  # seconds that a worker waits for another shard before it fills its last batch with what it has
Hear = Callable[[int, Throughput, float], None]
# Of a shard: its record, and what the encoder did by then, in how many seconds.
Made = tuple[ShardRecord, Throughput, float]


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
        hear: of what went through each worker, and in how many seconds since its first shard.

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
            compute=ray.data.ActorPoolStrategy(
                size=workers,
                max_tasks_in_flight_per_actor=AT_ONCE + 1,
                max_concurrent_calls_per_actor=AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=OF_WORKER,
            num_gpus=1 if on_gpu else 0,
        )
    )
    counts: dict[str, Throughput] = {}
    for row in rows.iter_rows():
        record = ShardRecord.from_json(row["record"])
        runs(pickle.loads(row["clusters"]))
        if not (name := row["worker"]):
            kept(record)
            continue
        known, seconds = pickle.loads(row["counts"])
        if known.documents >= counts.setdefault(name, known).documents:  # shards need not come in their order
            counts[name] = known
            hear(list(counts).index(name), known, seconds)
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
    """An actor with a model; several threads call it, whose shards it encodes as one stream.

    Args:
        job: what to do.
    """

    def __init__(self, job: EncodingJob) -> None:
        self.name = uuid.uuid4().hex
        self._asked: queue.SimpleQueue[tuple[Shard, Future[Made]]] = queue.SimpleQueue()
        self._ready: Future[None] = Future()
        threading.Thread(target=self._work, args=(job,), daemon=True).start()
        self._ready.result()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The records of shards."""
        waiting = [self._ask(pickle.loads(data)) if data else None for data in batch["shard"]]
        records, names, counts = list(batch["record"]), [""] * len(waiting), [b""] * len(waiting)
        for place, future in enumerate(waiting):
            if future is not None:
                record, *counted = future.result()
                records[place], names[place], counts[place] = record.to_json(), self.name, pickle.dumps(counted)
        return {"record": records, "worker": names, "counts": counts, "clusters": list(batch["clusters"])}

    def _ask(self, shard: Shard) -> Future[Made]:
        future: Future[Made] = Future()
        self._asked.put((shard, future))
        return future

    def _work(self, job: EncodingJob) -> None:
        """What its own thread does: it alone uses the model."""
        try:
            worker = Worker(job)
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        begun: deque[Future[Made]] = deque()
        first = self._asked.get()
        start = time.monotonic()

        def shards() -> Iterator[Shard]:
            """Those that are asked for by now, and while they are encoded."""
            given = first
            while True:
                begun.append(given[1])
                yield given[0]
                try:
                    given = self._asked.get(len(begun) < AT_ONCE, PATIENCE)
                except queue.Empty:
                    return

        while True:
            try:
                for record in worker.run(shards()):
                    begun.popleft().set_result((record, replace(worker.counts), time.monotonic() - start))
            except BaseException as error:
                while begun:
                    begun.popleft().set_exception(error)
            first = self._asked.get()
