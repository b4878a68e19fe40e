"""Small seeded audio and lists for tests: the same arguments give the same bytes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from shardpipe.audio.ogg import seal_ogg
from shardpipe.pack import PackOptions, pack

__all__ = [
    "make_audio",
    "make_bytes",
    "make_flac",
    "make_mp3",
    "make_ogg",
    "make_opus",
    "make_wav",
    "pack_speech",
    "write_list",
]

_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "yes", "no", "left", "right", "up", "down", "stop"]
_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


def make_audio(frames: int, *, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A voice-like buzz with a moving pitch, a slow envelope and a little noise: float32 [frames, channels]."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(frames) / rate
    pitch = 110 + 60 * rng.random() + 20 * np.sin(2 * np.pi * (1 + rng.random()) * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(phase * h + rng.random() * 6) / h for h in range(1, 9))
    envelope = 0.25 * (1 + np.sin(2 * np.pi * 3 * seconds + rng.random() * 6))
    audio = (0.4 * envelope * voice)[:, None] + rng.normal(0, 0.003, (frames, channels))
    return np.clip(audio, -0.99, 0.99).astype(np.float32)


def make_bytes(
    codec: str, frames: int, *, rate: int = 16000, channels: int = 1, seed: int = 0, subtype: str = ""
) -> bytes:
    """An encoded file of `frames` frames; `codec` is wav, flac, mp3, ogg or opus."""
    container, default = _FORMATS[codec]
    file = io.BytesIO()
    audio = make_audio(frames, rate=rate, channels=channels, seed=seed)
    soundfile.write(file, audio, rate, format=container, subtype=subtype or default)
    return seal_ogg(file.getvalue(), seed) if container == "OGG" else file.getvalue()


def make_wav(frames: int, **options: Any) -> bytes:
    return make_bytes("wav", frames, **options)


def make_flac(frames: int, **options: Any) -> bytes:
    return make_bytes("flac", frames, **options)


def make_mp3(frames: int, **options: Any) -> bytes:
    return make_bytes("mp3", frames, **options)


def make_ogg(frames: int, **options: Any) -> bytes:
    return make_bytes("ogg", frames, **options)


def make_opus(frames: int, **options: Any) -> bytes:
    return make_bytes("opus", frames, **options)


def write_list(
    folder: str | Path,
    n: int,
    *,
    seed: int = 0,
    codecs: tuple[str, ...] = ("wav", "flac"),
    rate: int = 16000,
    seconds: tuple[float, float] = (0.1, 0.6),
) -> Path:
    """Writes `n` files (codecs in turn, lengths uniform in `seconds`) and their data.list; returns the list's path.

    Keys are utt00000, utt00001, ...; paths are relative to the folder; every third line has extra fields.
    """
    folder = Path(folder)
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n):
        codec = codecs[i % len(codecs)]
        frames = int(rng.uniform(*seconds) * rate)
        name = f"utt{i:05d}.{codec}"
        (audio / name).write_bytes(make_bytes(codec, frames, rate=rate, seed=seed * 1_000_003 + i))
        words = rng.choice(_WORDS, size=1 + frames * 3 // rate)
        fields: dict[str, Any] = {"key": f"utt{i:05d}", "wav": f"audio/{name}", "txt": " ".join(words)}
        if i % 3 == 0:
            fields |= {"speaker": f"spk{i % 5}", "lang": "en"}
        lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
    path = folder / "data.list"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def pack_speech(folder: str | Path, n: int, *, shard_samples: int = 16, **options: Any) -> Path:
    """Packs what `write_list` makes of `n` and `options`; returns the dataset's folder."""
    out = Path(folder) / "packed"
    pack(write_list(folder, n, **options), out, options=PackOptions(shard_samples=shard_samples, relative=True))
    return out
