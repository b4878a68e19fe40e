"""Shards byte by byte: what is written can be read by everyone, and no cut goes unseen."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardpipe.dataset.shard import END_BYTES, Member, ShardReader, ShardWriter, member_header, sample_bytes
from shardpipe.errors import ShardError, StoreError
from shardpipe.store import LocalStore

keys = st.text(st.characters(codec="utf-8", exclude_characters="./\0", exclude_categories=["Cs", "Cc"]), min_size=1)
members = st.lists(st.binary(max_size=1500), min_size=1, max_size=3).map(lambda d: list(zip(["txt", "json", "wav"], d)))
samples = st.lists(st.tuples(keys, members), max_size=6, unique_by=lambda sample: sample[0])


def write_shard(path: Path, content: list[tuple[str, list[tuple[str, bytes]]]]) -> ShardWriter:
    writer = ShardWriter(path)
    for key, parts in content:
        writer.append(sample_bytes(key, parts)[0])
    writer.finish()
    return writer


def walk(path: Path) -> list[tuple[Member, bytes]]:
    reader = ShardReader(LocalStore(path.parent), path.name)
    return [(member, reader.read(member)) for member in reader]


def flat(content: list[tuple[str, list[tuple[str, bytes]]]]) -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", payload) for key, parts in content for extension, payload in parts]


@settings(deadline=None)
@given(content=samples)
def test_what_is_written_is_read_by_us_and_by_tarfile(tmp_path_factory: pytest.TempPathFactory, content: list) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.tar"
    writer = write_shard(path, content)
    data = path.read_bytes()
    assert [(member.name, payload) for member, payload in walk(path)] == flat(content)
    with tarfile.open(path, "r|*") as stream:
        assert [(info.name, stream.extractfile(info).read()) for info in stream] == flat(content)
    assert (writer.size, writer.md5) == (len(data), hashlib.md5(data).hexdigest())


@settings(deadline=None)
@given(key=keys, parts=members)
def test_offsets_point_at_the_payloads(key: str, parts: list[tuple[str, bytes]]) -> None:
    data, offsets = sample_bytes(key, parts)
    assert len(data) % 512 == 0
    assert [data[at : at + len(payload)] for at, (_, payload) in zip(offsets, parts)] == [p for _, p in parts]


def test_headers_hold_nothing_of_the_machine(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("utt", [("txt", b"hello"), ("wav", b"x" * 600)])])
    with tarfile.open(tmp_path / "a.tar") as tar:
        for info in tar:
            assert (info.mode, info.uid, info.gid, info.mtime, info.uname, info.gname) == (0o644, 0, 0, 0, "", "")
            assert info.isreg()
            assert not info.pax_headers
    assert (tmp_path / "a.tar").read_bytes()[257:265] == b"ustar\x0000"


def test_long_and_unicode_names(tmp_path: Path) -> None:
    names = ["a" * 96, "a" * 97, "é" * 48, "é" * 49, "語" * 200, "x" * 3000]
    content = [(name, [("txt", name.encode()), ("wav", b"1")]) for name in names]
    write_shard(tmp_path / "a.tar", content)
    assert [(m.name, p) for m, p in walk(tmp_path / "a.tar")] == flat(content)
    with tarfile.open(tmp_path / "a.tar", "r|*") as stream:
        infos = {info.name: bool(info.pax_headers) for info in stream}
    assert infos["a" * 96 + ".txt"] is False, "100 bytes fit into ustar"
    assert infos["a" * 97 + ".txt"] is True


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        sample_bytes("bad\ud800", [("txt", b"")])


def test_members_from_8_gib_on(tmp_path: Path) -> None:
    # A sparse file: the payload, never written, takes no room. Headers and padding are those of a real sample.
    payload, path = (9 << 30) + 1, tmp_path / "huge.tar"
    small, header = sample_bytes("big", [("txt", b"x")])[0], member_header("big.wav", payload)
    end = len(small) + len(header) + payload + -payload % 512
    with open(path, "wb") as file:
        file.write(small + header)
        file.seek(end)
        file.write(sample_bytes("next", [("txt", b"after")])[0] + bytes(END_BYTES))
    with tarfile.open(path, "r:") as tar:
        assert [(info.name, info.size) for info in tar] == [("big.txt", 1), ("big.wav", payload), ("next.txt", 5)]
    walked = iter(ShardReader(LocalStore(tmp_path), path.name))
    next(walked)
    big = next(walked)
    assert (big.name, big.offset, big.size, big.end) == ("big.wav", len(small), payload, end)


def test_every_cut_is_found(tmp_path: Path) -> None:
    content = [("a", [("txt", b"one"), ("wav", b"x" * 700)]), ("é" * 60, [("txt", b""), ("wav", b"y" * 512)])]
    write_shard(tmp_path / "whole.tar", content)
    data = (tmp_path / "whole.tar").read_bytes()
    boundaries = {at + d for at in range(0, len(data), 512) for d in (-1, 0, 1)}
    for cut in sorted(at for at in boundaries if 0 <= at < len(data)):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(ShardError, match="cut short") as caught:
            walk(tmp_path / "cut.tar")
        assert caught.value.shard == "cut.tar"
        assert caught.value.offset is not None
        assert caught.value.offset <= cut
        assert f"ends at {cut}" in str(caught.value)


def test_every_flipped_header_byte_is_found(tmp_path: Path) -> None:
    write_shard(tmp_path / "whole.tar", [("a", [("txt", b"one")]), ("b" * 120, [("wav", b"x" * 700)])])
    data = (tmp_path / "whole.tar").read_bytes()
    headers = (0, 1024, 2048)  # of a.txt, of the pax header (whose records have no checksum) and of b.wav
    for at in (header + byte for header in headers for byte in range(512)):
        if at % 512 == 155:  # the blank that ends the checksum's field: no reader looks at it
            continue
        damaged = bytearray(data)
        damaged[at] ^= 0x01
        (tmp_path / "flipped.tar").write_bytes(damaged)
        with pytest.raises(ShardError) as caught:
            walk(tmp_path / "flipped.tar")
        assert caught.value.offset == at // 512 * 512


@settings(max_examples=300, deadline=None)
@given(junk=st.binary(max_size=4096), keep=st.integers(0, 3072))
def test_junk_raises_a_shard_error_or_is_a_tar(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, keep: int
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    write_shard(folder / "a.tar", [("a" * 120, [("txt", b"one"), ("wav", b"x" * 700)])])
    (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[:keep] + junk)
    with pytest.raises(ShardError):
        walk(folder / "a.tar")


def craft(folder: Path, build, **options) -> Path:
    path = folder / "crafted.tar"
    with tarfile.open(path, "w", **options) as tar:
        build(tar)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes = b"data", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_writers(tmp_path: Path, format_: int) -> None:
    long = "x" * 90 + "/" + "y" * 90 if format_ == tarfile.USTAR_FORMAT else "é" * 150
    target = "l" * (10 if format_ == tarfile.USTAR_FORMAT else 150)

    def build(tar: tarfile.TarFile) -> None:
        add(tar, "d", b"", type=tarfile.DIRTYPE)
        add(tar, "a.wav", b"z" * 513, mtime=1700000000.5, uname="ü", uid=1000)
        add(tar, "link.wav", b"", type=tarfile.SYMTYPE, linkname=target)
        add(tar, long + ".txt", b"text")

    got = walk(craft(tmp_path, build, format=format_))
    assert [(m.name, m.regular, p) for m, p in got] == [
        ("d", False, b""),
        ("a.wav", True, b"z" * 513),
        ("link.wav", False, b""),
        (long + ".txt", True, b"text"),
    ]


def test_what_other_readers_would_lose_is_an_error(tmp_path: Path) -> None:
    first = craft(tmp_path, lambda tar: add(tar, "a.wav")).read_bytes()
    (tmp_path / "two.tar").write_bytes(first + first)
    with pytest.raises(ShardError, match="after the end-of-archive mark") as caught:
        walk(tmp_path / "two.tar")
    assert caught.value.offset == len(first)


@pytest.mark.parametrize(
    ("records", "what"),
    [
        (b"11 size=-1\n", "size of -1"),
        (b"99 path=x\n", "malformed"),
        (b"0 path=x\n", "malformed"),
        (b"-5 path=x\n", "malformed"),
        (b"path=x\n", "malformed"),
        (b"31 GNU.sparse.realsize=1000000\n", "sparse"),
        (b"11 path=\xff\xfe\n", "not UTF-8"),
    ],
)
def test_hostile_pax_records(tmp_path: Path, records: bytes, what: str) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    data = header.tobuf() + records.ljust(512, b"\0") + sample_bytes("a", [("wav", b"1")])[0] + bytes(END_BYTES)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ShardError, match=what):
        walk(tmp_path / "a.tar")


def test_hostile_headers(tmp_path: Path) -> None:
    def check(info: tarfile.TarInfo, what: str, rest: bytes = bytes(4096)) -> None:
        (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + rest)
        with pytest.raises(ShardError, match=what):
            walk(tmp_path / "a.tar")

    huge = tarfile.TarInfo("a.wav")
    huge.size = 1 << 60
    check(huge, "cut short: the payload")
    negative = tarfile.TarInfo("a.wav")
    negative.size = -512
    check(negative, "size of -512")
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    check(long, "extended header of")
    alone = tarfile.TarInfo("././@LongLink")
    alone.type, alone.size = tarfile.GNUTYPE_LONGNAME, 3
    check(alone, "without its member", b"abc".ljust(512, b"\0") + bytes(1024))
    sparse = tarfile.TarInfo("a.wav")
    sparse.type = tarfile.GNUTYPE_SPARSE
    check(sparse, "sparse")


def test_a_compressed_tar_says_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        add(tar, "a.wav", random.Random(0).randbytes(2000))
    with pytest.raises(ShardError, match="decompress it first"):
        walk(tmp_path / "a.tar.gz")


def test_a_missing_shard_and_an_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        walk(tmp_path / "none.tar")
    with pytest.raises(StoreError, match="cannot be written"):
        ShardWriter(tmp_path / "none" / "a.tar")
