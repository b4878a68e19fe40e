"""Ogg Vorbis by stb_vorbis, in seven tenths of libsndfile's time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import miniaudio
import numpy as np

from shardpipe.audio.common import TORN, AudioInfo, Bytes, Samples, bounded, filled, info_of
from shardpipe.audio.ogg import packets_of, pages_of
from shardpipe.errors import AudioError

__all__ = ["decode_vorbis", "probe_vorbis"]

_ffi: Any = miniaudio.ffi
_lib: Any = miniaudio.lib


@contextmanager
def _opened_vorbis(data: Bytes) -> Iterator[tuple[Any, AudioInfo]]:
    _check_comments(bytes(data))
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


def _check_comments(data: bytes) -> None:
    """Raises AudioError unless the second header is what it should be: one that is not may crash stb_vorbis. Vorbis I
    specification, section 5.2.1.
    """
    packets: list[bytes] = []
    for _, ended in packets_of(data, pages_of(data, "ogg")):
        packets += ended
        if len(packets) > 2:
            break
    header = packets[1] if len(packets) > 2 else b""

    def number(at: int) -> int:
        return int.from_bytes(header[at : at + 4], "little")

    at = 11 + number(7)  # behind the vendor
    count, at = number(at), at + 4
    for _ in range(min(count, len(header))):
        at += 4 + number(at)
    if header[:7] != b"\x03vorbis" or at >= len(header):
        raise AudioError("the headers cannot be read", codec="ogg", fix=TORN)


def probe_vorbis(data: Bytes) -> AudioInfo:
    with _opened_vorbis(data) as (_, info):
        return info


def decode_vorbis(data: Bytes) -> Samples:
    with _opened_vorbis(data) as (vorbis, info):
        return bounded("ogg", filled(info, np.float32, lambda out: _read_vorbis(vorbis, out)))


def _read_vorbis(vorbis: Any, out: Samples) -> int:
    pointer = _ffi.from_buffer("float[]", out, require_writable=True)
    return int(_lib.stb_vorbis_get_samples_float_interleaved(vorbis, out.shape[1], pointer, out.size))
