"""shardpipe itself, asked as its peers are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common import Epoch, Job

from shardpipe import ShardLoader

PACKAGE = "shardpipe"


def open_epochs(job: Job) -> Epoch:
    threads = {"threads": job.count} if job.count else {}
    loader = ShardLoader(job.folder, batch_size=job.batch_size, **threads)

    def epoch() -> Iterator[tuple[Any, list[int]]]:
        for batch in loader:
            yield batch.audio, batch.lengths.tolist()

    return epoch
