#!/usr/bin/env python3
"""Makes the clips that show how a machine decodes: a fifth of a second for each path through the decoders.

    python tools/make_audio_clips.py [--out shardpipe/audio/clips]

writes OUT/NAME.EXT as CLIPS lists them. The same numpy and libsndfile give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from shardpipe.audio.ogg import seal_ogg

__all__ = ["CLIPS", "Clip", "clip", "main", "voice"]


class Clip(NamedTuple):
    """The encoding; format, subtype and compression are libsndfile's."""

    rate: int
    channels: int
    format: str
    subtype: str
    compression: float | None = None


CLIPS = {
    "mono.wav": Clip(16000, 1, "WAV", "PCM_16"),
    "mono.flac": Clip(16000, 1, "FLAC", "PCM_16"),
    "stereo.flac": Clip(8000, 2, "FLAC", "PCM_24"),
    "mono.mp3": Clip(16000, 1, "MP3", "MPEG_LAYER_III"),  # MPEG-2, stereo is MPEG-1
    "stereo.mp3": Clip(44100, 2, "MP3", "MPEG_LAYER_III"),
    "mono.ogg": Clip(16000, 1, "OGG", "VORBIS"),
    "stereo.ogg": Clip(44100, 2, "OGG", "VORBIS"),
    "mono.opus": Clip(16000, 1, "OGG", "OPUS"),  # SILK
    "hybrid.opus": Clip(48000, 1, "OGG", "OPUS", 0.9),  # SILK below 8 kHz and CELT above, as few bits have it
    "stereo.opus": Clip(48000, 2, "OGG", "OPUS"),  # CELT
}


def voice(rate: int, channels: int) -> np.ndarray:
    """A hiss, a stop with its burst, and a buzz of gliding pitch, for codecs treat them differently: float64
    [frames, channels] in [-1, 1], with a little noise that the channels do not share.
    """
    rng = np.random.default_rng(7)
    seconds = np.arange(rate // 5) / rate
    phase = 2 * np.pi * np.cumsum(120 + 160 * seconds) / rate
    buzz = sum(np.sin(phase * h) / h for h in range(1, 25)) * np.clip((seconds - 0.1) / 0.01, 0, 1)
    hiss = rng.normal(0, 0.15, len(seconds)) * (seconds < 0.06)
    burst = rng.normal(0, 0.5, len(seconds)) * np.exp(-np.abs(seconds - 0.092) / 0.002) * (seconds > 0.09)
    noise = rng.normal(0, 0.003, (len(seconds), channels))
    return np.clip((0.3 * buzz + hiss + burst)[:, None] * np.linspace(1, 0.6, channels) + noise, -1, 1)


def clip(made: Clip) -> bytes:
    """The file."""
    file = io.BytesIO()
    soundfile.write(
        file,
        voice(made.rate, made.channels),
        made.rate,
        format=made.format,
        subtype=made.subtype,
        compression_level=made.compression,
    )
    return seal_ogg(file.getvalue(), serial=1) if made.format == "OGG" else file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "shardpipe" / "audio" / "clips")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: clip(made) for name, made in CLIPS.items()}
    for name, data in files.items():
        (options.out / name).write_bytes(data)
    print(f"{len(files)} clips, {sum(map(len, files.values())) / 1e3:.1f} kB, in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
