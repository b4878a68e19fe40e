"""LitData: chunks made by `optimize`, read by its StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Epoch, Job, Resumed, Utterance, pad_tensors
from litdata import StreamingDataLoader, StreamingDataset, optimize

PACKAGE = "litdata"


def _read(utterance: Utterance) -> dict[str, Any]:
    return {"audio": utterance.path.read_bytes(), "text": utterance.text}


def prepare(job: Job) -> None:
    optimize(
        fn=_read,
        inputs=list(job.utterances()),
        output_dir=str(job.folder),
        chunk_bytes="64MB",
        num_workers=1,
        mode="overwrite",
    )


class _Chunks(StreamingDataset):
    def __init__(self, job: Job) -> None:
        super().__init__(str(job.folder), shuffle=True)
        self._job = job

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._job.decoded(super().__getitem__(index)["audio"])


def open_loader(job: Job) -> StreamingDataLoader:
    return StreamingDataLoader(
        _Chunks(job),
        batch_size=job.batch_size,
        collate_fn=pad_tensors,
        num_workers=job.count,
        persistent_workers=job.count > 0,
    )


def open_epochs(job: Job) -> Epoch:
    loader = open_loader(job)
    return lambda: iter(loader)


def resume(job: Job, state: Any) -> Resumed:
    loader = open_loader(job)
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader), loader.state_dict
