"""Ogg (RFC 3533): its pages, checked, and the packets in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shardpipe.audio.common import CONVERT, TORN, Bytes
from shardpipe.errors import AudioError

__all__ = ["Page", "packets_of", "pages_of", "seal_ogg"]

# Ogg's CRC-32 is zlib's with the bits of every byte and of the result the other way round, and nothing inverted.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_CONTINUED, _LAST = 1, 4  # flags of pages


class Page(NamedTuple):
    """What a page says of itself."""

    continued: bool
    """It begins with the rest of a packet."""
    last: bool
    granule: int
    """Where the last packet that ends here ends, in the codec's own measure."""
    sizes: Bytes
    """Of its segments; one below 255 ends a packet."""
    body: int
    """Where the segments begin."""


def _bounds(data: Bytes, codec: str) -> Iterator[tuple[int, int, int]]:
    """Where each page, its segments and the next page begin."""
    begin = 0
    while begin < len(data):
        body = begin + 27 + (data[begin + 26] if begin + 27 <= len(data) else 0)
        end = body + sum(data[begin + 27 : body])
        if data[begin : begin + 4] != b"OggS" or begin + 27 > len(data) or end > len(data):
            raise AudioError(f"the Ogg page at byte {begin} is cut or damaged", codec=codec, fix=TORN)
        yield begin, body, end
        begin = end


def _page_crc(page: Bytes) -> bytes:
    """A page's checksum as its bytes 22 to 25 hold it."""
    turned = bytes(page).translate(_REVERSED)
    crc = zlib.crc32(turned[26:], zlib.crc32(bytes(4), zlib.crc32(turned[:22], 0xFFFFFFFF))) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REVERSED)


def pages_of(data: Bytes, codec: str) -> list[Page]:
    """All pages. Raises AudioError unless they are whole, in order, of one stream, and the last says it is the last.

    Decoders would skip what is missing: stb_vorbis checks no CRC, and a stream cut between pages looks whole.
    """
    pages: list[Page] = []
    flags, serial, sequence = struct.unpack_from("<B8xII", data, 5)
    for number, (begin, body, end) in enumerate(_bounds(data, codec), sequence):
        flags, granule, this, stated = struct.unpack_from("<BqII", data, begin + 5)
        if data[begin + 22 : begin + 26] != _page_crc(data[begin:end]):
            raise AudioError(f"the Ogg page at byte {begin} has a wrong CRC", codec=codec, fix=TORN)
        if this != serial:
            raise AudioError("the Ogg file holds more than one stream", codec=codec, fix=CONVERT)
        if stated != number:
            raise AudioError(f"an Ogg page is missing before byte {begin}", codec=codec, fix=TORN)
        pages.append(Page(bool(flags & _CONTINUED), bool(flags & _LAST), granule, data[begin + 27 : body], body))
    if not flags & _LAST:
        raise AudioError("the Ogg stream is cut: its last page is missing", codec=codec, fix=TORN)
    return pages


def packets_of(data: bytes, pages: Sequence[Page]) -> Iterator[tuple[Page, list[bytes]]]:
    """Every page, and the packets that end there. One whose beginning is missing, as where a stream was cut out of
    another, and one without an end are left out.
    """
    begun: list[bytes] = []
    for page in pages:
        packets: list[bytes] = []
        start = stop = page.body
        torn = page.continued and not begun
        for size in page.sizes:
            stop += size
            if size < 255:
                if not torn:
                    packets.append(b"".join([*begun, data[start:stop]]) if begun else data[start:stop])
                begun, start, torn = [], stop, False
        if start < stop and not torn:
            begun.append(data[start:stop])
        yield page, packets


def seal_ogg(data: bytes, serial: int) -> bytes:
    """The same stream under another serial number: libsndfile draws it at random, and equal input is to be equal."""
    pages = []
    for begin, _, end in _bounds(data, "ogg"):
        page = bytearray(data[begin:end])
        page[14:18] = serial.to_bytes(4, "little")
        page[22:26] = _page_crc(memoryview(page))
        pages.append(bytes(page))
    return b"".join(pages)
