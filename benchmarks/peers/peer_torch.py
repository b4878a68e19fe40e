"""torch's DataLoader on loose files."""

from __future__ import annotations

import numpy as np
import torch
from common import Epoch, Job, pad_tensors

PACKAGE = "torch"


class Files(torch.utils.data.Dataset[np.ndarray]):
    def __init__(self, job: Job) -> None:
        self._job = job
        self._paths = [str(utterance.path) for utterance in job.utterances()]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        with open(self._paths[index], "rb") as file:
            return self._job.decoded(file.read())


def open_epochs(job: Job) -> Epoch:
    loader = torch.utils.data.DataLoader(
        Files(job),
        batch_size=job.batch_size,
        shuffle=True,
        collate_fn=pad_tensors,
        num_workers=job.count,
        persistent_workers=job.count > 0,
    )
    return lambda: iter(loader)
