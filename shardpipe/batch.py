"""One batch: its samples read, decoded, transformed and padded. Any thread or process may make any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardpipe.bijection import AUGMENT, hash_key
from shardpipe.errors import AudioError, ShardError, check
from shardpipe.order import Ints
from shardpipe.read import SampleRow, coalesce, decode_row, read_ranges, rows_of
from shardpipe.sequence import BatchSequence
from shardpipe.store import Store

__all__ = ["Batch", "Collate", "Maker", "Sample", "Skipped", "Transform", "Work"]

Transform = Callable[["Sample", np.random.Generator], "Sample"]
Collate = Callable[[list["Sample"]], Any]


@dataclass(kw_only=True, slots=True)
class Sample:
    """One utterance as a transform gets it: `audio` is [T], float32 in [-1, 1] or int16."""

    key: str
    text: str
    audio: npt.NDArray[Any]
    sample_rate: int
    extras: dict[str, Any]
    weight: float = 1.0
    """0 for a repeat that fills an epoch's last step, and for a sample that was skipped; else 1."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank takes in one micro-step: B samples, padded at the end with silence to the longest, T."""

    audio: torch.Tensor
    """[B, T], float32 in [-1, 1] or int16."""
    lengths: torch.Tensor
    """[B], int64: each sample's length before padding."""
    weights: torch.Tensor
    """[B], float32: 1 for a sample that counts, 0 for a repeat or a skipped sample."""
    keys: list[str]
    texts: list[str]
    extras: list[dict[str, Any]]
    sample_rate: int
    epoch: int
    consumed_samples: int
    """Of the run, all ranks together, after this step."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that could not be decoded under on_error="skip": silence of weight 0 took its place."""

    key: str
    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """One batch to make: everything a thread or a process needs to know of it."""

    epoch: int
    positions: Ints
    real: bool
    consumed: int


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes batches; holds no state between them, so any thread or process may make any of them."""

    sequence: BatchSequence
    store: Store
    transform: Transform | None
    collate: Collate | None
    dtype: str
    skip_errors: bool

    def __call__(self, work: Work) -> tuple[Any, list[Skipped]]:
        shards, places, ordinals = self.sequence.samples(work.epoch, work.positions)
        rows = rows_of(self.sequence.index, shards.tolist(), places.tolist())
        payloads = read_ranges(self.store, coalesce(rows), rows)
        skipped: list[Skipped] = []
        samples = []
        for row, payload, ordinal in zip(rows, payloads, ordinals.tolist()):
            sample = self._sample(row, payload, work, skipped)
            if self.transform is not None and sample.weight:
                sample = self._transformed(self.transform, sample, work.epoch, ordinal)
            samples.append(sample if work.real else replace(sample, weight=0.0))
        return self.collate(samples) if self.collate else _padded(samples, work, self.dtype), skipped

    def _transformed(self, transform: Transform, sample: Sample, epoch: int, ordinal: int) -> Sample:
        key = hash_key(self.sequence.order.seed, epoch, AUGMENT, ordinal)[0]
        rng = np.random.Generator(np.random.Philox(key=np.array([key, ordinal], np.uint64)))
        try:
            transformed = transform(sample, rng)
            if not isinstance(transformed, Sample):
                raise TypeError(f"a transform returns a Sample, and this one {type(transformed).__name__}")
            return transformed
        except Exception as error:
            error.add_note(f"This came from the transform, for the sample {sample.key!r} in epoch {epoch}.")
            raise

    def _sample(self, row: SampleRow, payload: memoryview, work: Work, skipped: list[Skipped]) -> Sample:
        weight = 1.0
        try:
            audio = decode_row(row, payload, self.dtype)
        except (AudioError, ShardError) as error:
            if not self.skip_errors:
                raise
            skipped.append(Skipped(key=row.key, epoch=work.epoch, reason=str(error)))
            audio, weight = np.zeros(row.frames, self.dtype), 0.0
        return Sample(
            key=row.key, text=row.text, audio=audio, sample_rate=row.sample_rate, extras=row.extras, weight=weight
        )


def _padded(samples: list[Sample], work: Work, dtype: str) -> Batch:
    rates = {sample.sample_rate: sample.key for sample in samples}
    check("sample_rate", rates, len(rates) == 1, "a batch must have one: pack with --sample-rate, or transform to one")
    lengths = [len(sample.audio) for sample in samples]
    audio = np.zeros((len(samples), max(lengths)), dtype)
    for row, sample in zip(audio, samples):
        floats = audio.dtype.kind == sample.audio.dtype.kind == "f"
        # Wider integers would wrap.
        if sample.audio.ndim != 1 or not (floats or sample.audio.dtype == audio.dtype):
            found = f"{sample.audio.dtype} {list(sample.audio.shape)}"
            raise ValueError(f"the audio of sample {sample.key!r} must be {dtype} [T] after the transform, not {found}")
        row[: len(sample.audio)] = sample.audio
    return Batch(
        audio=torch.from_numpy(audio),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        weights=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        keys=[sample.key for sample in samples],
        texts=[sample.text for sample in samples],
        extras=[sample.extras for sample in samples],
        sample_rate=samples[0].sample_rate,
        epoch=work.epoch,
        consumed_samples=work.consumed,
    )
