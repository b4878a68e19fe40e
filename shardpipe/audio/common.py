"""What every decoder shares: the facts of a file, the checks on what it promises and what it delivers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shardpipe.errors import AudioError

__all__ = [
    "CHANNELS_MAX",
    "CONVERT",
    "FRAMES_PER_BYTE_MAX",
    "SAMPLE_RATE_MAX",
    "TORN",
    "AudioInfo",
    "Bytes",
    "Samples",
    "bounded",
    "filled",
    "info_of",
    "peak",
    "short",
]

Bytes: TypeAlias = bytes | memoryview
Samples: TypeAlias = npt.NDArray[Any]
"""[frames, channels], int16 or float32."""

TORN = "Fetch or convert the file again, or leave it out."
CONVERT = "Convert it to WAV or FLAC first."

SAMPLE_RATE_MAX = 1_000_000
"""Hz; more is a broken header, for recorders of ultrasound stay below."""
CHANNELS_MAX = 1024

# 65535 frames of silence take 11 bytes of FLAC, 5760 take 2 bytes of Opus: more a byte than this is a broken header.
FRAMES_PER_BYTE_MAX = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioInfo:
    """What a file holds; `frames` counts samples per channel, as `decode` delivers them at `sample_rate`."""

    codec: str
    frames: int
    sample_rate: int
    channels: int


def info_of(codec: str, data: Bytes, frames: int, sample_rate: int, channels: int) -> AudioInfo:
    """The facts, once they are seen to be possible."""
    if not (1 <= sample_rate <= SAMPLE_RATE_MAX and 1 <= channels <= CHANNELS_MAX):
        raise AudioError(f"the header gives {channels} channels at {sample_rate} Hz", codec=codec, fix=TORN)
    if frames == 0:
        raise AudioError("the audio is empty (0 frames)", codec=codec, fix="Leave it out of the list.")
    if not 0 < frames <= len(data) * FRAMES_PER_BYTE_MAX:
        raise AudioError(f"the header promises {frames} frames in {len(data)} bytes", codec=codec, fix=TORN)
    return AudioInfo(codec=codec, frames=frames, sample_rate=sample_rate, channels=channels)


def short(codec: str, promised: int, got: int) -> AudioError:
    found = f"only {got}" if got < promised else "more"
    return AudioError(
        f"the header promises {promised} frames and {found} can be decoded: the data is cut or damaged",
        codec=codec,
        fix=TORN,
    )


def filled(info: AudioInfo, dtype: type[np.number[Any]], read: Callable[[Samples], int]) -> Samples:
    """What `read` puts into an array with room for one frame more than promised; it returns the frames it has put.

    Raises AudioError unless they are as many as promised.
    """
    out = np.empty((info.frames + 1, info.channels), dtype)
    if (got := read(out)) != info.frames:
        raise short(info.codec, info.frames, got)
    return out[:-1]


def peak(codec: str, audio: Samples) -> float:
    """How far floating point samples go from 0. Raises AudioError if they cannot be meant for [-1, 1]."""
    low, high = float(audio.min()), float(audio.max())
    if not (found := max(-low, high)) < 16:
        raise AudioError(
            f"its samples range from {low:g} to {high:g}, far outside [-1, 1]",
            codec=codec,
            fix="Scale them to [-1, 1], or write them as integers.",
        )
    return found


def bounded(codec: str, audio: Samples) -> Samples:
    """Floating point samples clipped to [-1, 1]. Raises AudioError if they cannot be meant so."""
    return audio if peak(codec, audio) <= 1 else np.clip(audio, -1, 1, out=audio)
