"""The index: what is written is read back, a little at a time, and what does not fit together is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardpipe.dataset import MANIFEST, SHARD_LIST, Index, ShardInfo, stage_index
from shardpipe.dataset.manifest import PART_SHARDS, fingerprint
from shardpipe.dataset.parts import SCHEMA, Row, rows_batch, rows_checksum
from shardpipe.errors import CorruptIndex, StoreError
from shardpipe.store import CountingStore, FsspecStore, LocalStore

GOLDEN_CHECKSUM = "a4df05a9cad524ca87ae4915710a3e10c74fc24e55e6a8e63ab90460ee0b1d03"
GOLDEN_FINGERPRINT = "06cbd84be33eea5e88273568de470602ad8fd23ce2d6e6672019613d3e2774a6"

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
row_fields = st.builds(
    Row,
    key=texts,
    shard=st.just(0),
    offset=st.integers(0, 2**60),
    size=st.integers(0, 2**60),
    audio_offset=st.integers(0, 2**60),
    audio_size=st.integers(0, 2**60),
    crc32=st.integers(0, 2**32 - 1),
    codec=st.sampled_from(["wav", "flac", "mp3", "ogg", "opus"]),
    frames=st.integers(1, 2**40),
    sample_rate=st.sampled_from([8000, 16000, 44100]),
    channels=st.integers(1, 8),
    text=texts,
    extras=st.none() | texts,
)


def rows_of(shard: int, samples: int) -> pa.RecordBatch:
    rows = [
        Row(
            key=f"s{shard}-{i}-é",
            shard=shard,
            offset=i * 2048,
            size=2048,
            audio_offset=i * 2048 + 1536,
            audio_size=512,
            crc32=2**32 - 1 - i,
            codec="wav" if i % 2 else "flac",
            frames=1000 + i,
            sample_rate=16000 if i % 2 else 8000,
            channels=1,
            text=f"text {i} 語",
            extras=None if i % 2 else '{"speaker":"x"}',
        )
        for i in range(samples)
    ]
    return rows_batch(rows)


def make(folder: Path, counts: Iterable[int], **options: int) -> Index:
    def shards():
        for number, samples in enumerate(counts):
            rows = rows_of(number, samples)
            name = f"shard-{number:06d}.tar"
            yield ShardInfo.of(rows, name=name, size=1024 + samples * 2048, md5=f"{number:032x}"), rows

    folder.mkdir(parents=True, exist_ok=True)
    stage_index(folder, shards())
    return Index.load(str(folder), **options)


def edit(folder: Path, change) -> None:
    fields = json.loads((folder / MANIFEST).read_bytes())
    change(fields)
    (folder / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "counts", [[], [0], [3], [0, 3, 0, 0, 1, 0], [1] * (PART_SHARDS + 1), [n % 3 for n in range(2 * PART_SHARDS)]]
)
def test_round_trip(tmp_path: Path, counts: list[int]) -> None:
    index = make(tmp_path, counts)
    assert index.counts.dtype == np.int64
    assert index.counts.tolist() == counts
    assert index.num_samples == index.totals.samples == sum(counts)
    assert len(list((tmp_path / "index").iterdir())) == -(-len(counts) // PART_SHARDS)
    for shard, samples in enumerate(counts):
        assert index.rows(shard).equals(rows_of(shard, samples))
        expected = [(1000 + i) / (16000 if i % 2 else 8000) for i in range(samples)]
        assert index.seconds(shard).tolist() == expected
        assert index.shards[shard].seconds == pytest.approx(sum(expected), abs=1e-6)
    assert (tmp_path / SHARD_LIST).read_text() == "".join(f"shard-{n:06d}.tar\n" for n in range(len(counts)))


def test_columns_are_those_of_the_format(tmp_path: Path) -> None:
    make(tmp_path, [2])
    written = pq.read_table(tmp_path / "index/part-00000.parquet").schema
    assert [(field.name, str(field.type)) for field in written] == [
        ("key", "string"),
        ("shard", "int32"),
        ("offset", "int64"),
        ("size", "int64"),
        ("audio_offset", "int64"),
        ("audio_size", "int64"),
        ("crc32", "uint32"),
        ("codec", "string"),
        ("frames", "int64"),
        ("sample_rate", "int32"),
        ("channels", "int16"),
        ("text", "string"),
        ("extras", "string"),
    ]


@settings(deadline=None)
@given(rows=st.lists(row_fields, max_size=8))
def test_checksum_is_the_documented_one(rows: list[Row]) -> None:
    """docs/format.md, column by column: a second implementation in plain Python."""
    form = b""
    for name in SCHEMA.names:
        values = [getattr(row, name) for row in rows]
        if name == "shard":
            continue
        if name in ("key", "codec", "text", "extras"):
            coded = [None if value is None else value.encode() for value in values]
            form += b"".join(struct.pack("<q", -1 if value is None else len(value)) for value in coded)
            form += b"".join(value or b"" for value in coded)
        else:
            form += b"".join(struct.pack("<q", value) for value in values)
    assert rows_checksum(rows_batch(rows)) == hashlib.sha256(form).hexdigest()


def test_checksum_does_not_depend_on_how_the_arrays_lie() -> None:
    whole = rows_of(0, 9)
    part = whole.slice(3, 4)
    assert rows_checksum(part) == rows_checksum(rows_batch([Row(**row) for row in part.to_pylist()]))
    assert rows_checksum(part) != rows_checksum(whole.slice(4, 4))


def test_golden_checksum_and_fingerprint(tmp_path: Path) -> None:
    # The fingerprint is in every saved training state: if these change, no run in the world can be resumed.
    index = make(tmp_path, [3, 0, 5])
    assert index.shards[0].checksum == GOLDEN_CHECKSUM
    assert index.fingerprint == GOLDEN_FINGERPRINT


def test_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    here, there = make(tmp_path / "a", [3, 2]), make(tmp_path / "b" / "c", [3, 2])
    assert here.fingerprint == there.fingerprint == fingerprint(here.shards)
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / "c" / MANIFEST).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / MANIFEST).read_text()
    for counts in ([2, 3], [3, 2, 0], [5], [3, 3]):
        assert make(tmp_path / str(counts), counts).fingerprint != here.fingerprint


def test_loading_reads_the_manifest_only_and_rows_read_their_group_only(tmp_path: Path) -> None:
    make(tmp_path, [2000] * 8)
    store = CountingStore(LocalStore(tmp_path))
    index = Index.load(store)
    assert [name for name, _, _ in store.reads] == [MANIFEST]
    index.seconds(5)
    of_seconds = sum(size for _, _, size in store.reads[2:])
    index.seconds(5)
    store.reads.clear()
    index.rows(5)
    of_rows = sum(size for _, _, size in store.reads)
    assert of_seconds < of_rows < (tmp_path / "index/part-00000.parquet").stat().st_size / 6
    store.reads.clear()
    index.rows(5)
    index.seconds(5)
    assert not store.reads


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    one = rows_of(0, 100).nbytes
    index = make(tmp_path, [100] * 6, cache_bytes=int(one * 2.5))
    store = CountingStore(index.store)
    index = Index.load(store, cache_bytes=int(one * 2.5))
    for shard in (0, 1, 2, 1, 2):
        index.rows(shard)
    parts = [read for read in store.reads if read[0] != MANIFEST]
    store.reads.clear()
    index.rows(2)
    assert not store.reads
    index.rows(0)
    assert len(store.reads) == 1, "0 was dropped when 2 came"
    assert len(parts) == 4, "the footer, then three row groups"


def test_any_store(tmp_path: Path) -> None:
    make(tmp_path, [3, 2])
    store = FsspecStore(f"memory://{tmp_path.name}")
    for name in (MANIFEST, "index/part-00000.parquet"):
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{name}", (tmp_path / name).read_bytes())
    assert Index.load(store).rows(1).equals(rows_of(1, 2))


def test_pickled_without_caches(tmp_path: Path) -> None:
    index = make(tmp_path, [3000, 20])
    before = len(pickle.dumps(index))
    index.rows(0)
    index.seconds(0)
    data = pickle.dumps(index)
    assert len(data) == before < 5000
    assert pickle.loads(data).rows(1).equals(rows_of(1, 20))


def test_many_threads(tmp_path: Path) -> None:
    make(tmp_path, [50] * 20)
    index = Index.load(str(tmp_path), cache_bytes=rows_of(0, 50).nbytes * 3)
    with ThreadPoolExecutor(8) as pool:
        for shard, rows in zip(list(range(20)) * 10, pool.map(index.rows, list(range(20)) * 10)):
            assert rows["shard"][0].as_py() == shard


def test_seconds_cannot_be_changed_by_a_caller(tmp_path: Path) -> None:
    index = make(tmp_path, [3])
    with pytest.raises(ValueError):
        index.seconds(0)[0] = 5


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda fields: fields.pop("shardpipe"), "missing required field `shardpipe`"),
        (lambda fields: fields["shardpipe"].update(format=2), "format version 2"),
        (lambda fields: fields["shardpipe"].update(samples=6), "samples: it says 6"),
        (lambda fields: fields["shardpipe"].update(fingerprint="0" * 64), "fingerprint: it says 0000"),
        (
            lambda fields: fields["shardpipe"].pop("fingerprint"),
            "missing required field `fingerprint`",
        ),
        (lambda fields: fields["shardpipe"].update(parts=[]), "number of parts: it says 0"),
        (lambda fields: fields["shardpipe"].update(size=1), "bytes: it says 1"),
        (lambda fields: fields["shardpipe"].update(frames=1), "frames: it says 1"),
        (lambda fields: fields["shardpipe"].update(seconds="long"), "not a manifest"),
        (lambda fields: fields["shardpipe"].update(codecs={"wav": 4}), "samples by codec: it says 4"),
        (lambda fields: fields["shardpipe"].update(codecs=[]), "not a manifest"),
        (lambda fields: fields["shardpipe"].update(sample_rates={}), "samples by sample rate: it says 0"),
        (
            lambda fields: fields["shardpipe"].update(rejected="2"),
            "Expected `int`, got `str`.*rejected",
        ),
        (lambda fields: fields["shardlist"].pop(), "its shards give"),
        (lambda fields: fields["shardlist"].reverse(), "fingerprint"),
        (
            lambda fields: fields["shardlist"][0].update(nsamples=-3),
            r">= 0.*list\[0\].nsamples",
        ),
        (
            lambda fields: fields["shardlist"][0].update(nsamples="3"),
            r"got `str`.*list\[0\].nsamples",
        ),
        (
            lambda fields: fields["shardlist"][0].update(nsamples=True),
            r"got `bool`.*list\[0\].nsamples",
        ),
        (
            lambda fields: fields["shardlist"][0].pop("checksum"),
            r"missing required field `checksum`.*list\[0\]",
        ),
        (lambda fields: fields.update(shardlist=[[]]), "not a manifest"),
        (lambda fields: fields.update(shardlist=5), "not a manifest"),
    ],
)
def test_a_manifest_at_odds_with_itself(tmp_path: Path, change, what: str) -> None:
    make(tmp_path, [3, 2])
    edit(tmp_path, change)
    with pytest.raises(CorruptIndex, match=what) as caught:
        Index.load(str(tmp_path))
    assert caught.value.file == f"{tmp_path}/{MANIFEST}"
    assert caught.value.fix


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"'])
def test_what_is_no_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(CorruptIndex, match=r"not a manifest|is missing"):
        Index.load(str(tmp_path))


def test_no_manifest_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        Index.load(str(tmp_path))


def test_flipped_bytes_of_a_part_are_found(tmp_path: Path) -> None:
    make(tmp_path, [3, 2])
    path = tmp_path / "index/part-00000.parquet"
    data = path.read_bytes()
    wanted = [rows_of(0, 3), rows_of(1, 2)]
    unseen = []
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ (0x10, 0x80)[at % 2]]) + data[at + 1 :])
        index = Index.load(str(tmp_path))
        try:
            if [index.rows(0), index.rows(1)] != wanted:
                unseen.append(at)
        except CorruptIndex:
            pass
    assert not unseen


def test_parts_of_another_dataset(tmp_path: Path) -> None:
    make(tmp_path / "a", [3, 2, 4])
    for counts in ([3, 2], [2, 3, 4], [3, 0, 4]):
        other = tmp_path / str(counts)
        make(other, counts)
        (tmp_path / "a/index/part-00000.parquet").write_bytes((other / "index/part-00000.parquet").read_bytes())
        index = Index.load(str(tmp_path / "a"))
        with pytest.raises(CorruptIndex, match=r"row groups|rows, but"):
            [index.rows(shard) for shard in range(3)]
        with pytest.raises(CorruptIndex):
            [index.seconds(shard) for shard in range(3)]


def test_rows_of_the_same_length_but_other_content(tmp_path: Path) -> None:
    make(tmp_path, [3])
    rows = rows_of(0, 3)
    changed = rows.set_column(11, SCHEMA.field("text"), pa.array(["other"] * 3))
    pq.write_table(pa.Table.from_batches([changed]), tmp_path / "index/part-00000.parquet", store_schema=False)
    with pytest.raises(CorruptIndex, match="differ from the checksum"):
        Index.load(str(tmp_path)).rows(0)


def test_a_part_with_other_columns(tmp_path: Path) -> None:
    make(tmp_path, [3])
    pq.write_table(pa.table({"key": ["a"] * 3}), tmp_path / "index/part-00000.parquet")
    with pytest.raises(CorruptIndex, match="columns are"):
        Index.load(str(tmp_path)).rows(0)


def test_a_missing_part(tmp_path: Path) -> None:
    make(tmp_path, [3])
    (tmp_path / "index/part-00000.parquet").unlink()
    with pytest.raises(StoreError, match="no such file"):
        Index.load(str(tmp_path)).rows(0)
