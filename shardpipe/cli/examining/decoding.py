"""How fast one core decodes, each codec by itself."""

from __future__ import annotations

from collections import Counter, deque
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from shardpipe.audio import encode
from shardpipe.cli.examining.rates import Measured, Rate
from shardpipe.errors import AudioError, ShardpipeError
from shardpipe.loading import Form, Payload, SampleRow

__all__ = ["BUILT_IN", "BUILT_IN_SECONDS", "Clip", "decode_clips", "measure_codecs"]

BUILT_IN = "speech-like audio, 16 kHz mono"
BUILT_IN_SECONDS = 7
"""Length of each of its utterances."""
_BUILT_IN_RATE = 16000
_BUILT_IN_CODECS = ("wav", "flac", "opus")

_BEYOND_CACHES = 1 << 25
"""Bytes that hold more than a core's own cache does, as the padded batches of a loader do."""


class Clip(NamedTuple):
    """A sample to decode."""

    row: SampleRow
    data: Payload


def measure_codecs(seconds: float) -> Measured:
    """Decodes utterances made here, in each codec that shardpipe writes, which share the seconds."""
    rng = np.random.default_rng(0)
    voices = [_voice(rng) for _ in range(4)]
    clips = [_built_in(codec, voice) for codec in _BUILT_IN_CODECS for voice in voices]
    found = Measured(read=Counter(clip.row.codec for clip in clips))
    decode_clips(found, clips, seconds, Form())
    return found


def _built_in(codec: str, voice: Any) -> Clip:
    data = encode(voice, _BUILT_IN_RATE, codec)
    row = SampleRow(
        shard=0,
        place=0,
        shard_name="",
        audio_offset=0,
        audio_size=len(data),
        crc32=0,
        frames=len(voice),
        sample_rate=_BUILT_IN_RATE,
        channels=1,
        key="built in",
        codec=codec,
        text="",
        extras=None,
    )
    return Clip(row, data)


def _voice(rng: np.random.Generator) -> Any:
    """A buzz whose pitch and loudness move as those of speech do, with pauses and a little noise: float64 [frames]."""
    times = np.arange(BUILT_IN_SECONDS * _BUILT_IN_RATE) / _BUILT_IN_RATE
    pitch = 120 + 60 * rng.random() + 25 * np.sin(2 * np.pi * 0.7 * times + 6 * rng.random())
    phase = 2 * np.pi * np.cumsum(pitch) / _BUILT_IN_RATE
    buzz = sum(np.sin(n * phase + 6 * rng.random()) / n for n in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 2 * times + 6 * rng.random()) + 0.4 * rng.random(), 0, 1)
    return np.clip(0.2 * syllables * buzz + rng.normal(0, 0.003, len(times)), -0.99, 0.99)


def decode_clips(found: Measured, clips: list[Clip], seconds: float, form: Form) -> None:
    """Decodes the clips of each codec in turn, over and over, as a loader does into padded batches. The codecs share
    the seconds.
    """
    codecs = sorted({clip.row.codec for clip in clips})
    for codec in codecs:
        waiting = deque(clip for clip in clips if clip.row.codec == codec)
        room = np.ones(_BEYOND_CACHES // 4, np.float32)  # memory for zeros would come as they are overwritten
        samples, frames, at, audio_seconds, elapsed = 0, 0, 0, 0.0, 0.0
        begun = perf_counter()
        while waiting and elapsed < seconds / len(codecs):
            row, data = clip = waiting.popleft()
            length = form.frames(row)
            at = at if at + length <= len(room) else 0
            try:
                form.decode(row, data, room[at : at + length] if length <= len(room) else np.empty(length, np.float32))
            except MemoryError:
                what, fix = f"there is no memory for its {row.frames:,} frames", "Leave it out (max_seconds)."
                found.bad.append(AudioError(what, key=row.key, codec=codec, where=row.shard_name, fix=fix))
                continue
            except ShardpipeError as error:
                found.bad.append(error)
                continue
            waiting.append(clip)
            at += length
            samples += 1
            frames += length
            audio_seconds += row.frames / row.sample_rate
            elapsed = perf_counter() - begun
        if samples:
            found.decoding[codec] = Rate(samples=samples, audio_seconds=audio_seconds, size=4 * frames, elapsed=elapsed)
