"""Ogg files of any content, sound in every page, written for tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from shardpipe.audio.ogg import seal_ogg

__all__ = ["head", "ogg_opus", "packets_of_file"]


def head(
    *, channels: int = 1, pre_skip: int = 312, rate: int = 16000, gain: int = 0, family: int = 0, tail: bytes = b""
) -> bytes:
    return b"OpusHead\x01" + struct.pack("<BHIhB", channels, pre_skip, rate, gain, family) + tail


def ogg_opus(header: bytes, pages: Sequence[tuple[int, Sequence[bytes]]]) -> bytes:
    """A file of one header and pages of (granule position, packets), the last of which says that it is the last."""
    made = [(0, [header]), (0, [b"OpusTags" + bytes(8)]), *pages]
    data = b""
    for number, (granule, packets) in enumerate(made):
        flags = 2 if number == 0 else 4 if number == len(made) - 1 else 0
        sizes = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
        fields = struct.pack("<BBqIIIB", 0, flags, granule, 1, number, 0, len(sizes))
        data += b"OggS" + fields + sizes + b"".join(packets)
    return seal_ogg(data, 1)


def packets_of_file(data: bytes) -> list[bytes]:
    """Those with audio."""
    packets, part, at = [], b"", 0
    while at < len(data):
        count = data[at + 26]
        start = at + 27 + count
        for size in data[at + 27 : start]:
            part += data[start : start + size]
            start += size
            if size < 255:
                packets.append(part)
                part = b""
        at = start
    return packets[2:]
