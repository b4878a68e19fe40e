"""SPDL's pipeline of threads on loose files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from common import Epoch, Job, pad_tensors
from spdl.pipeline import PipelineBuilder

PACKAGE = "spdl"


def open_epochs(job: Job) -> Epoch:
    paths = [str(utterance.path) for utterance in job.utterances()]
    rng = np.random.default_rng(0)

    def read(path: str) -> np.ndarray:
        with open(path, "rb") as file:
            return job.decoded(file.read())

    def epoch() -> Iterator[tuple[Any, list[int]]]:
        pipeline = (
            PipelineBuilder()
            .add_source([paths[i] for i in rng.permutation(len(paths))])
            .pipe(read, concurrency=job.count)
            .aggregate(job.batch_size)
            .pipe(pad_tensors)
            .add_sink(4)
            .build(num_threads=job.count)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return epoch
