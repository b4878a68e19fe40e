"""libsndfile, for what nothing faster reads, and for writing FLAC and Opus."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import soundfile

from shardpipe.audio.common import TORN, AudioInfo, Bytes, Samples, bounded, filled, info_of
from shardpipe.errors import AudioError

__all__ = ["decode_sndfile", "encode_sndfile", "probe_sndfile"]


def _scratch_file() -> BinaryIO:
    """A file for libsndfile, in memory where the system can: given a Python object it would call back for every read
    and write, and threads would wait for each other.
    """
    return open(os.memfd_create("audio"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


@contextmanager
def _opened_sndfile(codec: str, data: Bytes) -> Iterator[tuple[Any, AudioInfo]]:
    with _scratch_file() as file:
        file.write(data)
        file.seek(0)
        try:
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                yield sound, info_of(codec, data, sound.frames, sound.samplerate, sound.channels)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"libsndfile cannot decode it ({error.error_string})", codec=codec, fix=TORN) from error


def probe_sndfile(codec: str, data: Bytes) -> AudioInfo:
    with _opened_sndfile(codec, data) as (_, info):
        return info


def decode_sndfile(codec: str, data: Bytes) -> Samples:
    with _opened_sndfile(codec, data) as (sound, info):
        return bounded(codec, filled(info, np.float32, lambda out: len(sound.read(out=out))))


def encode_sndfile(
    audio: Samples, sample_rate: int, codec: str, container: str, subtype: str, *, compression: float | None = None
) -> bytes:
    """[frames, channels] as a file, compressed from 0 to 1. Raises AudioError if the codec cannot hold it."""
    with _scratch_file() as file:
        try:
            with soundfile.SoundFile(
                file.fileno(),
                "w",
                sample_rate,
                audio.shape[1],
                subtype,
                format=container,
                closefd=False,
                compression_level=compression,
            ) as sound:
                sound.write(audio)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"libsndfile cannot write {audio.shape[1]} channels at {sample_rate} Hz ({error.error_string})",
                codec=codec,
                fix="Choose another format, sample rate or number of channels.",
            ) from error
        file.seek(0)
        return file.read()
