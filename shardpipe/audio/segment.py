"""A stretch of a long recording, without decoding all of it where the codec allows that."""

from __future__ import annotations

import math

import numpy as np
import soundfile

from shardpipe.audio.codecs import detect
from shardpipe.audio.common import TORN, Samples
from shardpipe.audio.samples import to_int16
from shardpipe.errors import AudioError

__all__ = ["read_segment", "span"]

# Lists round times to 10 ms; what a segment overshoots the end of its recording by less than that is rounding.
_LEEWAY_SECONDS = 0.01
_EXACT = {"PCM_S8", "PCM_U8", "PCM_16"}
"""What libsndfile gives as int16 unchanged."""


def span(start: float, end: float | None, sample_rate: int, frames: int) -> tuple[int, int]:
    """First frame and the one after the last of a segment given in seconds; `end` None is the recording's end.

    Raises AudioError if it is empty or lies outside, by more than the 10 ms to which lists round.
    """
    first = round(start * sample_rate)
    last = frames if end is None else round(end * sample_rate)
    if last > frames + math.ceil(_LEEWAY_SECONDS * sample_rate) or first >= min(last, frames):
        shown = "its end" if end is None else f"{end:g} s"
        raise AudioError(
            f"the segment from {start:g} s to {shown} is not in the recording, which has {frames / sample_rate:.3f} s",
            fix="Correct its times in the list.",
        )
    return first, min(last, frames)


def read_segment(path: str, start: float, end: float | None) -> tuple[Samples, int, str] | None:
    """int16 [frames, channels], the sample rate and the codec of a stretch of a WAV or FLAC file.

    None for other codecs, whose frames cannot be found without those before them. Raises AudioError, and OSError if the
    file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        if (codec := detect(file.read(64))) not in ("wav", "flac"):
            return None
        file.seek(0)
        try:
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                first, last = span(start, end, sound.samplerate, sound.frames)
                sound.seek(first)
                dtype = "int16" if sound.subtype in _EXACT else "float32"
                audio = np.asarray(sound.read(last - first, dtype, always_2d=True))
                rate = sound.samplerate
        except soundfile.LibsndfileError as error:
            raise AudioError(f"libsndfile cannot decode it ({error.error_string})", codec=codec, fix=TORN) from error
    if len(audio) != last - first:
        raise AudioError(f"only {len(audio)} of {last - first} frames can be decoded", codec=codec, fix=TORN)
    return to_int16(audio), rate, codec
