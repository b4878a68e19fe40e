"""Arrays of samples: number formats, channels and rates."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import miniaudio
import numpy as np
import numpy.typing as npt

from shardpipe.errors import AudioError

__all__ = ["resample", "to_float32", "to_int16", "to_mono"]

_Array: TypeAlias = npt.NDArray[Any]

_ffi: Any = miniaudio.ffi
_lib: Any = miniaudio.lib

# torchaudio tabulates its filter for every phase of the two rates in lowest terms: this many numbers take 0.6 GB.
_FILTER_MAX = 1 << 24


def to_float32(audio: _Array, out: _Array | None = None) -> npt.NDArray[np.float32]:
    """int16 divided by 32768, exactly, in `out` if it is given; floating point as float32, which takes no `out`.

    Any shape; never the array given, if int16.
    """
    if audio.dtype != np.int16:
        return audio.astype(np.float32, copy=False)
    if out is None:
        out = np.empty(audio.shape, np.float32)
    # numpy would go over the samples twice, once to convert and once to divide.
    numbers, whole = _ffi.from_buffer(out, require_writable=True), _ffi.from_buffer(np.ascontiguousarray(audio))
    _lib.ma_pcm_convert(numbers, _lib.ma_format_f32, whole, _lib.ma_format_s16, audio.size, _lib.ma_dither_mode_none)
    return out


def to_int16(audio: _Array) -> npt.NDArray[np.int16]:
    """Floating point times 32768, rounded half to even, clipped to -32768..32767; int16 as it is. Any shape.

    Raises AudioError for NaN.
    """
    if audio.dtype == np.int16:
        return audio
    if not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(f"samples are {audio.dtype}, but must be int16 or floating point")
    scaled: _Array = np.multiply(audio, 32768, dtype=np.result_type(audio, np.float32))
    np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled)
    if np.isnan(scaled).any():
        raise AudioError("some samples are not numbers (NaN)", fix="Mend what produced them.")
    return scaled.astype(np.int16)


def to_mono(audio: _Array, channel: int | None = None) -> _Array:
    """[frames, channels] as [frames] of the same dtype: one channel, counted from 0, or the mean of all of them.

    The mean of int16 is rounded half to even. A view where no arithmetic is needed. Raises AudioError if there is no
    such channel.
    """
    channels = audio.shape[1]
    if channel is not None:
        if not 0 <= channel < channels:
            raise AudioError(
                f"there is no channel {channel}, for the audio has {channels}",
                fix="Channels count from 0; leave the choice out to mix all of them.",
            )
        return audio[:, channel]
    if channels == 1:
        return audio[:, 0]
    if audio.dtype == np.int16:
        mean: _Array = np.rint(audio.mean(axis=1, dtype=np.float64)).astype(np.int16)
    else:
        mean = audio.mean(axis=1, dtype=audio.dtype)
    return mean


def resample(audio: _Array, from_rate: int, to_rate: int) -> npt.NDArray[np.float32]:
    """[frames] or [frames, channels] at another rate, as float32, ceil(frames * to_rate / from_rate) of them.

    torchaudio's windowed sinc (Hann, 6 zero crossings), on one thread, so that equal input gives equal output.
    May overshoot [-1, 1] a little; `to_int16` and `encode` clip. Raises AudioError for rates with no small ratio.
    """
    samples = to_float32(audio)
    if from_rate == to_rate:
        return samples
    divisor = math.gcd(from_rate, to_rate)
    if (from_rate // divisor) * (to_rate // divisor) > _FILTER_MAX:
        raise AudioError(
            f"{from_rate} Hz cannot be resampled to {to_rate} Hz, for their ratio is {from_rate // divisor}:"
            f"{to_rate // divisor} in lowest terms",
            fix="Choose another sample rate, or resample it first to a common one.",
        )
    import torch
    import torchaudio.functional

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The copy is for torch, which warns of arrays it might write to but must not.
        waves = torch.from_numpy(samples.T.copy())
        return np.ascontiguousarray(torchaudio.functional.resample(waves, from_rate, to_rate).numpy().T)
    finally:
        torch.set_num_threads(threads)
