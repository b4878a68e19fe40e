"""Tar shards: a sample's bytes at known offsets, and a scanner that trusts no header.

The layout is POSIX ustar, with a pax header only where ustar has no room (a name over 100 bytes, a member from 8 GiB);
docs/format.md specifies it. The standard library reads and writes the header blocks. Walking from header to header is
done here, because `tarfile` takes a torn or damaged archive for one that ends early.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardpipe.errors import ShardError
from shardpipe.store import Store, writing

__all__ = ["END_BYTES", "Member", "ShardReader", "ShardWriter", "member_header", "sample_bytes"]

BLOCK = tarfile.BLOCKSIZE
END_BYTES = 2 * BLOCK
"""Length of the end-of-archive mark, two zero blocks."""
_PAYLOADLESS = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_READ_BYTES = 4 << 20
_READ_BYTES_FAR = 16 << 20  # where every read takes a round trip
_EXTENDED_BYTES = 1 << 20  # more than any real name needs; a damaged size must not fill the memory


def sample_bytes(key: str, members: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """The tar bytes of one sample, and where in them each payload begins.

    `members` are (extension, payload). The bytes do not depend on the place in the shard, nor on user, time or machine.
    """
    parts: list[bytes] = []
    offsets: list[int] = []
    at = 0
    for extension, payload in members:
        header = member_header(f"{key}.{extension}", len(payload))
        offsets.append(at + len(header))
        parts += [header, payload, bytes(-len(payload) % BLOCK)]
        at += len(header) + len(payload) + len(parts[-1])
    return b"".join(parts), offsets


def member_header(name: str, size: int) -> bytes:
    """The header blocks of a member with `size` bytes of payload: one block, three or more where ustar has no room."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except UnicodeError:
        raise
    except ValueError:
        return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


class ShardWriter:
    """Appends samples to a new tar and counts and hashes what it writes. Raises StoreError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size = 0
        """Bytes written so far."""
        with writing(path):
            self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by close)

    @property
    def md5(self) -> str:
        """Of all bytes written so far."""
        return self._md5.hexdigest()

    def append(self, data: bytes) -> int:
        """Writes the bytes of a sample and returns the offset where they begin."""
        offset = self.size
        with writing(self._path):
            self._file.write(data)
        self._md5.update(data)
        self.size += len(data)
        return offset

    def finish(self) -> None:
        """Writes the end-of-archive mark and closes the file."""
        self.append(bytes(END_BYTES))
        self.close()

    def close(self) -> None:
        """Closes the file as it is, finished or not."""
        with writing(self._path):
            self._file.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One tar member. Offsets count bytes from the start of the tar."""

    name: str
    offset: int
    """Of the first header block, extended headers included."""
    data_offset: int
    size: int
    """Of the payload, without padding; 0 for members that carry none."""
    regular: bool
    """An ordinary file: no directory, link or device."""

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.data_offset + self.size + -self.size % BLOCK


class ShardReader:
    """Walks a tar once, from the first byte to the last. Raises ShardError with the offset of any damage.

    reader = ShardReader(store, "shard-000000.tar")
    for member in reader:
        payload = reader.read(member)      # or not: then it is skipped
    reader.md5                             # of the whole file, now that it has been read
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name
        self.size = store.stat(name).size
        self._read_bytes = _READ_BYTES_FAR if store.parallel > 1 else _READ_BYTES
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._buffer = b""
        self._start = 0  # of the buffer in the file
        self._at = 0

    @property
    def md5(self) -> str:
        """Of the whole file, once the walk has ended."""
        return self._md5.hexdigest()

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next_member()) is not None:
            yield member
            self._skip(member.end)
        self._check_end()

    def read(self, member: Member) -> bytes:
        """The payload of the member that the walk is at."""
        assert self._at == member.data_offset, "payloads are read in the walk's order, once each"
        return self._take(member.size)

    def _next_member(self) -> Member | None:
        """The member at the current place, None at the end-of-archive mark."""
        offset = self._at
        long_name: str | None = None
        long_size: int | None = None
        while (header := self._header_block()) is not None:
            payload = 0 if header.type in _PAYLOADLESS else header.size
            if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                extended = self._extended(payload)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = self._text(extended.split(b"\0", 1)[0])
                else:
                    long_name, long_size = self._pax(extended, long_name)
            elif header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
                self._extended(payload)
            elif header.type == tarfile.GNUTYPE_SPARSE:
                raise self._broken("a sparse member", "Write the tar again without --sparse.")
            else:
                member = Member(
                    name=long_name
                    if long_name is not None
                    else self._text(header.name.encode("utf-8", "surrogateescape")),
                    offset=offset,
                    data_offset=self._at,
                    size=payload if long_size is None else long_size,
                    regular=header.isreg(),
                )
                if member.end > self.size:
                    raise self._cut(f"the payload of {member.name!r} should end at byte {member.end}", member.offset)
                return member
        if offset != self._at - BLOCK:
            raise self._broken("an extended header without its member", _AGAIN)
        return None

    def _header_block(self) -> tarfile.TarInfo | None:
        """The next header block, None for a zero block. The place moves past it."""
        if self._at + BLOCK > self.size:
            raise self._cut("a header or the end-of-archive mark should follow", self._at)
        block = self._take(BLOCK)
        if not any(block):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.size < 0:
                raise tarfile.HeaderError(f"a size of {header.size}")
        except tarfile.HeaderError as error:
            self._at -= BLOCK
            fix = _AGAIN if self._at else f"{_AGAIN} If it is compressed, decompress it first."
            raise self._broken(f"no tar header here ({error})", fix) from error
        return header

    def _extended(self, size: int) -> bytes:
        if size > _EXTENDED_BYTES:
            raise self._broken(f"an extended header of {size} bytes", _AGAIN)
        end = self._at + size + -size % BLOCK
        if end > self.size:
            raise self._cut(f"an extended header should end at byte {end}", self._at - BLOCK)
        data = self._take(size)
        self._skip(end)
        return data

    def _pax(self, data: bytes, name: str | None) -> tuple[str | None, int | None]:
        """Name and size that the records "LENGTH KEYWORD=VALUE\\n" of a pax header give, `name` if they give none."""
        size: int | None = None
        try:
            while data:
                length = int(data[: data.index(b" ")])
                record, data = data[:length], data[length:]
                if len(record) != length or record[-1:] != b"\n":
                    raise ValueError(f"bad record {record[:40]!r}")
                keyword, value = record[record.index(b" ") + 1 : -1].split(b"=", 1)
                if keyword == b"path":
                    name = self._text(value)
                elif keyword == b"size":
                    size = int(value)
                    if size < 0:
                        raise ValueError(f"a size of {size}")
                elif keyword.startswith(b"GNU.sparse."):
                    raise self._broken("a sparse member", "Write the tar again without --sparse.")
        except ValueError as error:
            raise self._broken(f"a malformed pax header ({error})", _AGAIN) from error
        return name, size

    def _check_end(self) -> None:
        """The rest of the file after one zero block: another one, then nothing but zeros."""
        if self._at + BLOCK > self.size:
            raise self._cut("the second block of the end-of-archive mark is missing", self._at)
        while self._at < self.size:
            chunk = self._take(min(self._read_bytes, self.size - self._at))
            if chunk.strip(b"\0"):
                self._at -= len(chunk.lstrip(b"\0"))
                raise self._broken("bytes after the end-of-archive mark, which tar readers do not see", _AGAIN)

    def _take(self, length: int) -> bytes:
        """The next `length` bytes, which lie inside the file. Small reads come from a buffer."""
        begin = self._at - self._start
        if begin + length > len(self._buffer):
            rest = self._buffer[begin:]
            wanted = max(length, min(self._read_bytes, self.size - self._at))
            fresh = self._store.read(self.name, self._at + len(rest), wanted - len(rest))
            self._md5.update(fresh)
            self._buffer, self._start, begin = rest + fresh, self._at, 0
        data = self._buffer[begin : begin + length]
        self._at += length
        return data

    def _skip(self, to: int) -> None:
        while self._at < to:
            self._take(min(self._read_bytes, to - self._at))

    def _text(self, name: bytes) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError as error:
            raise self._broken(
                f"the name {name!r} is not UTF-8", "Rename the member, or write the tar again."
            ) from error

    def _broken(self, what: str, fix: str) -> ShardError:
        return ShardError(what, shard=self.name, offset=self._at, fix=fix)

    def _cut(self, what: str, offset: int) -> ShardError:
        return ShardError(
            f"cut short: {what}, but the file ends at {self.size}", shard=self.name, offset=offset, fix=_AGAIN
        )


_AGAIN = "The shard is damaged or incomplete: copy it again from its source, or make it again."
