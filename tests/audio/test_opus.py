"""Opus: the samples of `opus_decode` and of opusfile, whoever wrote the file; what RFC 7845 says of its edges."""

from __future__ import annotations

import ctypes
import io
import struct
import sys
import types
from collections.abc import Callable
from ctypes.util import find_library
from typing import Any

import numpy as np
import pytest

from shardpipe.audio import decode, decoders, probe
from shardpipe.audio import libopus as finding
from shardpipe.audio import opus as module
from shardpipe.audio.libopus import SET_GAIN, libopus
from shardpipe.audio.ogg import seal_ogg
from shardpipe.errors import AudioError
from tests.audio.decoding import reference
from tests.audio.oggs import head, ogg_opus, packets_of_file
from tests.speech import make_audio, make_opus

av = pytest.importorskip("av")


def by_pyav(audio: np.ndarray, *, rate: int = 16000, layout: str = "mono", **options: str) -> bytes:
    """A file of int16 [frames, channels], as FFmpeg writes it."""
    file = io.BytesIO()
    with av.open(file, "w", format="opus") as container:
        stream = container.add_stream("libopus", rate=rate, layout=layout, options=options)
        interleaved = np.ascontiguousarray(audio).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def integers(frames: int, *, rate: int = 16000, channels: int = 1, loud: float = 1.0, seed: int = 0) -> np.ndarray:
    audio = make_audio(frames, rate=rate, channels=channels, seed=seed) * loud
    return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)


def by_opus_decode(data: bytes, rate: int) -> np.ndarray:
    """int16 [frames, channels] of all packets of a file of one stream, one at a time, by the library in use itself."""
    library = next(path for origin, path in finding._places() if origin == used().origin)
    lib: Any = ctypes.CDLL(library)
    lib.opus_decoder_create.restype = ctypes.c_void_p
    channels, gain = data[37], struct.unpack_from("<h", data, 44)[0]
    decoder = ctypes.c_void_p(lib.opus_decoder_create(rate, channels, None))
    lib.opus_decoder_ctl.argtypes = [ctypes.c_void_p, ctypes.c_int]
    assert lib.opus_decoder_ctl(decoder, SET_GAIN, ctypes.c_int(gain)) == 0
    found, out = [], np.empty((5760, channels), np.int16)
    for packet in packets_of_file(data):
        frames = lib.opus_decode(decoder, packet, len(packet), ctypes.c_void_p(out.ctypes.data), 5760, 0)
        assert frames > 0
        found.append(out[:frames].copy())
    lib.opus_decoder_destroy(decoder)
    return np.concatenate(found)


def used() -> finding.LibOpus:
    library = libopus()
    assert library is not None
    return library


NOISE = np.random.default_rng(0).normal(0, 3000, (30000, 1)).astype(np.int16)
PAUSE = np.concatenate([integers(16000), np.zeros((32000, 1), np.int16), integers(8000)])
WRITTEN: dict[str, Callable[[], bytes]] = {
    "one frame": lambda: make_opus(1),
    "short": lambda: make_opus(4000),
    "8 kHz": lambda: make_opus(30000, rate=8000),
    "24 kHz, stereo": lambda: make_opus(30000, rate=24000, channels=2),
    "48 kHz": lambda: make_opus(100_001, rate=48000),
    "PyAV": lambda: by_pyav(integers(50000)),
    "PyAV, short": lambda: by_pyav(integers(500)),
    "PyAV, stereo": lambda: by_pyav(integers(50001, channels=2, rate=48000), rate=48000, layout="stereo"),
    "music": lambda: by_pyav(NOISE, application="audio", b="256000"),
    "constant rate": lambda: by_pyav(integers(30000), vbr="off", b="16000"),
    "pauses left out": lambda: by_pyav(PAUSE, application="voip", b="12000", dtx="1"),
    "louder than full scale": lambda: by_pyav(integers(30000, loud=20)),
    **{f"frames of {ms} ms": lambda ms=ms: by_pyav(NOISE, frame_duration=ms) for ms in ("2.5", "5", "10", "40", "60")},
    **{f"packets of {ms} ms": lambda ms=ms: by_pyav(NOISE, frame_duration=ms) for ms in ("80", "100", "120")},
}


def with_header(data: bytes, *, pre_skip: int | None = None, gain: int | None = None, rate: int | None = None) -> bytes:
    changed = bytearray(data)
    for at, form, value in ((38, "<H", pre_skip), (40, "<I", rate), (44, "<h", gain)):
        if value is not None:
            struct.pack_into(form, changed, at, value)
    return seal_ogg(bytes(changed), 1)


ODD: dict[str, Callable[[], bytes]] = {
    "louder by its header": lambda: with_header(make_opus(30000), gain=12 * 256),
    "softer by its header": lambda: with_header(make_opus(30000), gain=-3000),
    "another pre-skip": lambda: with_header(make_opus(30000), pre_skip=3841),
    "no pre-skip": lambda: with_header(make_opus(30000), pre_skip=0),
}


@pytest.mark.parametrize("written", [*WRITTEN, *ODD])
def test_samples_are_those_of_opus_decode(written: str) -> None:
    data = {**WRITTEN, **ODD}[written]()
    info = probe(data)
    skipped = struct.unpack_from("<H", data, 38)[0] // (48000 // info.sample_rate)
    wanted = by_opus_decode(data, info.sample_rate)[skipped:]
    audio = decode(data, "opus", "int16")
    assert audio.shape == (info.frames, info.channels)
    assert np.array_equal(audio, wanted[: info.frames])
    assert len(wanted) - info.frames < 5760 // (48000 // info.sample_rate)


def test_what_is_louder_than_full_scale_is_clipped_softly() -> None:
    data = WRITTEN["louder than full scale"]()
    assert np.abs(reference(data)).max() > 1.01
    audio = decode(data, "opus")
    assert 0.99 < np.abs(audio).max() <= 1
    assert 0 < (np.abs(audio) == 1).mean() < (np.abs(reference(data)) >= 1).mean()


def opusfile() -> Any:
    name = "libopusfile.so.0" if sys.platform == "linux" else find_library("opusfile")
    try:
        return ctypes.CDLL(name or "libopusfile.so.0")
    except OSError:
        pytest.skip("this machine has no libopusfile")


@pytest.mark.parametrize("written", [*WRITTEN, *ODD])
def test_at_48_khz_within_one_step_of_opusfile(written: str) -> None:
    lib = opusfile()
    data = with_header({**WRITTEN, **ODD}[written](), rate=48000)
    lib.op_open_memory.restype = ctypes.c_void_p
    opened = ctypes.c_void_p(lib.op_open_memory(data, ctypes.c_size_t(len(data)), None))
    lib.op_set_dither_enabled(opened, 0)
    audio = decode(data, "opus", "int16")
    wanted = np.zeros((len(audio) + 5760, audio.shape[1]), np.int16)
    done = 0
    while frames := lib.op_read(opened, ctypes.c_void_p(wanted[done:].ctypes.data), wanted[done:].size, None):
        assert frames > 0
        done += frames
    lib.op_free(opened)
    assert done == len(audio)
    assert np.abs(audio.astype(int) - wanted[:done]).max() <= 1


def test_ambisonics() -> None:
    audio = integers(24000, rate=48000, channels=4)
    data = by_pyav(audio, rate=48000, layout="ambisonic 1", mapping_family="2")
    found = decode(data, "opus", "int16")
    assert found.shape == audio.shape
    assert np.abs(found - np.rint(reference(data) * 32768)).max() <= 1


@pytest.mark.parametrize(("layout", "options"), [("5.1", {"mapping_family": "1"}), ("5.1", {"mapping_family": "255"})])
def test_many_channels(layout: str, options: dict[str, str]) -> None:
    audio = integers(24000, rate=48000, channels=6)
    for channel in range(6):
        audio[:, channel] //= channel + 1
    data = by_pyav(audio, rate=48000, layout=layout, **options)
    found = decode(data, "opus", "int16")
    assert found.shape == (24000, 6)
    # Louder ones first, but for family 1, whose order of channels is that of Vorbis: L C R Ls Rs LFE.
    order = [0, 2, 1, 4, 5, 3] if options["mapping_family"] == "1" else range(6)
    for channel, source in enumerate(order):
        assert np.corrcoef(found[:, channel], audio[:, source])[0, 1] > 0.6, channel


PACKETS = packets_of_file(by_pyav(integers(16000)))
"""51 of 20 ms: 48,960 samples at 48 kHz, and 312 before them."""


@pytest.mark.parametrize(
    ("granules", "frames", "why"),
    [
        ([(24000, 25), (48960, 51)], 16216, "from 0 to the end"),
        ([(24000, 25), (48312, 51)], 16000, "ends early"),
        ([(124_000, 25), (148_312, 51)], 16000, "cut out of a longer stream"),
        ([(20000, 25), (44312, 51)], 16000, "begins before 0, as FFmpeg cuts"),
        ([(48312, 51)], 16000, "one page that ends early"),
        ([(60000, 51)], 16216, "one page, cut out of a longer stream"),
        ([(24000, 25), (48960, 51), (48312, 51)], 16000, "the end alone on a page"),
        ([(-1, 0), (24000, 25), (48311, 51)], 15999, "a page without an end, and a fraction at 16 kHz"),
    ],
)
def test_granule_positions(granules: list[tuple[int, int]], frames: int, why: str) -> None:
    assert len(PACKETS) == 51
    stops = [0, *(stop for _, stop in granules)]
    pages = [(granule, PACKETS[start:stop]) for start, (granule, stop) in zip(stops, granules)]
    data = ogg_opus(head(), pages)
    assert probe(data).frames == frames, why
    whole = decode(ogg_opus(head(), [(48960, PACKETS)]), "opus")
    assert np.array_equal(decode(data, "opus"), whole[:frames])


WHOLE_WITHOUT_TAGS = seal_ogg(ogg_opus(head(), [(48960, PACKETS)]).replace(b"OpusTags", b"OpusTugs"), 1)
SILENT = [(5760 * 200, [b"\x4b\x06"] * 200)]
"""120 ms in two bytes each."""


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (ogg_opus(head(), [(49000, PACKETS[:25]), (98000, PACKETS[25:])]), "promises 72688 frames and only 48648"),
        (ogg_opus(head(), [(300, PACKETS)]), "promises -4 frames"),
        (WHOLE_WITHOUT_TAGS, "the header cannot be read"),
        (
            ogg_opus(head(channels=200, family=255, tail=b"\x01\x00" + bytes(200)), SILENT),
            "promises 230400000 frames in 920 bytes",
        ),
        (ogg_opus(head(), [(48960, [*PACKETS[:50], b"\x4b"])]), "an Opus packet is damaged"),
        (ogg_opus(head(), [(48960, [*PACKETS[:50], b"\x4b\x00"])]), "an Opus packet is damaged"),
        (ogg_opus(head(), [(48960, [*PACKETS[:50], b"\x4b\x07" + bytes(9)])]), "an Opus packet is damaged"),
        (ogg_opus(head(), [(48960, [*PACKETS[:50], b"\x4a\xff"])]), "an Opus packet is damaged .libopus error -4"),
        (ogg_opus(head(), [(48960, [*PACKETS[:50], b"\x48" + bytes(1276)])]), "an Opus packet is damaged .libopus"),
        (ogg_opus(head(channels=3), [(48960, PACKETS)]), "3 channels of mapping family 0"),
        (ogg_opus(head(family=3), [(48960, PACKETS)]), "1 channels of mapping family 3"),
        (ogg_opus(head(family=1, tail=b"\x01\x00\x05"), [(48960, PACKETS)]), "the header cannot be read"),
        (ogg_opus(head()[:18], [(48960, PACKETS)]), "the header cannot be read"),
        (ogg_opus(head(), []), "0 frames"),
        (ogg_opus(head(), [(0, [])]), "0 frames"),
    ],
)
def test_damage_behind_sound_checksums_is_an_error(data: bytes, match: str) -> None:
    with pytest.raises(AudioError, match=match):
        decode(data, "opus")


WHOLE = ogg_opus(head(), [(24000, PACKETS[:25]), (48960, PACKETS[25:])])


def test_a_packet_whose_beginning_or_end_is_missing_is_none() -> None:
    """As libogg has it: streams are cut out of others between pages."""
    begun = bytearray(ogg_opus(head(), [(24000, [bytes(70), *PACKETS[:25]]), (48960, PACKETS[25:])]))
    third = [place for place in range(len(begun)) if begun[place : place + 4] == b"OggS"][2]
    begun[third + 5] |= 1
    unended = ogg_opus(head(), [(24000, PACKETS[:25]), (48960, [*PACKETS[25:], bytes(255)])])
    last = unended.rindex(b"OggS")
    count = unended[last + 26]
    end = last + 26 + count  # where its last size says 0
    unended = unended[: last + 26] + bytes([count - 1]) + unended[last + 27 : end] + unended[end + 1 :]
    for data in (seal_ogg(bytes(begun), 1), seal_ogg(unended, 1)):
        assert np.array_equal(decode(data, "opus"), decode(WHOLE, "opus"))


def test_empty_packets_hold_nothing() -> None:
    data = ogg_opus(head(), [(24000, [b"", *PACKETS[:25]]), (48960, [*PACKETS[25:], b""])])
    assert np.array_equal(decode(data, "opus"), decode(WHOLE, "opus"))


def test_the_first_page_flag_further_on_changes_nothing() -> None:
    flagged = bytearray(WHOLE)
    flagged[WHOLE.rindex(b"OggS") + 5] |= 2
    assert np.array_equal(decode(seal_ogg(bytes(flagged), 1), "opus"), decode(WHOLE, "opus"))


@pytest.mark.parametrize("written", [name for name in WRITTEN if name != "louder than full scale"])
def test_without_libopus_libsndfile_reads_it(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = WRITTEN[written]()
    fast = decode(data, "opus")
    monkeypatch.setattr(module, "libopus", lambda: None)
    slow = decode(data, "opus")
    assert slow.shape == fast.shape
    # Versions of libopus fill pauses that were left out each in its own way.
    assert np.abs(slow - fast).max() < (0.5 if written == "pauses left out" else 1e-5)


def test_what_libsndfile_cannot_read_asks_for_libopus(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ogg_opus(head(), [(60000, PACKETS)])
    assert len(decode(data, "opus")) == 16216
    monkeypatch.setattr(module, "libopus", lambda: None)
    with pytest.raises(AudioError, match="install that"):
        decode(data, "opus")


def test_libraries_that_cannot_be_loaded_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("no library", __file__), ("not it", ctypes.util.find_library("c") or "libc.so.6"), *finding._places()]
    monkeypatch.setattr(finding, "_places", lambda: iter(found[:2]))
    assert libopus.__wrapped__() is None
    monkeypatch.setattr(finding, "_places", lambda: iter(found))
    assert libopus.__wrapped__() == used() or libopus.__wrapped__().origin == used().origin


def test_what_stands_in_for_pyav_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", types.ModuleType("av"))
    assert all(origin != "PyAV's" for origin, _ in finding._places())


def test_decoders_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoders().keys() == {"wav", "flac", "mp3", "ogg", "opus"}
    assert decoders()["opus"] == f"libopus {used().version}, {used().origin}"
    monkeypatch.setattr("shardpipe.audio.codecs.libopus", lambda: None)
    assert decoders()["opus"].startswith("libsndfile")
