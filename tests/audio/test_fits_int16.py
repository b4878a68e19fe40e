"""Which files int16 holds as they are, by what `decode` makes of them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.audio import decode, encode, fits_int16
from shardpipe.errors import AudioError
from tests.speech import make_audio, make_bytes

WAV_SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
KINDS = [
    *(("wav", container, subtype) for container in ("WAV", "WAVEX", "RF64") for subtype in WAV_SUBTYPES),
    *(("wav", "WAV", subtype) for subtype in ("IMA_ADPCM", "MS_ADPCM", "GSM610")),
    *(("flac", "FLAC", subtype) for subtype in ("PCM_S8", "PCM_16", "PCM_24")),
    *[("mp3", "MP3", "MPEG_LAYER_III"), ("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS")],
]
FITTING = {"PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW", "MPEG_LAYER_III"}


def is_exact(data: bytes, codec: str) -> bool:
    """To the bit, so that -0 is not 0."""
    floats, integers = decode(data, codec), decode(data, codec, "int16")
    return floats.tobytes() == (integers.astype(np.float32) / np.float32(32768)).tobytes()


@pytest.mark.parametrize(("codec", "container", "subtype"), KINDS)
def test_what_is_said_to_fit_is_exact(codec: str, container: str, subtype: str) -> None:
    for channels in (1,) if subtype == "GSM610" else (1, 2):
        file = io.BytesIO()
        soundfile.write(file, make_audio(4000, channels=channels), 16000, format=container, subtype=subtype)
        data = file.getvalue()
        fits = fits_int16(data, codec)
        assert fits == (subtype in FITTING)
        assert is_exact(data, codec) or not fits
        assert fits_int16(memoryview(data), codec) == fits


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_what_is_written_here_fits(codec: str) -> None:
    assert fits_int16(encode(make_audio(1000), 16000, codec), codec)


@pytest.mark.parametrize(("tag", "bits"), [(1, 8), (1, 16), (6, 8), (7, 8)])
def test_every_value_of_wav_that_fits_is_exact(tag: int, bits: int) -> None:
    values = np.arange(2**bits, dtype=f"<u{bits // 8}").tobytes()
    fmt = struct.pack("<HHIIHH", tag, 1, 16000, 2000 * bits, bits // 8, bits)
    chunks = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(values)) + values
    data = b"RIFF" + struct.pack("<I", len(chunks)) + chunks
    assert fits_int16(data, "wav")
    assert len(decode(data, "wav")) == 2**bits
    assert is_exact(data, "wav")


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF1234WAVE", b"fLaC", b"fLaC" + bytes(50), b"<html>", bytes(5000)])
@pytest.mark.parametrize("codec", ["wav", "flac", "mp3", "ogg", "opus", "aac"])
def test_what_cannot_be_read_does_not_fit(codec: str, data: bytes) -> None:
    assert not fits_int16(data, codec)


def test_bytes_of_another_codec_do_not_fit() -> None:
    assert not fits_int16(make_bytes("flac", 100), "wav")


WHOLE = [(codec, make_bytes(codec, 1000, channels=2)) for codec in ("wav", "flac", "mp3", "ogg", "opus")]
WHOLE += [
    (codec, make_bytes(codec, 1000, subtype=s)) for codec, s in [("wav", "ULAW"), ("wav", "PCM_24"), ("flac", "PCM_24")]
]


@given(
    whole=st.sampled_from(WHOLE),
    place=st.integers(0, 60),
    damage=st.binary(max_size=8),
    end=st.none() | st.integers(0, 100),
)
def test_damage_makes_no_error_and_nothing_fit_that_does_not(
    whole: tuple[str, bytes], place: int, damage: bytes, end: int | None
) -> None:
    codec, data = whole
    data = (data[:place] + damage + data[place + len(damage) :])[:end]
    if fits_int16(data, codec):
        try:
            assert is_exact(data, codec)
        except AudioError:
            return
