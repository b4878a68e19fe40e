"""Verify finds whatever does not fit together, and tells all of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardpipe.dataset import MANIFEST, Index, ShardInfo, stage_index
from shardpipe.dataset.parts import Row, rows_batch
from shardpipe.dataset.shard import ShardWriter, sample_bytes
from shardpipe.dataset.verifying import verify
from shardpipe.errors import CorruptIndex, ShardError, StoreError
from shardpipe.pack import PackOptions, index_tars, pack
from tests.speech import make_wav, write_list


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pack(write_list(folder, 12), folder / "out", options=PackOptions(shard_samples=5, relative=True))
    return folder / "out"


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    for path in whole.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(whole)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def problems(folder: Path) -> list[str]:
    return [str(problem) for problem in verify(folder).problems]


def test_a_whole_dataset(dataset: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    report = verify(dataset, jobs=2, progress=lambda *now: seen.append(now))
    size = sum(path.stat().st_size for path in dataset.glob("*.tar"))
    assert report.ok
    assert (report.samples, report.shards, report.size, report.problems) == (12, 3, size, ())
    assert [now[:2] for now in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == size


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_a_shard(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    for name in ("index", MANIFEST, "shard-000001.tar", "shard-000002.tar"):
        (folder / name).symlink_to(whole / name)
    shard = bytearray((whole / "shard-000000.tar").read_bytes())
    shard[data.draw(st.integers(0, len(shard) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "shard-000000.tar").write_bytes(shard)
    report = verify(folder)
    assert not report.ok
    assert all("shard-000000.tar" in str(problem) for problem in report.problems)


def test_a_flipped_byte_of_audio_names_the_sample(dataset: Path) -> None:
    row = Index.load(str(dataset)).rows(1).slice(2, 1).to_pylist()[0]
    at = row["audio_offset"] + row["audio_size"] // 2
    change(dataset / "shard-000001.tar", lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    report = verify(dataset)
    assert report.samples == 11
    assert [type(problem) for problem in report.problems] == [ShardError, ShardError]
    assert "MD5" in str(report.problems[0])
    assert report.problems[1].key == row["key"]
    assert "crc32" in str(report.problems[1])


def test_any_cut(dataset: Path) -> None:
    path = dataset / "shard-000002.tar"
    data = path.read_bytes()
    for cut in [0, 1, *(at for at in range(0, len(data), 512)), len(data) - 1]:
        path.write_bytes(data[:cut])
        found = problems(dataset)
        assert len(found) == 1
        assert "shard-000002.tar" in found[0]
        assert "cut short" in found[0]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda folder: (folder / "shard-000001.tar").unlink(), "no such file"),
        (lambda folder: (folder / "shard-000000.tar").rename(folder / "shard-000001.tar"), "no such file"),
        (lambda folder: change(folder / "shard-000001.tar", lambda data: data + bytes(512)), "bytes: "),
        (lambda folder: change(folder / "shard-000001.tar", lambda data: data + b"more"), "after the end-of-archive"),
        (lambda folder: (folder / "index/part-00000.parquet").unlink(), "no such file"),
        (lambda folder: change(folder / "index/part-00000.parquet", lambda data: data[:-1]), "Parquet"),
    ],
)
def test_damage(dataset: Path, damage: Callable[[Path], object], what: str) -> None:
    damage(dataset)
    assert what in " ".join(problems(dataset))


def test_shards_that_have_changed_places(dataset: Path) -> None:
    (dataset / "shard-000000.tar").rename(dataset / "x")
    (dataset / "shard-000001.tar").rename(dataset / "shard-000000.tar")
    (dataset / "x").rename(dataset / "shard-000001.tar")
    found = " ".join(problems(dataset))
    assert "5 samples of the index are not in the shard" in found
    assert "members outside the index" in found


def test_a_shard_made_anew_with_another_text(dataset: Path) -> None:
    rows = Index.load(str(dataset)).rows(0).to_pylist()
    data = (dataset / "shard-000000.tar").read_bytes()
    at = data.index(rows[3]["text"].encode(), rows[3]["offset"])
    size = len(rows[3]["text"])
    change(dataset / "shard-000000.tar", lambda data: data[:at] + b"?" * size + data[at + size :])
    found = problems(dataset)
    assert len(found) == 2
    assert rows[3]["key"] in found[1]
    assert f"text: '{'?' * size}' in the shard" in found[1]


def test_all_problems_are_told_but_not_thousands(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.tar")
    rows = []
    for i in range(100):
        data, offsets = sample_bytes(f"k{i}", [("wav", make_wav(100))])
        start = writer.append(data)
        rows.append(Row(f"k{i}", 0, start, len(data), start + offsets[0], 244, 0, "wav", 100, 16000, 1, "", None))
    writer.finish()
    batch = rows_batch(rows)
    stage_index(tmp_path, [(ShardInfo.of(batch, name="a.tar", size=writer.size, md5=writer.md5), batch)])
    report = verify(tmp_path)
    assert report.samples == 0
    assert len(report.problems) == 20
    assert all("crc32" in str(problem) for problem in report.problems)


def test_rows_that_are_not_the_manifests(dataset: Path) -> None:
    path = dataset / "index/part-00000.parquet"
    groups = [pq.ParquetFile(path).read_row_group(i) for i in range(3)]
    with pq.ParquetWriter(path, groups[0].schema, store_schema=False) as writer:
        for i, group in enumerate(groups):
            column = pa.array(["changed"] * len(group)) if i == 1 else group["text"]
            writer.write_table(group.set_column(11, group.schema.field("text"), column))
    report = verify(dataset)
    assert [type(problem) for problem in report.problems] == [CorruptIndex]
    assert "shard-000001.tar" in str(report.problems[0])
    assert report.samples == 7


def test_one_key_in_two_shards(tmp_path: Path) -> None:
    folder = tmp_path
    shards = []
    for number in range(2):
        data, _ = sample_bytes("same", [("txt", b"x"), ("wav", make_wav(100, seed=number))])
        writer = ShardWriter(folder / f"{number}.tar")
        writer.append(data)
        writer.finish()
        index_tars(str(folder / f"{number}.tar"), folder / f"index{number}")
        index = Index.load(str(folder / f"index{number}"))
        rows = index.rows(0)
        info = index.shards[0]
        shards.append((ShardInfo.of(rows, name=f"{number}.tar", size=info.size, md5=info.md5), rows))
    stage_index(folder, shards)
    (found,) = problems(folder)
    assert "'same'" in found
    assert "also in 0.tar" in found


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        verify(tmp_path)
    (tmp_path / MANIFEST).write_bytes(random.Random(0).randbytes(100))
    with pytest.raises(CorruptIndex):
        verify(tmp_path)
