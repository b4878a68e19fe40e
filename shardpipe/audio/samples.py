"""Arrays of samples: number formats, channels and rates."""

from __future__ import annotations

from typing import Any, TypeAlias

import miniaudio
import numpy as np
import numpy.typing as npt
import soxr

from shardpipe.errors import AudioError

__all__ = ["RESAMPLER", "resample", "resampled_frames", "to_float32", "to_int16", "to_mono"]

_Array: TypeAlias = npt.NDArray[Any]

_ffi: Any = miniaudio.ffi
_lib: Any = miniaudio.lib

# From ultrasound down to telephones is a tenth of it. Far beyond, libsoxr has been seen to take minutes for a second.
_RATIO_MAX = 512

RESAMPLER = f"soxr {soxr.__libsoxr_version__}, HQ"
"""What decides, besides the samples, what `resample` gives."""


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
                fix="Channels count from 0.",
            )
        return audio[:, channel]
    if channels == 1:
        return audio[:, 0]
    if audio.dtype == np.int16:
        mean: _Array = np.rint(audio.mean(axis=1, dtype=np.float64)).astype(np.int16)
    else:
        mean = audio.mean(axis=1, dtype=audio.dtype)
    return mean


def resampled_frames(frames: int, from_rate: int, to_rate: int) -> int:
    """How many frames `resample` gives: frames * to_rate / from_rate, rounded half up."""
    return (2 * frames * to_rate + from_rate) // (2 * from_rate)


def resample(audio: _Array, from_rate: int, to_rate: int) -> npt.NDArray[np.float32]:
    """[frames] or [frames, channels] at another rate, as float32; `resampled_frames` says how many.

    libsoxr's HQ, on the calling thread, without the GIL: equal input gives equal output. May overshoot [-1, 1] a
    little; `to_int16` and `encode` clip. Raises AudioError if nothing is left, or the rates cannot be had.
    """
    samples = to_float32(audio)
    if from_rate == to_rate:
        return samples
    frames = resampled_frames(len(audio), from_rate, to_rate)
    if not frames:
        raise AudioError(
            f"its {len(audio)} frames at {from_rate} Hz are none at {to_rate} Hz", fix="Leave it out: it is too short."
        )
    if not 1 / _RATIO_MAX <= to_rate / from_rate <= _RATIO_MAX:
        raise AudioError(
            f"{from_rate} Hz cannot be resampled to {to_rate} Hz: one is more than {_RATIO_MAX} times the other",
            fix="Choose another sample rate, or leave it out.",
        )
    out: _Array = soxr.resample(samples, from_rate, to_rate, quality="HQ")
    if len(out) < frames:
        # It counts in floating point, and comes out below some halves. Behind the end it hears silence anyway.
        silence = np.zeros((1 + -(-from_rate // to_rate), *samples.shape[1:]), np.float32)
        out = soxr.resample(np.concatenate([samples, silence]), from_rate, to_rate, quality="HQ")
    assert len(out) >= frames
    return np.ascontiguousarray(out[:frames])
