"""The form in which samples come to a batch, whatever they have in their files: number format, channels and rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

from shardpipe.audio import CHANNELS_MAX, SAMPLE_RATE_MAX, decode_into, resampled_frames
from shardpipe.errors import AudioError, ConfigError, ShardError, ShardpipeError
from shardpipe.loading.read import Payload, SampleRow
from shardpipe.settings import check, integer

__all__ = ["Channels", "Form"]

Channels: TypeAlias = int | Literal["error", "mix", "keep"]

_CHOICES = (
    'Choose one by its number, from 0 on, or channels="mix" for the mean of all, as it was up to version 0.1, or, in a '
    'loop of your own, channels="keep" for all of them.'
)
_OTHERS = "Channels count from 0: choose another, or leave such samples out of the dataset."


@dataclass(frozen=True, kw_only=True)
class Form:
    """What becomes of every sample; checked when it is made.

    dtype: "float32" in [-1, 1], or "int16".
    channels: a number chooses that one, from 0 on; "mix" takes the mean of all, "keep" all; "error" refuses several.
    sample_rate: Hz to resample to; None leaves each sample its own.
    """

    dtype: str = "float32"
    channels: Channels = "error"
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        check("dtype", self.dtype, self.dtype in ("float32", "int16"), 'it must be "float32" or "int16"')
        rule = f'it must be "error", "mix", "keep" or a number from 0 to {CHANNELS_MAX - 1}'
        if isinstance(self.channels, str):
            check("channels", self.channels, self.channels in ("error", "mix", "keep"), rule)
        else:
            channel = integer("channels", self.channels)
            check("channels", channel, 0 <= channel < CHANNELS_MAX, rule)
            object.__setattr__(self, "channels", channel)
        if self.sample_rate is not None:
            rate = integer("sample_rate", self.sample_rate, least=1)
            check("sample_rate", rate, rate <= SAMPLE_RATE_MAX, f"it must be {SAMPLE_RATE_MAX} Hz or less")
            object.__setattr__(self, "sample_rate", rate)

    def check_channels(self, samples: Mapping[int, int]) -> None:
        """Raises ConfigError if some samples, by number of channels as far as a dataset says it, cannot be had."""
        wrong = {n: count for n, count in samples.items() if self._is_wrong(n)}
        if wrong:
            found = ", ".join(f"{count:,} of its samples have {_channels(n)}" for n, count in sorted(wrong.items()))
            raise self._refused(found)

    def rate(self, row: SampleRow) -> int:
        """A sample's rate in Hz, as it comes."""
        return self.sample_rate or row.sample_rate

    def frames(self, row: SampleRow) -> int:
        """How long a sample comes out: known before it is read."""
        if self.sample_rate in (None, row.sample_rate):
            return row.frames
        return max(1, resampled_frames(row.frames, row.sample_rate, self.rate(row)))

    def shape(self, rows: Sequence[SampleRow]) -> tuple[int, ...]:
        """[B, T] of a batch of them, with "keep" [B, C, T]. Raises ConfigError where channels do not go together."""
        frames = max(map(self.frames, rows))
        if self.channels != "keep":
            for row in rows:
                if self._is_wrong(row.channels):
                    raise self._refused(f"the sample {row.key!r} has {_channels(row.channels)}")
            return len(rows), frames
        channels = rows[0].channels
        for row in rows:
            if row.channels != channels:
                found = f"the sample {row.key!r} has {row.channels} channels, and {rows[0].key!r} has {channels}"
                raise ConfigError("channels", "keep", f"{found}: a batch must have one number", fix=_CHOICES)
        return len(rows), channels, frames

    def decode(self, row: SampleRow, payload: Payload, out: npt.NDArray[Any]) -> None:
        """Puts a sample's audio into `out`: [T], with "keep" [C, T]. Raises the payload's ShardError, and AudioError if
        it cannot be decoded.
        """
        if isinstance(payload, ShardError):
            raise payload
        channel = self.channels if isinstance(self.channels, int) else None
        try:
            decode_into(payload, row.codec, out, channel=channel, rates=(row.sample_rate, self.rate(row)))
        except ShardpipeError as error:
            raise AudioError(error.what, key=row.key, codec=row.codec, where=row.shard_name, fix=error.fix) from error

    def _is_wrong(self, channels: int) -> bool:
        if isinstance(self.channels, int):
            return self.channels >= channels
        return self.channels == "error" and channels > 1

    def _refused(self, found: str) -> ConfigError:
        fix = _CHOICES if self.channels == "error" else _OTHERS
        return ConfigError("channels", self.channels, found, fix=fix)


def _channels(number: int) -> str:
    return f"{number} channel{'s' if number > 1 else ''}"
