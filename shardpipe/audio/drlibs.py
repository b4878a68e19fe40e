"""FLAC and MP3 by miniaudio: dr_flac takes three fifths of libsndfile's time, dr_mp3 five sixths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import PYFUNCTYPE, c_size_t, c_uint64, c_void_p
from dataclasses import replace
from typing import Any

import miniaudio
import numpy as np

from shardpipe.audio.common import TORN, AudioInfo, Bytes, Samples, filled, info_of, short
from shardpipe.errors import AudioError

__all__ = ["decode_flac", "decode_flac_into", "decode_mp3", "fits_int16_flac", "probe_flac", "probe_mp3"]

_ffi: Any = miniaudio.ffi
_lib: Any = miniaudio.lib


def _keeping(name: str, result: Any, *arguments: Any) -> Any:
    """A function of miniaudio's that keeps the GIL: to get it back takes up to 5 ms where a trainer is busy in Python,
    and these take microseconds.
    """
    function = _ffi.cast("uintptr_t", _ffi.addressof(_lib, name))
    return PYFUNCTYPE(result, *arguments)(int(function))


_open_flac = _keeping("ma_dr_flac_open_memory", c_void_p, c_void_p, c_size_t, c_void_p)
_close_flac = _keeping("ma_dr_flac_close", None, c_void_p)
_read_flac_float = _keeping("ma_dr_flac_read_pcm_frames_f32", c_uint64, c_void_p, c_uint64, c_void_p)


@contextmanager
def _opened_flac(data: Bytes) -> Iterator[Any]:
    held = _ffi.from_buffer(data)
    opened = _open_flac(_address(held), len(data), None)
    if not opened:
        raise AudioError("the header cannot be read", codec="flac", fix=TORN)
    try:
        yield _ffi.cast("ma_dr_flac *", opened)
    finally:
        _close_flac(opened)


def _address(pointer: Any) -> int:
    return int(_ffi.cast("uintptr_t", pointer))


def _flac_info(data: Bytes, flac: Any) -> AudioInfo:
    frames = flac.totalPCMFrameCount or _count_flac(flac)
    return info_of("flac", data, frames, flac.sampleRate, flac.channels)


def _count_flac(flac: Any) -> int:
    """Frames of a stream whose writer could not seek back to note them; leaves it at its beginning."""
    block = np.empty((flac.maxBlockSizeInPCMFrames, flac.channels), np.int16)
    frames = 0
    while got := _lib.ma_dr_flac_read_pcm_frames_s16(flac, len(block), _pointer(block)):
        frames += got
    _lib.ma_dr_flac_seek_to_pcm_frame(flac, 0)
    return frames


def probe_flac(data: Bytes) -> AudioInfo:
    with _opened_flac(data) as flac:
        return _flac_info(data, flac)


def fits_int16_flac(data: Bytes) -> bool:
    with _opened_flac(data) as flac:
        return _is_whole(flac)


def _is_whole(flac: Any) -> bool:
    """Whether its samples fit int16."""
    return bool(flac.bitsPerSample <= 16)


def decode_flac(data: Bytes) -> Samples:
    with _opened_flac(data) as flac:
        info = _flac_info(data, flac)
        whole = _is_whole(flac)
        # dr_flac leaves out a block whose CRC is wrong, so a flipped bit shows as too few frames.
        read = _lib.ma_dr_flac_read_pcm_frames_s16 if whole else _lib.ma_dr_flac_read_pcm_frames_f32
        return filled(info, np.int16 if whole else np.float32, lambda out: read(flac, len(out), _pointer(out)))


def decode_flac_into(data: Bytes, out: Samples) -> bool:
    """Puts mono samples straight into `out` [frames], if that has their number format and length; else False."""
    with _opened_flac(data) as flac:
        info = _flac_info(data, flac)
        if info.channels != 1 or info.frames != len(out) or (out.dtype == np.int16 and not _is_whole(flac)):
            return False
        floats = out.dtype == np.float32
        # Both divide by the same power of two, so neither way rounds.
        read = _lib.ma_dr_flac_read_pcm_frames_f32 if floats else _lib.ma_dr_flac_read_pcm_frames_s16
        got = read(flac, len(out), _pointer(out))
        more = np.empty(1, np.float32)
        got += _read_flac_float(_address(flac), 1, more.ctypes.data)  # more than promised is as wrong as less
    if got != info.frames:
        raise short("flac", info.frames, got)
    return True


def _pointer(out: Samples) -> Any:
    return _ffi.from_buffer("float[]" if out.dtype == np.float32 else "short[]", out, require_writable=True)


@contextmanager
def _opened_mp3(data: Bytes) -> Iterator[tuple[Any, AudioInfo]]:
    mp3 = _ffi.new("ma_dr_mp3 *")
    if not _lib.ma_dr_mp3_init_memory(mp3, _ffi.from_buffer(data), len(data), _ffi.NULL):
        raise AudioError("no MPEG audio frame can be found", codec="mp3", fix=TORN)
    try:
        # From the Xing or LAME header, less the encoder's delay and padding; else all frames are counted.
        frames = _lib.ma_dr_mp3_get_pcm_frame_count(mp3)
        yield mp3, info_of("mp3", data, frames, mp3.sampleRate, mp3.channels)
    finally:
        _lib.ma_dr_mp3_uninit(mp3)


# A file cut out of a longer one may refer to bits before its beginning: the decoder leaves such MPEG frames out.
_MP3_LEEWAY = 2 * 1152


def decode_mp3(data: Bytes) -> Samples:
    with _opened_mp3(data) as (mp3, info):
        out = np.empty((info.frames, info.channels), np.int16)
        got = _lib.ma_dr_mp3_read_pcm_frames_s16(mp3, len(out), _pointer(out))
    if got < max(1, info.frames - _MP3_LEEWAY):
        raise short("mp3", info.frames, got)
    return out[:got]


def probe_mp3(data: Bytes) -> AudioInfo:
    with _opened_mp3(data) as (_, info):
        return replace(info, frames=len(decode_mp3(data)))
