"""SPDL's pipeline of threads on loose files, and its own decoding: FFmpeg's, and its parser of WAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

import numpy as np
import spdl.io
from common import Epoch, Job
from spdl.pipeline import PipelineBuilder

PACKAGE = "spdl"
_RATE = 16000
_DEMUXERS = {"opus": "ogg"}
"""FFmpeg's names of containers, where they are not the format's."""
_TO_FLOAT = np.float32(1 / 32768)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _loading(job: Job) -> Callable[[str], np.ndarray]:
    """A file's [frames], float32 or the int16 that it holds."""
    if job.decoder == "shardpipe":
        return lambda path: job.decoded(_read(path))
    if job.format == "wav":
        return lambda path: spdl.io.to_numpy(spdl.io.load_wav(_read(path))).reshape(-1)
    # FFmpeg need not guess a container that is named; without a filter samples come as the decoder has them. Its
    # decoder of Opus has them at 48 kHz.
    container = spdl.io.demux_config(format=_DEMUXERS.get(job.format, job.format))
    resampled = spdl.io.get_audio_filter_desc(sample_rate=_RATE) if job.format == "opus" else None

    def load(path: str) -> np.ndarray:
        audio = spdl.io.load_audio(path, demux_config=container, filter_desc=resampled)
        return spdl.io.to_numpy(audio).reshape(-1)

    return load


def _pad(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """`pad`, with int16 made float32 on the way."""
    lengths = [len(sample) for sample in samples]
    audio = np.zeros((len(samples), max(lengths)), np.float32)
    for row, sample in zip(audio, samples):
        np.multiply(sample, _TO_FLOAT if sample.dtype == np.int16 else np.float32(1), out=row[: len(sample)])
    return audio, lengths


def open_epochs(job: Job) -> Epoch:
    paths = [str(utterance.path) for utterance in job.utterances()]
    rng = np.random.default_rng(0)
    load = _loading(job)
    running = ExitStack()

    def batch(some: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        return _pad([load(path) for path in some])

    def epoch() -> Iterator[tuple[np.ndarray, list[int]]]:
        # What remains of the epoch before. Right behind a last batch a pipeline takes up to 0.1 s to find that it has
        # ended, which is not counted.
        running.close()
        shuffled = [paths[i] for i in rng.permutation(len(paths))]
        # A batch a task, as spdl.io.load_image_batch is used: a file a task hands over so often that it is far slower.
        batches = [shuffled[i : i + job.batch_size] for i in range(0, len(paths), job.batch_size)]
        pipeline = (
            PipelineBuilder()
            .add_source(batches)
            .pipe(batch, concurrency=job.count)
            .add_sink(4)
            .build(num_threads=job.count, max_failures=0)  # else what fails is left out
        )
        running.enter_context(pipeline.auto_stop())
        yield from islice(pipeline, len(batches))

    return epoch
