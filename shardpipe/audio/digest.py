"""What this machine makes of the clips in the package, in digests: equal versions do not give equal floats on every
processor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.resources import files

from shardpipe.audio.codecs import CODECS, decode
from shardpipe.audio.common import Samples
from shardpipe.audio.samples import resample
from shardpipe.errors import ShardpipeError

__all__ = ["digests"]

_RATES = ((16000, 8000), (16000, 44100), (48000, 16000))


@cache
def digests() -> dict[str, str]:
    """Of the samples that each of CODECS gives here, and of what `resample` makes of some: 16 hexadecimal digits by
    the codec's name and by "resample".

    Where they are equal, the decoders agree to the bit on some tenths of a second of speech, by each of their ways. A
    codec that cannot be decoded here is left out. Computed once a process, in some milliseconds.
    """
    # Read before anything is tried: a clip that is not there must not look like a codec that is not there.
    clips = {clip.name: clip.read_bytes() for clip in (files("shardpipe.audio") / "clips").iterdir()}
    made = {codec: _decoded(codec, clips) for codec in CODECS}
    made["resample"] = _resampled(clips["mono.wav"])
    found = {}
    for name, arrays in made.items():
        with suppress(ShardpipeError, ImportError, OSError):
            found[name] = _digest(arrays)
    return found


def _decoded(codec: str, clips: dict[str, bytes]) -> Iterator[Samples]:
    for name in sorted(clips):
        if name.endswith(f".{codec}"):
            yield decode(clips[name], codec, "float32")
            yield decode(clips[name], codec, "int16")


def _resampled(clip: bytes) -> Iterator[Samples]:
    samples = decode(clip, "wav")
    for rates in _RATES:
        yield resample(samples, *rates)


def _digest(arrays: Iterable[Samples]) -> str:
    sha256 = hashlib.sha256()
    for samples in arrays:
        sha256.update(f"{samples.dtype} {samples.shape} ".encode())
        sha256.update(samples.tobytes())
    return sha256.hexdigest()[:16]
