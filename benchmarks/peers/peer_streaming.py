"""MosaicML Streaming, its MDS shards on the local disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Epoch, Job, Resumed, pad_tensors
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

PACKAGE = "mosaicml-streaming"


def prepare(job: Job) -> None:
    with MDSWriter(out=str(job.folder), columns={"audio": "bytes", "text": "str"}) as writer:
        for utterance in job.utterances():
            writer.write({"audio": utterance.path.read_bytes(), "text": utterance.text})


class _Shards(StreamingDataset):
    def __init__(self, job: Job) -> None:
        super().__init__(local=str(job.folder), batch_size=job.batch_size, shuffle=True)
        self._job = job

    def __getitem__(self, at: Any) -> np.ndarray:
        return self._job.decoded(super().__getitem__(at)["audio"])


def open_loader(job: Job) -> StreamingDataLoader:
    loader = StreamingDataLoader(
        _Shards(job),
        batch_size=job.batch_size,
        collate_fn=pad_tensors,
        num_workers=job.count,
        persistent_workers=job.count > 0,
    )
    # Its own count of samples takes the length of a batch, and a pair's is 2.
    loader._get_batch_size = lambda batch: len(batch[1])
    return loader


def open_epochs(job: Job) -> Epoch:
    loader = open_loader(job)
    return lambda: iter(loader)


def resume(job: Job, state: Any) -> Resumed:
    loader = open_loader(job)
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader), loader.state_dict
