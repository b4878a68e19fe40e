"""WAV in its varieties: every number format, chunks in any place, headers that lie."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from shardpipe.audio import (
    AudioInfo,
    decode,
    encode,
    probe,
    to_int16,
)
from shardpipe.audio.wav import decode_wav
from shardpipe.errors import AudioError
from tests.audio.decoding import frames_of, reference
from tests.speech import make_audio, make_wav


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_wav_of_every_number_format(container: str, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, make_audio(1001, channels=3), 22050, format=container, subtype=subtype)
    data = file.getvalue()
    assert probe(data) == AudioInfo(codec="wav", frames=1001, sample_rate=22050, channels=3)
    assert np.array_equal(decode(data, "wav"), reference(data))
    assert np.array_equal(decode(data, "wav", "int16"), to_int16(reference(data)))


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_wav_of_compressed_formats_is_left_to_libsndfile(subtype: str) -> None:
    data = make_wav(8000, subtype=subtype)
    assert np.array_equal(decode(data, "wav"), reference(data))
    assert frames_of(data) >= 8000


def wav(*chunks: tuple[bytes, bytes], riff_size: int | None = None) -> bytes:
    body = b"WAVE"
    for name, payload in chunks:
        body += name + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


FMT = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
PCM = np.arange(100, dtype="<i2").tobytes()


def test_wav_chunks_around_the_samples_are_passed_over() -> None:
    data = wav((b"JUNK", b"odd"), (b"fmt ", FMT), (b"LIST", b"x" * 9), (b"data", PCM), (b"LIST", b"INFO"))
    assert decode(data, "wav", "int16")[:, 0].tolist() == list(range(100))


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
def test_wav_written_to_a_pipe_lasts_to_its_end(size: int) -> None:
    data = bytearray(wav((b"fmt ", FMT), (b"data", PCM)))
    data[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF))
    data[40:44] = struct.pack("<I", size)
    assert decode(bytes(data), "wav", "int16")[:, 0].tolist() == list(range(100))


def rf64(samples: bytes, *after: tuple[bytes, bytes]) -> bytes:
    """The sizes stand in ds64 and are 0xFFFFFFFF elsewhere (EBU Tech 3306)."""
    ds64 = struct.pack("<QQQI", 0, len(samples), len(samples) // 2, 0)
    data = bytearray(wav((b"ds64", ds64), (b"fmt ", FMT), (b"data", samples), *after))
    at = data.index(b"data") + 4
    data[:8] = b"RF64" + b"\xff" * 4
    data[at : at + 4] = b"\xff" * 4
    return bytes(data)


def test_rf64_ends_where_its_ds64_says() -> None:
    data = rf64(PCM, (b"LIST", b"INFO not samples"))
    assert decode(data, "wav", "int16")[:, 0].tolist() == list(range(100))
    with pytest.raises(AudioError, match="promises 200 bytes of samples and 190 are there"):
        decode(rf64(PCM)[:-10], "wav")


PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")


def extensible(guid: bytes) -> bytes:
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16000, 32000, 2, 16, 22, 16, 4) + guid
    return wav((b"fmt ", fmt), (b"data", PCM))


def test_extensible_wav_says_its_format_by_guid() -> None:
    samples = decode_wav(extensible(PCM_GUID))
    assert samples[:, 0].tolist() == list(range(100))
    assert samples.dtype == np.int16  # read by numpy; the slower libsndfile gives float32
    with pytest.raises(AudioError, match="libsndfile cannot decode"):
        decode_wav(extensible(PCM_GUID[:-1] + b"\0"))


def test_wav_without_samples_but_with_a_chunk_after_them_is_empty() -> None:
    with pytest.raises(AudioError, match="0 frames"):
        decode(wav((b"fmt ", FMT), (b"data", b""), (b"LIST", b"INFO")), "wav")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (wav((b"data", PCM)), "no fmt chunk"),
        (wav((b"fmt ", FMT)), "no data chunk"),
        (wav((b"fmt ", FMT), (b"data", PCM))[:-2], "promises 200 bytes of samples and 198 are there"),
        (wav((b"fmt ", FMT[:2] + bytes(14)), (b"data", PCM)), "0 channels at 0 Hz"),
        (wav((b"fmt ", b"\x99\x99" + FMT[2:]), (b"data", PCM)), "libsndfile cannot decode"),
    ],
)
def test_wav_with_a_fault(data: bytes, match: str) -> None:
    for function in (probe, lambda data: decode(data, "wav")):
        with pytest.raises(AudioError, match=match):
            function(data)


def float_wav(*values: float) -> bytes:
    fmt = struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)
    return wav((b"fmt ", fmt), (b"data", np.array(values, "<f4").tobytes()))


def test_float_samples_are_clipped_and_nonsense_is_refused() -> None:
    assert decode(float_wav(0.5, 1.5, -3), "wav")[:, 0].tolist() == [0.5, 1, -1]
    for nonsense in (float("nan"), float("inf"), 20000.0, -20000.0):
        with pytest.raises(AudioError, match="far outside"):
            decode(float_wav(0, nonsense, 0.1), "wav")


@pytest.mark.parametrize(("rate", "channels"), [(3 * 10**9, 1), (16000, 2000)])
def test_a_wav_header_that_promises_the_impossible(rate: int, channels: int) -> None:
    data = bytearray(encode(np.zeros((4000, 1), np.int16), 16000, "wav"))
    struct.pack_into("<HIIH", data, 22, channels, rate, rate % 2**32, 2 * channels)
    with pytest.raises(AudioError, match=f"the header gives {channels} channels at {rate} Hz"):
        probe(bytes(data))
