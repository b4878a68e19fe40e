"""WAV: numpy alone reads PCM and floating point; libsndfile reads the rest."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shardpipe.audio.common import TORN, AudioInfo, Bytes, Samples, bounded, info_of
from shardpipe.audio.samples import to_float32
from shardpipe.audio.sndfile import decode_sndfile, probe_sndfile
from shardpipe.errors import AudioError

__all__ = ["decode_wav", "decode_wav_into", "encode_wav", "fits_int16_wav", "probe_wav"]


class _Wav(NamedTuple):
    kind: tuple[int, int]
    """(format tag, bits), as in _PCM."""
    channels: int
    sample_rate: int
    block: int
    """Bytes of one frame."""
    begin: int
    end: int


_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
# Writers that cannot seek back leave 0, or as much as fits: 0xFFFFFFFF (FFmpeg), 0x7FFFF000 (SoX).
_PLACEHOLDER = 0x7FFFF000


def _parse_wav(data: Bytes) -> _Wav:
    """Walks the chunks up to `data`. RIFF: Multimedia Programming Interface and Data Specifications; RF64: EBU 3306."""
    head: list[int] = []
    tag = wide = 0
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"ds64" and position + 16 <= len(data):
            wide = struct.unpack_from("<Q", data, position + 8)[0]
        elif name == b"fmt " and position + 16 <= len(data):
            tag, *head = struct.unpack_from("<HHIIHH", data, position)
            if tag == 0xFFFE and data[position + 26 : position + 40] == _GUID_TAIL:
                tag = struct.unpack_from("<H", data, position + 24)[0]
        elif name == b"data" and head:
            channels, sample_rate, _, block, bits = head
            if min(channels, sample_rate, block) < 1:
                raise AudioError(
                    f"the header gives {channels} channels at {sample_rate} Hz, {block} bytes a frame",
                    codec="wav",
                    fix=TORN,
                )
            end = _data_end(data, position, wide if size == 0xFFFFFFFF and wide else size)
            return _Wav((tag, bits), channels, sample_rate, block, position, end)
        position += size + (size & 1)
    raise AudioError(f"there is no {'data' if head else 'fmt'} chunk", codec="wav", fix=TORN)


def _data_end(data: Bytes, begin: int, size: int) -> int:
    present = len(data) - begin
    if size <= present and (size or struct.unpack_from("<I", data, 4)[0] + 8 >= len(data)):
        return begin + size
    if size == 0 or size >= _PLACEHOLDER:
        return len(data)
    raise AudioError(f"the header promises {size} bytes of samples and {present} are there", codec="wav", fix=TORN)


def _pcm8(raw: memoryview) -> Samples:
    return (np.frombuffer(raw, np.uint8).astype(np.int16) - 128) << 8


def _pcm16(raw: memoryview) -> Samples:
    return np.frombuffer(raw, "<i2").astype(np.int16, copy=False)


def _pcm24(raw: memoryview) -> Samples:
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    return _pcm32(wide.data.cast("B"))


def _pcm32(raw: memoryview) -> Samples:
    return np.frombuffer(raw, "<i4").astype(np.float32) * np.float32(2**-31)


def _float(code: str) -> Callable[[memoryview], Samples]:
    return lambda raw: bounded("wav", np.frombuffer(raw, code).astype(np.float32))


_PCM: dict[tuple[int, int], Callable[[memoryview], Samples]] = {
    (1, 8): _pcm8,
    (1, 16): _pcm16,
    (1, 24): _pcm24,
    (1, 32): _pcm32,
    (3, 32): _float("<f4"),
    (3, 64): _float("<f8"),
}


# Of those of libsndfile's, A-law and mu-law (ITU-T G.711): their values are of 13 and 14 bits.
_FITS_INT16 = {(1, 8), (1, 16), (6, 8), (7, 8)}


def _is_packed(wav: _Wav) -> bool:
    """Whether nothing but samples, of whole bytes, is in a frame."""
    return wav.block * 8 == wav.channels * wav.kind[1]


def _is_plain(wav: _Wav) -> bool:
    return wav.kind in _PCM and _is_packed(wav)


def fits_int16_wav(data: Bytes) -> bool:
    wav = _parse_wav(data)
    return wav.kind in _FITS_INT16 and _is_packed(wav)


def probe_wav(data: Bytes) -> AudioInfo:
    wav = _parse_wav(data)
    if not _is_plain(wav):
        return probe_sndfile("wav", data)
    return info_of("wav", data, (wav.end - wav.begin) // wav.block, wav.sample_rate, wav.channels)


def decode_wav(data: Bytes) -> Samples:
    wav = _parse_wav(data)
    if not _is_plain(wav):
        return decode_sndfile("wav", data)
    info = info_of("wav", data, (wav.end - wav.begin) // wav.block, wav.sample_rate, wav.channels)
    raw = memoryview(data)[wav.begin : wav.begin + info.frames * wav.block]
    return _PCM[wav.kind](raw).reshape(info.frames, info.channels)


def decode_wav_into(data: Bytes, out: Samples) -> bool:
    """Puts mono 16-bit samples straight into `out` [frames], if they are that and as many; else False."""
    wav = _parse_wav(data)
    if wav.kind != (1, 16) or wav.block != 2 or wav.end - wav.begin != 2 * len(out):
        return False
    info_of("wav", data, len(out), wav.sample_rate, 1)
    samples = _pcm16(memoryview(data)[wav.begin : wav.end])
    if out.dtype == np.float32:
        to_float32(samples, out)
    else:
        out[:] = samples
    return True


def encode_wav(audio: Samples, sample_rate: int) -> bytes:
    """int16 [frames, channels] as a canonical 44-byte header and the samples. Raises AudioError if that cannot be."""
    frames, channels = audio.shape
    block, size = channels * 2, frames * channels * 2
    try:
        fmt = struct.pack("<IHHIIHH", 16, 1, channels, sample_rate, sample_rate * block, block, 16)
        head = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", size)
    except struct.error as error:
        raise AudioError(
            f"{frames} frames, {channels} channels at {sample_rate} Hz do not fit its header",
            codec="wav",
            fix="Cut it into shorter pieces, or choose FLAC.",
        ) from error
    return head + audio.astype("<i2", copy=False).tobytes()
