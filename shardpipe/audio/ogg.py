"""Ogg: its pages checked, Vorbis by stb_vorbis (seven tenths of libsndfile's time), Opus by libsndfile.

Opus is decoded at the lowest of its own rates (8, 12, 16, 24, 48 kHz) that is no lower than the rate the encoder was
given, as the header states it, so 16 kHz speech comes back at 16 kHz and 44.1 kHz as 48 kHz; where it states none, at
48 kHz.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import miniaudio
import numpy as np

from shardpipe.audio.common import CONVERT, TORN, AudioInfo, Bytes, Samples, bounded, filled, info_of
from shardpipe.audio.sndfile import decode_sndfile, probe_sndfile
from shardpipe.errors import AudioError

__all__ = ["decode_opus", "decode_vorbis", "probe_opus", "probe_vorbis", "seal_ogg"]

_ffi: Any = miniaudio.ffi
_lib: Any = miniaudio.lib

# Ogg's CRC-32 is zlib's with the bits of every byte and of the result the other way round, and nothing inverted.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _pages(data: Bytes, codec: str) -> Iterator[tuple[int, int]]:
    """Where each page begins and ends. RFC 3533, section 6."""
    begin = 0
    while begin < len(data):
        body = begin + 27 + (data[begin + 26] if begin + 27 <= len(data) else 0)
        end = body + sum(data[begin + 27 : body])
        if data[begin : begin + 4] != b"OggS" or begin + 27 > len(data) or end > len(data):
            raise AudioError(f"the Ogg page at byte {begin} is cut or damaged", codec=codec, fix=TORN)
        yield begin, end
        begin = end


def _page_crc(page: Bytes) -> bytes:
    """A page's checksum as its bytes 22 to 25 hold it."""
    turned = bytes(page).translate(_REVERSED)
    crc = zlib.crc32(turned[26:], zlib.crc32(bytes(4), zlib.crc32(turned[:22], 0xFFFFFFFF))) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED)


def _check_ogg(data: Bytes, codec: str) -> None:
    """Raises AudioError unless the pages are whole, in order, of one stream, and the last one says it is the last.

    The decoders would skip what is missing: stb_vorbis checks no CRC, and a stream cut between pages looks whole.
    """
    flags, serial, sequence = struct.unpack_from("<B8xII", data, 5)
    sequence -= 1
    for begin, end in _pages(data, codec):
        flags, this, number = struct.unpack_from("<B8xII", data, begin + 5)
        if data[begin + 22 : begin + 26] != _page_crc(data[begin:end]):
            raise AudioError(f"the Ogg page at byte {begin} has a wrong CRC", codec=codec, fix=TORN)
        if this != serial:
            raise AudioError("the Ogg file holds more than one stream", codec=codec, fix=CONVERT)
        if number != sequence + 1:
            raise AudioError(f"an Ogg page is missing before byte {begin}", codec=codec, fix=TORN)
        sequence = number
    if not flags & 4:
        raise AudioError("the Ogg stream is cut: its last page is missing", codec=codec, fix=TORN)


def seal_ogg(data: bytes, serial: int) -> bytes:
    """The same stream under another serial number: libsndfile draws it at random, and equal input is to be equal."""
    pages = []
    for begin, end in _pages(data, "ogg"):
        page = bytearray(data[begin:end])
        page[14:18] = serial.to_bytes(4, "little")
        page[22:26] = _page_crc(memoryview(page))
        pages.append(bytes(page))
    return b"".join(pages)


@contextmanager
def _opened_vorbis(data: Bytes) -> Iterator[tuple[Any, AudioInfo]]:
    _check_ogg(data, "ogg")
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


def probe_opus(data: Bytes) -> AudioInfo:
    return probe_sndfile("opus", _checked_opus(data))


def decode_opus(data: Bytes) -> Samples:
    return decode_sndfile("opus", _checked_opus(data))


def _checked_opus(data: Bytes) -> Bytes:
    """The stream, once it is seen to be whole; where its header states no rate (RFC 7845, section 5.1), 48 kHz.

    libsndfile would decode it at 8 kHz.
    """
    _check_ogg(data, "opus")
    if data[40:44] != bytes(4):
        return data
    return seal_ogg(b"".join([data[:40], (48000).to_bytes(4, "little"), data[44:]]), serial=0)
