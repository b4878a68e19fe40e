"""Making a batch: its samples decoded, transformed and padded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from shardpipe.audio import resampled_frames
from shardpipe.errors import AudioError, ShardError
from shardpipe.loading.making.batch import Batch, Sample
from shardpipe.loading.making.buffers import Empty, memory_for
from shardpipe.loading.making.form import Form
from shardpipe.loading.read import Payload, Reader, SampleRow, extras_of
from shardpipe.loading.work import Place, Work
from shardpipe.order import AUGMENT, hash_key
from shardpipe.settings import check

__all__ = ["Collate", "Maker", "Padded", "Skipped", "Transform", "asking", "finished", "silence"]

Transform = Callable[[Sample, np.random.Generator], Sample]
_PLACE = tuple(field.name for field in fields(Place))

Collate = Callable[[list[Sample]], Any] | Callable[[list[Sample], Place], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Padded:
    """What a Batch is made of, as it travels between processes."""

    audio: npt.NDArray[Any] | tuple[int, ...]
    """As in Batch; its shape if it lies in memory that the processes share; of one dimension if it is not padded, one
    sample after another, each in C order."""
    lengths: list[int]
    weights: list[float]
    keys: list[str]
    texts: list[str]
    extras: list[dict[str, Any]]
    sample_rate: int
    channels: int | None = None
    """Of audio [B, C, T] that is not padded."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that could not be decoded under on_error="skip": silence of weight 0 took its place."""

    key: str
    epoch: int
    reason: str
    damaged: bool = False
    """Whether its bytes are not those of the index; else they are, and cannot be decoded."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes batches, Padded or as `collate` has them; holds no state between them, so any thread or process may make
    any of them.
    """

    reader: Reader
    seed: int
    transform: Transform | None
    collate: Callable[[list[Sample], Place], Any] | None
    form: Form
    skip_errors: bool
    empty: Empty = np.empty
    """Where the memory of padded audio comes from."""
    pads: bool = True
    """False leaves the padding away, where no transform and no collate gets it: for who sends batches elsewhere."""

    def __post_init__(self) -> None:
        check("transform", self.transform, self.transform is None or callable(self.transform), "it must be a function")

    def __call__(self, work: Work, fetched: Mapping[int, Payload]) -> tuple[Any, list[Skipped]]:
        """The batch, of payloads that have been `fetched` already and others; and what had to be skipped, but not again
        in a repeat.
        """
        skipped: dict[int, Skipped] = {}
        made = self._made(work, fetched, skipped)
        return made, [skipped[i] for i in sorted(skipped) if work.weights[i]]

    def _made(self, work: Work, fetched: Mapping[int, Payload], skipped: dict[int, Skipped]) -> Any:
        if self.transform is None and self.collate is None:
            return self._straight(work, fetched, skipped)
        samples: dict[int, Sample] = {}
        for i, payload in self.reader.payloads(work.rows, fetched):
            sample = self._sample(work, i, payload, skipped)
            if i not in skipped and self.transform is not None:
                sample = self._transformed(self.transform, sample, work.epochs[i], work.ordinals[i])
            samples[i] = sample if work.weights[i] else replace(sample, weight=0.0)
        ordered = [samples[i] for i in range(len(samples))]
        return self._padded(ordered, skipped.keys()) if self.collate is None else self.collate(ordered, work.place)

    def size(self, work: Work) -> int:
        """Bytes of a batch's payloads and of its padded audio."""
        padded = math.prod(self.form.shape(work.rows)) * np.dtype(self.form.dtype).itemsize
        return sum(row.audio_size for row in work.rows) + padded

    def check_rates(self, rows: Sequence[SampleRow]) -> int:
        """The rate in Hz that samples have together, as they come. Raises ConfigError if they have several."""
        rates = {self.form.rate(row) for row in rows}
        _check_rates(rates)
        return rates.pop()

    def _straight(self, work: Work, fetched: Mapping[int, Payload], skipped: dict[int, Skipped]) -> Padded:
        """Decodes into the padded batch itself."""
        rows = work.rows
        rate = self.check_rates(rows)
        weights, lengths = list(work.weights), [self.form.frames(row) for row in rows]
        shape = self.form.shape(rows)
        audio, places = self._memory(shape, lengths)
        for i, payload in self.reader.payloads(rows, fetched):
            if not self._decoded(work, i, payload, places[i], skipped):
                weights[i] = 0.0
            if self.pads:
                silence(audio[i, ..., lengths[i] :])
        return Padded(
            audio=audio,
            lengths=lengths,
            weights=weights,
            keys=[row.key for row in rows],
            texts=[row.text for row in rows],
            extras=[extras_of(row) for row in rows],
            sample_rate=rate,
            channels=shape[1] if len(shape) == 3 else None,
        )

    def _memory(self, shape: tuple[int, ...], lengths: list[int]) -> tuple[npt.NDArray[Any], list[npt.NDArray[Any]]]:
        """That of a batch, and the place of each sample in it."""
        if self.pads:
            audio = memory_for(self.empty, shape, self.form.dtype)
            return audio, [row[..., :length] for row, length in zip(audio, lengths)]
        channels = shape[1:-1]
        audio = np.empty(math.prod(channels) * sum(lengths), self.form.dtype)
        stretches = np.split(audio, np.cumsum(lengths)[:-1] * math.prod(channels))
        return audio, [stretch.reshape(*channels, -1) for stretch in stretches]

    def _decoded(
        self, work: Work, i: int, payload: Payload, out: npt.NDArray[Any], skipped: dict[int, Skipped]
    ) -> bool:
        """Whether `out` holds the sample's audio, and not the silence of one that is skipped."""
        row = work.rows[i]
        try:
            self.form.decode(row, payload, out)
            return True
        except (AudioError, ShardError) as error:
            if not self.skip_errors:
                raise
            damaged = isinstance(error, ShardError)
            skipped[i] = Skipped(key=row.key, epoch=work.epochs[i], reason=str(error), damaged=damaged)
            silence(out)
            return False

    def _sample(self, work: Work, i: int, payload: Payload, skipped: dict[int, Skipped]) -> Sample:
        row = work.rows[i]
        audio = memory_for(np.empty, self.form.shape([row]), self.form.dtype)[0]
        weight = float(self._decoded(work, i, payload, audio, skipped))
        rate, extras = self.form.rate(row), extras_of(row)
        return Sample(key=row.key, text=row.text, audio=audio, sample_rate=rate, extras=extras, weight=weight)

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

    def _padded(self, samples: list[Sample], silent: Collection[int]) -> Padded:
        """Those that are `silent` were skipped, and no transform has seen them: they become what the others are."""
        heard = [sample for i, sample in enumerate(samples) if i not in silent] or samples
        _check_rates({sample.sample_rate for sample in heard})
        rate, channels = heard[0].sample_rate, self._checked(heard[0]).shape[:-1]
        found = []
        for i, sample in enumerate(samples):
            if i in silent:
                frames = max(1, resampled_frames(sample.audio.shape[-1], sample.sample_rate, rate))
                found.append(np.zeros((*channels, frames), self.form.dtype))
                continue
            found.append(audio := self._checked(sample))
            if audio.shape[:-1] != channels:
                raise _strange(sample, f"{list(audio.shape)}, and that of {heard[0].key!r} has other channels")
        lengths = [audio.shape[-1] for audio in found]
        padded = memory_for(self.empty, (len(found), *channels, max(lengths)), self.form.dtype)
        for row, audio in zip(padded, found):
            row[..., : audio.shape[-1]] = audio
            silence(row[..., audio.shape[-1] :])
        return Padded(
            audio=padded,
            lengths=lengths,
            weights=[sample.weight for sample in samples],
            keys=[sample.key for sample in samples],
            texts=[sample.text for sample in samples],
            extras=[sample.extras for sample in samples],
            sample_rate=rate,
        )

    def _checked(self, sample: Sample) -> npt.NDArray[Any]:
        """The audio that a transform has left, as an array. Raises ValueError for what can be no audio."""
        wanted, keeps = np.dtype(self.form.dtype), self.form.channels == "keep"
        try:
            audio = _as_array(sample.audio)
        except Exception as error:
            raise _strange(sample, f"no array ({error})") from error
        # Wider integers would wrap.
        if audio.ndim != 1 + keeps or not (audio.dtype == wanted or audio.dtype.kind == wanted.kind == "f"):
            rule = f"it must be {wanted} {'[C, T]' if keeps else '[T]'}"
            raise _strange(sample, f"{audio.dtype} {list(audio.shape)}, but {rule}")
        if not audio.size:
            raise _strange(sample, "empty: leave samples out by min_seconds and max_seconds")
        with np.errstate(all="ignore"):
            audio = audio.astype(wanted, copy=False)
            # A sum that is finite has no NaN in it; one that is not may have overflowed.
            finite = wanted.kind != "f" or np.isfinite(audio.sum()) or np.isfinite(audio).all()
        if not finite:
            raise _strange(sample, "not all numbers: it has NaN or infinity in it")
        return audio


def _as_array(audio: Any) -> npt.NDArray[Any]:
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.dtype == torch.bfloat16 else audio).numpy()  # numpy has no such numbers
    return np.asarray(audio)


@dataclass(frozen=True)
class _WithPlace:
    """Calls a collate function with samples and place, or with the samples alone."""

    collate: Callable[..., Any]
    how: Literal["no", "second", "by name"]

    def __call__(self, samples: list[Sample], place: Place) -> Any:
        if self.how == "by name":
            return self.collate(samples, place=place)
        return self.collate(samples, place) if self.how == "second" else self.collate(samples)


def asking(collate: Collate) -> _WithPlace:
    """The function, given the batch's place if it has a parameter of that name, or needs a second argument. Raises
    ConfigError for what is no function.
    """
    check("collate", collate, callable(collate), "it must be a function")
    try:
        parameters = inspect.signature(collate, follow_wrapped=False).parameters
        if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):  # a decorator's, that passes all on
            parameters = inspect.signature(collate).parameters
    except ValueError:  # built into Python, and without one
        return _WithPlace(collate, "no")
    if "place" in parameters and parameters["place"].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return _WithPlace(collate, "by name")
    needed = [p for p in parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    return _WithPlace(collate, "second" if len(needed) > 1 else "no")


def _strange(sample: Sample, what: str) -> ValueError:
    return ValueError(f"after the transform the audio of sample {sample.key!r} is {what}")


def silence(audio: npt.NDArray[Any]) -> None:
    """Makes it 0."""
    # As bytes, which numpy sets by memset; numbers it sets one by one.
    audio.view(np.uint8)[:] = 0


def _check_rates(rates: set[int]) -> None:
    check("sample_rate", rates, len(rates) == 1, "a batch must have one: give it, or transform to one")


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
        ordinals=work.ordinals,
        texts=made.texts,
        extras=made.extras,
        sample_rate=made.sample_rate,
        **{field: getattr(work.place, field) for field in _PLACE},
    )
