"""Grain on ArrayRecord files: its global shuffle, its threads, or its worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from common import Epoch, Job, Resumed, pad

PACKAGE = "grain"
_FILE_RECORDS = 500
_BUFFER = 64


def prepare(job: Job) -> None:
    writer: Any = None
    for number, utterance in enumerate(job.utterances()):
        if number % _FILE_RECORDS == 0:
            if writer is not None:
                writer.close()
            name = job.folder / f"part-{number // _FILE_RECORDS:05d}.array_record"
            # One record a group is what random access wants.
            writer = ArrayRecordWriter(str(name), "group_size:1,uncompressed")
        writer.write(utterance.path.read_bytes())
    writer.close()


def open_dataset(job: Job, epoch: int) -> grain.IterDataset[Any]:
    files = sorted(str(path) for path in job.folder.glob("*.array_record"))
    samples = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files)).shuffle(seed=epoch)
    batches = samples.map(_Decode(job)).batch(job.batch_size, drop_remainder=False, batch_fn=pad)
    if job.unit == "threads":
        return batches.to_iter_dataset(grain.ReadOptions(num_threads=job.count, prefetch_buffer_size=_BUFFER))
    in_process = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BUFFER))
    return in_process.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=job.count))


class _Decode:
    """A class, for it must pickle."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, data: bytes) -> np.ndarray:
        return self._job.decoded(data)


def open_epochs(job: Job) -> Epoch:
    numbers = iter(range(1 << 30))

    def epoch() -> Iterator[tuple[Any, list[int]]]:
        return iter(open_dataset(job, next(numbers)))

    return epoch


def resume(job: Job, state: Any) -> Resumed:
    batches = iter(open_dataset(job, 0))
    if state is not None:
        batches.set_state(state)
    return batches, batches.get_state
