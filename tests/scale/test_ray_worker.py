"""What an actor of Ray does with several shards at once, without Ray."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels.scale import Wanted, on_ray
from spanbert_kernels.scale.on_ray import RayWorker
from spanbert_kernels.scale.shards import ShardRecord
from spanbert_kernels.scale.units import groups_of, input_files
from spanbert_kernels.scale.work import EncodingJob, ReadingPlan

pytest.importorskip("pyarrow", reason="files of vectors are Parquet")
DOCUMENTS, OF_SHARD = 60, 8
ALL = -(-DOCUMENTS // OF_SHARD)


def job_in(folder: Path, model: str) -> EncodingJob:
    return EncodingJob(folder, model, Wanted(), "digest", batch_tokens=1024, tokenizers=0)


def asked(job: EncodingJob, lines: Path) -> list[dict[str, Any]]:
    """What Ray calls an actor with, a shard each."""
    (group,) = groups_of(input_files(lines))
    shards = [shard for shard, _ in ReadingPlan(OF_SHARD).shards(job, 0, group)]
    return [{"shard": [pickle.dumps(shard)], "record": [b""], "clusters": [b""]} for shard in shards]


def test_batches_are_filled_across_the_shards_that_are_asked_for(
    model: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "AT_ONCE", ALL)
    monkeypatch.setattr(on_ray, "PATIENCE", 600)
    job = job_in(tmp_path, model)
    worker, batches = RayWorker(job), asked(job, lines)
    with ThreadPoolExecutor(ALL) as calls:
        found = list(calls.map(worker, batches))
    records = [ShardRecord.from_json(each["record"][0]) for each in found]
    assert [record.documents for record in records] == [OF_SHARD] * (ALL - 1) + [DOCUMENTS % OF_SHARD]
    assert {name for each in found for name in each["worker"]} == {worker.name}
    counts, seconds = max((pickle.loads(each["counts"][0]) for each in found), key=lambda each: each[0].documents)
    assert counts.documents == DOCUMENTS
    assert counts.room == job.batch_tokens  # one batch for all of them
    assert seconds > 0
    assert len(list(tmp_path.glob("part-*.parquet"))) == ALL


def test_what_fails_is_heard_by_who_asked_and_the_next_one_is_served(model: str, lines: Path, tmp_path: Path) -> None:
    job = job_in(tmp_path / "later", model)
    worker, (first, second, *_) = RayWorker(job), asked(job, lines)
    with pytest.raises(OSError, match="later"):
        worker(first)
    job.folder.mkdir()
    (record,) = worker(second)["record"]
    assert ShardRecord.from_json(record).documents == OF_SHARD


def test_a_model_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-model"):
        RayWorker(job_in(tmp_path, str(tmp_path / "no-such-model")))
