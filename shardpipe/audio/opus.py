"""Opus in Ogg (RFC 7845): by libopus, where there is one, at twice the speed of libsndfile, which reads it elsewhere.

It is decoded at the lowest of its own rates (8, 12, 16, 24, 48 kHz) that is no lower than the rate the encoder was
given, as the header states it, so 16 kHz speech comes back at 16 kHz and 44.1 kHz as 48 kHz; where it states none, at
48 kHz. The samples are those of `opus_decode`, before it makes integers of them: beyond [-1, 1] they are clipped
softly.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from shardpipe.audio.common import CONVERT, TORN, AudioInfo, Bytes, Samples, info_of, peak, short
from shardpipe.audio.libopus import SET_GAIN, LibOpus, libopus
from shardpipe.audio.ogg import Page, packets_of, pages_of, seal_ogg
from shardpipe.audio.sndfile import decode_sndfile
from shardpipe.errors import AudioError

__all__ = ["decode_opus", "probe_opus"]

_RATES = (8000, 12000, 16000, 24000, 48000)
_MOST = 5760
"""Samples at 48 kHz that a packet holds at most: 120 ms."""
_FRAME_BYTES_MAX = 1275

# RFC 6716, section 3.1: what the upper five bits of a packet's first byte say of the samples of a frame, at 48 kHz.
_FRAME = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4

# And of those of a packet, where that byte says how many frames there are: code 3 has their number in the next one.
_SAMPLES = tuple(_FRAME[toc >> 3] * (1, 2, 2, 0)[toc & 3] for toc in range(256))

# Section 3.2.1: how the size of a frame is written.
_SIZE = tuple(bytes([n] if n < 252 else [252 + n % 4, (n - 252) // 4]) for n in range(_FRAME_BYTES_MAX + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """RFC 7845, section 5.1."""

    channels: int
    pre_skip: int
    """At 48 kHz, as all counts of samples in Ogg are."""
    rate: int
    """At which the stream is decoded."""
    gain: int
    """In 1/256 dB."""
    streams: int
    coupled: int
    mapping: bytes

    @property
    def factor(self) -> int:
        return 48000 // self.rate


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stream:
    head: _Head
    info: AudioInfo
    packets: list[bytes]
    samples: list[int]
    """Of each packet, at 48 kHz."""


def _read_head(packet: bytes = b"", tags: bytes = b"") -> _Head:
    """From the two packets that a stream begins with."""
    if len(packet) < 19 or packet[8] >> 4 or tags[:8] != b"OpusTags":
        raise AudioError("the header cannot be read", codec="opus", fix=TORN)
    channels, pre_skip, stated, gain, family = struct.unpack_from("<BHIhB", packet, 9)
    streams, coupled, mapping = 1, channels - 1, bytes(range(channels))
    if family in (1, 2, 255) and len(packet) >= 21 + channels:
        streams, coupled, mapping = packet[19], packet[20], packet[21 : 21 + channels]
    elif family or channels not in (1, 2):
        raise AudioError(f"{channels} channels of mapping family {family} are not known", codec="opus", fix=CONVERT)
    rate = next((rate for rate in _RATES if rate >= (stated or 48000)), 48000)
    return _Head(
        channels=channels,
        pre_skip=pre_skip,
        rate=rate,
        gain=gain,
        streams=streams,
        coupled=coupled,
        mapping=mapping,
    )


def _parsed(data: Bytes) -> _Stream:
    """The stream's facts and packets. Raises AudioError for one that is damaged, or holds less than it promises."""
    packets: list[bytes] = []
    first: tuple[Page, int] | None = None
    end = 0
    for page, ended in packets_of(bytes(data), pages_of(data, "opus")):
        packets += filter(None, ended)  # an empty one holds nothing
        if first is None and len(packets) > 2:  # two are the headers
            first = page, len(packets) - 2
        if page.granule != -1:
            end = page.granule
    head = _read_head(*packets[:2])
    del packets[:2]
    samples = _samples(packets)
    promised = 0
    if first is not None:
        page, count = first
        begin = page.granule - sum(samples[:count])
        # A stream may be cut out of another, and then begins anywhere; one whose only page ends early begins at 0.
        promised = end - (max(0, begin) if page.last else begin) - head.pre_skip
        if (held := sum(samples) - head.pre_skip) < promised:
            raise short("opus", promised, held)
    # What is decoded may be far more than what is kept of it, and some channels may be others once more.
    info_of("opus", data, sum(samples) * head.channels, head.rate, head.channels)
    info = info_of("opus", data, promised // head.factor, head.rate, head.channels)
    return _Stream(head=head, info=info, packets=packets, samples=samples)


def _samples(packets: list[bytes]) -> list[int]:
    """Of each packet, at 48 kHz. Raises AudioError for what is no packet."""
    try:
        found = [_SAMPLES[packet[0]] or _FRAME[packet[0] >> 3] * (packet[1] & 63) for packet in packets]
    except IndexError:  # one is cut
        found = [0]
    if found and not 0 < min(found) <= max(found) <= _MOST:
        raise AudioError("an Opus packet is damaged", codec="opus", fix=TORN)
    return found


def probe_opus(data: Bytes) -> AudioInfo:
    return _parsed(data).info


def decode_opus(data: Bytes) -> Samples:
    stream = _parsed(data)
    library = libopus()
    return _by_sndfile(data, stream.info) if library is None else _decoded(library, stream)


def _decoded(library: LibOpus, stream: _Stream) -> Samples:
    head, info = stream.head, stream.info
    out = np.empty((sum(stream.samples) // head.factor, head.channels), np.float32)
    decoder = library.create(head.rate, head.channels, head.streams, head.coupled, head.mapping, None)
    if not decoder:
        raise AudioError("the header cannot be read", codec="opus", fix=TORN)
    try:
        if head.gain:
            library.control(decoder, SET_GAIN, ctypes.c_int(head.gain))
        address, stride, done = out.ctypes.data, out.strides[0], 0
        for packet in _joined(stream.packets) if head.streams == 1 else stream.packets:
            room = min(len(out) - done, _MOST)
            frames = library.decode_float(decoder, packet, len(packet), address + done * stride, room, 0)
            if frames < 0:
                raise AudioError(f"an Opus packet is damaged (libopus error {frames})", codec="opus", fix=TORN)
            done += frames
    finally:
        library.destroy(decoder)
    if done != len(out):
        raise short("opus", len(out), done)
    if peak("opus", out) > 1:
        _clip(library, stream, out)
    skipped = head.pre_skip // head.factor
    return out[skipped : skipped + info.frames]


def _joined(packets: list[bytes]) -> Iterator[bytes]:
    """The same frames in fewer packets, of up to 120 ms: as many calls, and waits for the GIL, are spared. RFC 6716,
    section 3.2.5.
    """
    for toc, alike in groupby(packets, itemgetter(0)):
        run = list(alike)
        most = 1 if toc & 3 or max(map(len, run)) > _FRAME_BYTES_MAX + 1 else _MOST // _FRAME[toc >> 3]
        for first in range(0, len(run), most):
            some = run[first : first + most]
            if len(some) == 1:
                yield some[0]
                continue
            sizes = [_SIZE[len(packet) - 1] for packet in some[:-1]]  # the last one's is what is left
            yield b"".join([bytes([toc | 3, 0x80 | len(some)]), *sizes, *[packet[1:] for packet in some]])


def _clip(library: LibOpus, stream: _Stream, out: Samples) -> None:
    """As `opus_decode` does it, packet by packet."""
    memory = (ctypes.c_float * stream.head.channels)()
    address = out.ctypes.data
    for samples in stream.samples:
        frames = samples // stream.head.factor
        library.soft_clip(address, frames, stream.head.channels, memory)
        address += frames * out.strides[0]


def _by_sndfile(data: Bytes, info: AudioInfo) -> Samples:
    if data[40:44] == bytes(4):  # no rate is stated, and it would take 8 kHz
        data = seal_ogg(b"".join([data[:40], (48000).to_bytes(4, "little"), data[44:]]), serial=0)
    try:
        samples = decode_sndfile("opus", data)
    except AudioError as error:
        fix = "libopus may read it: install that (pip install av, or the package libopus0 of Debian and Ubuntu)."
        raise AudioError(error.what, codec="opus", fix=fix) from error
    if len(samples) != info.frames:
        raise short("opus", info.frames, len(samples))
    return samples
