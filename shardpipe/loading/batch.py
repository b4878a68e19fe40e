"""One batch: its samples decoded, transformed and padded. Any thread or process may make any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardpipe.errors import AudioError, ShardError
from shardpipe.loading.buffers import Empty, memory_for
from shardpipe.loading.read import Payload, Reader, SampleRow, decode_row, extras_of
from shardpipe.loading.work import Work
from shardpipe.order import AUGMENT, hash_key
from shardpipe.settings import check

__all__ = ["Batch", "Collate", "Maker", "Padded", "Sample", "Skipped", "Transform", "finished"]

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
    """[B, T], float32 in [-1, 1] or int16; on the loader's device."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Padded:
    """What a Batch is made of, as it travels between processes."""

    audio: npt.NDArray[Any] | tuple[int, ...]
    """[B, T]; its shape if it lies in memory that the processes share."""
    lengths: list[int]
    weights: list[float]
    keys: list[str]
    texts: list[str]
    extras: list[dict[str, Any]]
    sample_rate: int


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that could not be decoded under on_error="skip": silence of weight 0 took its place."""

    key: str
    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes batches, Padded or as `collate` has them; holds no state between them, so any thread or process may make
    any of them.
    """

    reader: Reader
    seed: int
    transform: Transform | None
    collate: Collate | None
    dtype: str
    skip_errors: bool
    empty: Empty = np.empty
    """Where the memory of padded audio comes from."""

    def __post_init__(self) -> None:
        for name, value in (("transform", self.transform), ("collate", self.collate)):
            check(name, value, value is None or callable(value), "it must be a function")

    def __call__(self, work: Work, fetched: Mapping[int, Payload]) -> tuple[Any, list[Skipped]]:
        """The batch, of payloads that have been `fetched` already and others; and what had to be skipped, but not again
        in a repeat.
        """
        skipped: list[Skipped] = []
        made = self._made(work, fetched, skipped)
        return made, skipped if work.real else []

    def _made(self, work: Work, fetched: Mapping[int, Payload], skipped: list[Skipped]) -> Any:
        if self.transform is None and self.collate is None:
            return self._straight(work, fetched, skipped)
        samples: dict[int, Sample] = {}
        for i, payload in self.reader.payloads(work.rows, fetched):
            sample = self._sample(work.rows[i], payload, work.epoch, skipped)
            if self.transform is not None and sample.weight:
                sample = self._transformed(self.transform, sample, work.epoch, work.ordinals[i])
            samples[i] = sample if work.real else replace(sample, weight=0.0)
        ordered = [samples[i] for i in range(len(samples))]
        return self.collate(ordered) if self.collate else self._padded(ordered)

    def size(self, work: Work) -> int:
        """Bytes of a batch's payloads and of its padded audio."""
        frames = len(work.rows) * max(row.frames for row in work.rows)
        return sum(row.audio_size for row in work.rows) + frames * np.dtype(self.dtype).itemsize

    def _straight(self, work: Work, fetched: Mapping[int, Payload], skipped: list[Skipped]) -> Padded:
        """Decodes into the padded batch itself."""
        rows = work.rows
        rates = {row.sample_rate for row in rows}
        _check_rates(rates)
        weights = [float(work.real)] * len(rows)
        audio = memory_for(self.empty, len(rows), max(row.frames for row in rows), self.dtype)
        for i, payload in self.reader.payloads(rows, fetched):
            frames = rows[i].frames
            if not self._decoded(rows[i], payload, audio[i, :frames], work.epoch, skipped):
                weights[i] = 0.0
            _silence(audio[i, frames:])
        return Padded(
            audio=audio,
            lengths=[row.frames for row in rows],
            weights=weights,
            keys=[row.key for row in rows],
            texts=[row.text for row in rows],
            extras=[extras_of(row) for row in rows],
            sample_rate=rates.pop(),
        )

    def _decoded(
        self, row: SampleRow, payload: Payload, out: npt.NDArray[Any], epoch: int, skipped: list[Skipped]
    ) -> bool:
        """Whether `out` holds the sample's audio, and not the silence of one that is skipped."""
        try:
            decode_row(row, payload, out)
            return True
        except (AudioError, ShardError) as error:
            if not self.skip_errors:
                raise
            skipped.append(Skipped(key=row.key, epoch=epoch, reason=str(error)))
            _silence(out)
            return False

    def _sample(self, row: SampleRow, payload: Payload, epoch: int, skipped: list[Skipped]) -> Sample:
        audio = memory_for(np.empty, 1, row.frames, self.dtype)[0]
        weight = float(self._decoded(row, payload, audio, epoch, skipped))
        extras = extras_of(row)
        return Sample(
            key=row.key, text=row.text, audio=audio, sample_rate=row.sample_rate, extras=extras, weight=weight
        )

    def _transformed(self, transform: Transform, sample: Sample, epoch: int, ordinal: int) -> Sample:
        key = hash_key(self.seed, epoch, AUGMENT, ordinal)[0]
        rng = np.random.Generator(np.random.Philox(key=np.array([key, ordinal], np.uint64)))
        try:
            transformed = transform(sample, rng)
            if not isinstance(transformed, Sample):
                raise TypeError(f"a transform returns a Sample, and this one {type(transformed).__name__}")
            return transformed
        except Exception as error:
            error.add_note(f"This came from the transform, for the sample {sample.key!r} in epoch {epoch}.")
            raise

    def _padded(self, samples: list[Sample]) -> Padded:
        _check_rates({sample.sample_rate for sample in samples})
        lengths = [len(sample.audio) for sample in samples]
        audio = memory_for(self.empty, len(samples), max(lengths), self.dtype)
        for row, sample in zip(audio, samples):
            floats = audio.dtype.kind == sample.audio.dtype.kind == "f"
            # Wider integers would wrap.
            if sample.audio.ndim != 1 or not (floats or sample.audio.dtype == audio.dtype):
                found = f"{sample.audio.dtype} {list(sample.audio.shape)}"
                raise ValueError(
                    f"the audio of sample {sample.key!r} must be {self.dtype} [T] after the transform, not {found}"
                )
            row[: len(sample.audio)] = sample.audio
            _silence(row[len(sample.audio) :])
        return Padded(
            audio=audio,
            lengths=lengths,
            weights=[sample.weight for sample in samples],
            keys=[sample.key for sample in samples],
            texts=[sample.text for sample in samples],
            extras=[sample.extras for sample in samples],
            sample_rate=samples[0].sample_rate,
        )


def _silence(audio: npt.NDArray[Any]) -> None:
    # As bytes, which numpy sets by memset; numbers it sets one by one.
    audio.view(np.uint8)[:] = 0


def _check_rates(rates: set[int]) -> None:
    check("sample_rate", rates, len(rates) == 1, "a batch must have one: pack with --sample-rate, or transform to one")


def finished(work: Work, made: Any) -> Any:
    """A Batch of what is Padded; what `collate` has made as it is."""
    if not isinstance(made, Padded):
        return made
    assert isinstance(made.audio, np.ndarray)
    return Batch(
        audio=torch.from_numpy(made.audio),
        lengths=torch.tensor(made.lengths, dtype=torch.int64),
        weights=torch.tensor(made.weights, dtype=torch.float32),
        keys=made.keys,
        texts=made.texts,
        extras=made.extras,
        sample_rate=made.sample_rate,
        epoch=work.epoch,
        consumed_samples=work.consumed,
    )
