"""What a file's samples are, by libsndfile and by us."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from shardpipe.audio import decode, probe

__all__ = ["frames_of", "reference"]


def reference(data: bytes) -> np.ndarray:
    """What libsndfile decodes: float32 [frames, channels]."""
    audio: np.ndarray = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]
    return audio


def frames_of(data: bytes) -> int:
    """As `decode` delivers them, after checking that `probe` says the same."""
    info = probe(data)
    audio = decode(data, info.codec)
    assert audio.shape == (info.frames, info.channels)
    return info.frames
