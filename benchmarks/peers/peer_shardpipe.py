"""shardpipe itself, asked as its peers are."""

from __future__ import annotations

from typing import Any

from common import Batches, Epoch, Job, Resumed

from shardpipe import ShardLoader

PACKAGE = "shardpipe"


def open_loader(job: Job) -> ShardLoader:
    if job.unit == "seconds":
        return ShardLoader(job.folder, batch_seconds=float(job.count))
    if job.unit == "workers":
        return ShardLoader(job.folder, batch_size=job.batch_size, workers=job.count)
    return ShardLoader(job.folder, batch_size=job.batch_size, threads=job.count or None)


def open_epochs(job: Job) -> Epoch:
    loader = open_loader(job)

    def epoch() -> Batches:
        return ((batch.audio, batch.lengths.tolist()) for batch in loader)

    return epoch


def resume(job: Job, state: Any) -> Resumed:
    loader = open_loader(job)
    if state is not None:
        loader.load_state_dict(state)
    return ((batch.audio, batch.lengths.tolist()) for batch in loader), loader.state_dict
