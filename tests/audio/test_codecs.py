"""Every codec gives exactly the frames it promises, the reference decoder's samples, or an AudioError."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardpipe.audio import (
    FLAC_LEVEL,
    AudioInfo,
    decode,
    decode_into,
    detect,
    encode,
    probe,
    to_int16,
    to_mono,
)
from shardpipe.audio.ogg import seal_ogg
from shardpipe.errors import AudioError
from tests.audio.decoding import frames_of, reference
from tests.speech import make_audio, make_bytes, make_flac, make_mp3, make_opus, make_wav

CODECS = ["wav", "flac", "mp3", "ogg", "opus"]
# How far a decoder may be from libsndfile: lossless not at all, dr_mp3 by its rounding to 16 bits, the others by that
# of floats.
TOLERANCE = {"wav": 0, "flac": 0, "mp3": 2**-14, "ogg": 1e-6, "opus": 1e-6}
NO_SUCH = ("opus", 44100)
LENGTHS = [1, 2, 63, 64, 319, 320, 321, 575, 576, 577, 960, 1151, 1152, 1153, 2048, 4096, 4097, 16001]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("codec", "rate"),
    [(codec, rate) for codec in CODECS for rate in (8000, 16000, 24000, 44100, 48000) if (codec, rate) != NO_SUCH],
)
def test_probe_and_decode_agree_with_what_was_encoded(codec: str, rate: int, channels: int) -> None:
    for frames in LENGTHS:
        data = make_bytes(codec, frames, rate=rate, channels=channels, seed=frames)
        assert probe(data) == AudioInfo(codec=codec, frames=frames, sample_rate=rate, channels=channels)
        audio = decode(data, codec)
        assert audio.shape == (frames, channels)
        assert np.abs(audio - reference(data)).max() <= TOLERANCE[codec]


@pytest.mark.parametrize("codec", CODECS)
def test_arrays_are_new_contiguous_and_of_the_wanted_type(codec: str) -> None:
    data = make_bytes(codec, 5000, channels=2)
    floats, integers = decode(data, codec), decode(data, codec, "int16")
    assert (floats.dtype, integers.dtype) == (np.float32, np.int16)
    assert np.array_equal(integers, to_int16(floats))
    for audio in (floats, integers):
        assert audio.flags.c_contiguous
        assert audio.flags.writeable
    assert np.array_equal(decode(memoryview(data), codec), floats)


def test_dtype_is_checked() -> None:
    with pytest.raises(ValueError, match="float64"):
        decode(make_wav(10), "wav", "float64")


@pytest.mark.parametrize("codec", CODECS)
def test_threads_decode_as_one_does(codec: str) -> None:
    files = [make_bytes(codec, 3000 + 100 * i, seed=i) for i in range(16)]
    alone = [decode(data, codec) for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: decode(data, codec), files))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("codec", "subtype"), [*((codec, "") for codec in CODECS), ("flac", "PCM_24"), ("wav", "PCM_U8"), ("wav", "FLOAT")]
)
def test_decoding_into_an_array_is_decoding(codec: str, subtype: str, channels: int, dtype: str) -> None:
    data = make_bytes(codec, 5000, channels=channels, subtype=subtype)
    wanted = to_mono(decode(data, codec, dtype))
    padded = np.full(len(wanted) + 2, 7, dtype)
    decode_into(data, codec, padded[1:-1])
    assert np.array_equal(padded[1:-1], wanted)
    assert (padded[0], padded[-1]) == (7, 7), "nothing beside it is touched"
    for length in (len(wanted) - 1, len(wanted) + 1):
        with pytest.raises(AudioError, match=f"{len(wanted)} frames decoded, {length} expected"):
            decode_into(data, codec, np.empty(length, dtype))
    with pytest.raises(AudioError):
        decode_into(data[: len(data) // 2], codec, np.empty(len(wanted), dtype))


@pytest.mark.parametrize("frames", [1, 4095, 4096, 4097, 20000])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_24"])
def test_flac_of_other_widths(subtype: str, frames: int) -> None:
    data = make_flac(frames, subtype=subtype, channels=2)
    assert np.array_equal(decode(data, "flac"), reference(data))
    assert frames_of(data) == frames


def test_flac_of_unknown_length_is_counted() -> None:
    data = bytearray(make_flac(10000, channels=2))
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples
    data[22:26] = bytes(4)
    assert frames_of(bytes(data)) == 10000
    assert np.array_equal(decode(bytes(data), "flac"), decode(make_flac(10000, channels=2), "flac"))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_flac_that_holds_more_than_it_promises(channels: int, dtype: str) -> None:
    data = bytearray(make_flac(4500, channels=channels))
    data[24:26] = (3500).to_bytes(2, "big")
    assert probe(bytes(data)).frames == 3500
    for function in (
        lambda: decode(bytes(data), "flac", dtype),
        lambda: decode_into(bytes(data), "flac", np.empty(3500, dtype)),
    ):
        with pytest.raises(AudioError, match="promises 3500 frames and more can be decoded"):
            function()


def test_flac_that_promises_the_impossible() -> None:
    data = bytearray(make_flac(1000))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    for function in (probe, lambda data: decode(data, "flac")):
        with pytest.raises(AudioError, match="promises 68719476735 frames"):
            function(bytes(data))


@pytest.mark.parametrize(
    ("stated", "delivered"), [(8000, 8000), (16000, 16000), (22050, 24000), (44100, 48000), (0, 48000)]
)
def test_opus_comes_at_the_lowest_rate_that_holds_the_stated_one(stated: int, delivered: int) -> None:
    data = bytearray(make_opus(48000, rate=48000))
    at = data.index(b"OpusHead")
    data[at + 12 : at + 16] = struct.pack("<I", stated)
    info = probe(seal_ogg(bytes(data), 1))
    assert (info.sample_rate, info.frames) == (delivered, delivered)
    assert frames_of(seal_ogg(bytes(data), 1)) == delivered


@pytest.mark.parametrize("codec", CODECS)
def test_codec_by_content(codec: str) -> None:
    assert detect(make_bytes(codec, 100)) == codec


@pytest.mark.parametrize("codec", ["flac", "mp3"])
def test_id3_tags_before_the_audio(codec: str) -> None:
    data = make_bytes(codec, 5000)
    tagged = b"ID3\x04\x00\x00\x00\x00\x02\x01" + bytes(257) + data
    assert detect(tagged) == codec
    assert np.array_equal(decode(tagged, codec), decode(data, codec))


@pytest.mark.parametrize(
    "data",
    [b"", b"RIFF", b"RIFF1234AVI ", b"fLa", b"OggS" + bytes(60), b"\xff\xf1\x50\x80" * 9, b"<html>", bytes(5000)],
)
def test_what_is_no_audio(data: bytes) -> None:
    with pytest.raises(AudioError, match="is empty" if not data else "these are no WAV"):
        probe(data)


def test_bytes_of_another_codec_than_the_index_says() -> None:
    with pytest.raises(AudioError, match="the bytes are flac, not wav"):
        decode(make_flac(10), "wav")


@pytest.mark.parametrize("codec", CODECS)
def test_no_frames_is_an_error(codec: str) -> None:
    data = make_bytes(codec, 0)
    for function in (probe, lambda data: decode(data, codec)):
        with pytest.raises(AudioError):
            function(data)


@pytest.mark.parametrize("codec", ["wav", "flac", "ogg", "opus"])
def test_cut_anywhere_is_an_error(codec: str) -> None:
    data = make_bytes(codec, 6000)
    places = {*range(0, len(data), 97), *range(60), *range(len(data) - 60, len(data))}
    for place in sorted(places):
        with pytest.raises(AudioError):
            decode(data[:place], codec)


def test_a_cut_mp3_loses_two_frames_at_most_before_it_is_an_error() -> None:
    data = make_mp3(48000)
    outcomes = []
    for place in range(0, len(data), 97):
        try:
            outcomes.append(frames_of(data[:place]))
        except AudioError:
            outcomes.append(0)
    assert outcomes.count(0) > len(outcomes) / 2
    assert all(frames == 0 or frames >= 48000 - 2 * 1152 for frames in outcomes)


DAMAGED = {codec: make_bytes(codec, 9000, channels=2) for codec in CODECS}
WHOLE = {codec: decode(data, codec) for codec, data in DAMAGED.items()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(codec=st.sampled_from(CODECS), place=st.floats(0, 1, exclude_max=True), damage=st.binary(min_size=1, max_size=8))
@example(codec="flac", place=0.5, damage=b"\0")
@example(codec="ogg", place=0.9, damage=b"\0")
def test_damage_is_an_error_or_what_probe_says(codec: str, place: float, damage: bytes) -> None:
    data = bytearray(DAMAGED[codec])
    at = int(place * len(data))
    data[at : at + len(damage)] = damage
    try:
        info, audio = probe(bytes(data)), decode(bytes(data), codec)
    except AudioError:
        return
    assert audio.shape == (info.frames, info.channels)
    assert audio.dtype == np.float32
    assert np.abs(audio).max() <= 1
    if codec in ("ogg", "opus"):
        assert np.array_equal(audio, WHOLE[codec])


def test_a_flipped_bit_in_flac_samples_is_found() -> None:
    data = make_flac(20000)
    for at in range(200, len(data), 503):
        flipped = bytearray(data)
        flipped[at] ^= 1
        with pytest.raises(AudioError, match="cut or damaged"):
            decode(bytes(flipped), "flac")


def pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


@pytest.mark.parametrize("codec", ["ogg", "opus"])
def test_ogg_pages_must_be_all_there(codec: str) -> None:
    data = make_bytes(codec, 150_000)
    parts = pages(data)
    assert len(parts) > 4
    for torn, match in [
        (parts[:-1], "its last page is missing"),
        ([*parts[:3], *parts[4:]], "an Ogg page is missing before"),
        ([*parts, *pages(make_bytes(codec, 100, seed=5))], "more than one stream"),
        ([*parts, b"more"], "is cut or damaged"),
    ]:
        with pytest.raises(AudioError, match=match):
            decode(b"".join(torn), codec)
    at = data.index(parts[3]) + 200
    with pytest.raises(AudioError, match=f"page at byte {data.index(parts[3])} has a wrong CRC"):
        decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], codec)


@pytest.mark.parametrize("value", [0, 1 << 20, 0xFFFFFFFF])
def test_vorbis_comments_that_are_not_all_there(value: int) -> None:
    """stb_vorbis has been seen to crash on them."""
    data = bytearray(make_bytes("ogg", 6000))
    at = data.index(b"\x03vorbis") + 7
    struct.pack_into("<I", data, at, value)
    with pytest.raises(AudioError, match="the headers cannot be read"):
        decode(seal_ogg(bytes(data), 1), "ogg")


# FLAC's frame header has no room for a rate above 65535 Hz that is not a multiple of 10.
RATES = st.integers(1, 65535) | st.sampled_from([88200, 96000, 176400, 192000])


@pytest.mark.parametrize("codec", ["wav", "flac"])
@settings(max_examples=40, deadline=None)
@given(audio=hnp.arrays(np.int16, st.tuples(st.integers(1, 300), st.integers(1, 3))), rate=RATES)
def test_lossless_codecs_give_back_what_they_got(codec: str, audio: np.ndarray, rate: int) -> None:
    data = encode(audio, rate, codec)
    assert probe(data) == AudioInfo(codec=codec, frames=len(audio), sample_rate=rate, channels=audio.shape[1])
    assert np.array_equal(decode(data, codec, "int16"), audio)


def test_opus_sounds_alike() -> None:
    audio = make_audio(16000)
    data = encode(audio, 16000, "opus")
    assert probe(data) == AudioInfo(codec="opus", frames=16000, sample_rate=16000, channels=1)
    assert np.corrcoef(decode(data, "opus")[:, 0], audio[:, 0])[0, 1] > 0.95


@pytest.mark.parametrize("codec", ["wav", "flac", "opus"])
def test_equal_input_gives_equal_bytes(codec: str) -> None:
    audio = make_audio(4000)
    assert encode(audio, 16000, codec) == encode(audio.copy(), 16000, codec)
    assert encode(audio[:, 0], 16000, codec) == encode(audio, 16000, codec)
    assert encode(to_int16(audio), 16000, codec) == encode(audio, 16000, codec)


def test_files_of_different_audio_may_be_chained() -> None:
    """Ogg streams of one physical file need different serial numbers."""
    first, second = (encode(make_audio(4000, seed=seed), 16000, "opus") for seed in (1, 2))
    assert first[14:18] != second[14:18]


def test_flac_levels() -> None:
    audio = make_audio(48000)
    files = [encode(audio, 16000, "flac", flac_level=level) for level in range(9)]
    usual = io.BytesIO()
    soundfile.write(usual, audio, 16000, format="FLAC", subtype="PCM_16")
    assert files[5] == usual.getvalue(), "as version 0.1 wrote it"
    assert encode(audio, 16000, "flac") == files[FLAC_LEVEL]
    assert all(np.array_equal(decode(data, "flac", "int16"), to_int16(audio)) for data in files)
    assert len(files[0]) > len(files[8])


def test_what_cannot_be_encoded() -> None:
    audio = make_audio(100)
    with pytest.raises(AudioError, match="Opus cannot hold audio at 44100 Hz"):
        encode(audio, 44100, "opus")
    with pytest.raises(AudioError, match="cannot write 1 channels at 65537 Hz"):
        encode(audio, 65537, "flac")
    with pytest.raises(AudioError, match="no samples"):
        encode(audio[:0], 16000, "flac")
    with pytest.raises(AudioError, match="cannot write 9 channels"):
        encode(np.zeros((100, 9), np.int16), 16000, "flac")
    with pytest.raises(AudioError, match="do not fit its header"):
        encode(np.zeros((1, 1), np.int16), 1 << 32, "wav")
    with pytest.raises(ValueError, match="for reading only"):
        encode(audio, 16000, "mp3")
