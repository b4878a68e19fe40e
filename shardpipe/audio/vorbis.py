"""Ogg Vorbis by stb_vorbis, in seven tenths of libsndfile's time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import miniaudio
import numpy as np

from shardpipe.audio.common import TORN, AudioInfo, Bytes, Samples, bounded, filled, info_of
from shardpipe.audio.ogg import pages_of
from shardpipe.errors import AudioError

__all__ = ["decode_vorbis", "probe_vorbis"]

_ffi: Any = miniaudio.ffi
_lib: Any = miniaudio.lib


@contextmanager
def _opened_vorbis(data: Bytes) -> Iterator[tuple[Any, AudioInfo]]:
    pages_of(data, "ogg")
    error = _ffi.new("int *")
    vorbis = _lib.stb_vorbis_open_memory(_ffi.from_buffer("unsigned char[]", data), len(data), error, _ffi.NULL)
    if not vorbis:
        raise AudioError(f"the headers cannot be read (stb_vorbis error {error[0]})", codec="ogg", fix=TORN)
    try:
        frames = _lib.stb_vorbis_stream_length_in_samples(vorbis)
        facts = _lib.stb_vorbis_get_info(vorbis)
        yield vorbis, info_of("ogg", data, frames, facts.sample_rate, facts.channels)
    finally:
        _lib.stb_vorbis_close(vorbis)


def probe_vorbis(data: Bytes) -> AudioInfo:
    with _opened_vorbis(data) as (_, info):
        return info


def decode_vorbis(data: Bytes) -> Samples:
    with _opened_vorbis(data) as (vorbis, info):
        return bounded("ogg", filled(info, np.float32, lambda out: _read_vorbis(vorbis, out)))


def _read_vorbis(vorbis: Any, out: Samples) -> int:
    pointer = _ffi.from_buffer("float[]", out, require_writable=True)
    return int(_lib.stb_vorbis_get_samples_float_interleaved(vorbis, out.shape[1], pointer, out.size))
