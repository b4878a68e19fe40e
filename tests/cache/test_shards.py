"""What is written to the cache is read, what is not is missing; whatever happens to its folder."""

from __future__ import annotations

import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardpipe.cache import quota as quota_module
from shardpipe.cache.shards import ShardCache
from shardpipe.dataset import ShardInfo
from shardpipe.errors import ConfigError, StoreError
from tests.cache.folders import MIB, PIECE, SHARD_SIZE, allocated, content, fetch, file_of, leases, pieces, shard_of


@pytest.mark.parametrize("sees_holes", [True, False])
def test_what_is_written_is_read_and_the_rest_is_missing(tmp_path: Path, sees_holes: bool) -> None:
    cache, data = ShardCache(tmp_path / "deep" / "cache", 16 * MIB), content(1)
    cache._quota.sees_holes = sees_holes
    assert cache.read(shard_of(1), 0, 10) is None
    cache.write(shard_of(1), 500_000, memoryview(data)[500_000:600_000])
    assert cache.read(shard_of(1), 500_000, 100_000) == data[500_000:600_000]
    assert cache.read(shard_of(1), 512_345, 10) == data[512_345:512_355]
    if sees_holes:
        assert cache.read(shard_of(1), 0, 10) is None
        assert cache.read(shard_of(1), 400_000, 150_000) is None  # a hole at its start
        assert cache.read(shard_of(1), 550_000, 150_000) is None  # a hole at its end
    else:
        assert cache.read(shard_of(1), 0, 10) == bytes(10)
    assert cache.read(shard_of(2), 500_000, 10) is None
    assert cache.read(shard_of(1), SHARD_SIZE - 10, 20) is None
    assert cache.read(shard_of(1), SHARD_SIZE + 5, 1) is None
    (file,) = (tmp_path / "deep" / "cache").glob("*.shard")
    assert file.stat().st_size == SHARD_SIZE
    assert file.stat().st_blocks * 512 < SHARD_SIZE / 10


def test_the_end_of_a_shard_is_kept_too(tmp_path: Path) -> None:
    size = 12_345
    cache, data = ShardCache(tmp_path, 4 * MIB), content(1, size)
    cache.write(shard_of(1, size), 12_000, data[12_000:])
    assert cache.read(shard_of(1, size), 12_000, 345) == data[12_000:]
    assert cache.holds(shard_of(1, size), 12_000, 345)


ranges = st.tuples(st.integers(0, 60_000), st.integers(1, 30_000))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1), ranges), max_size=20), st.booleans())
def test_never_wrong_bytes_but_at_a_holes_rim(steps: list[Any], sees_holes: bool) -> None:
    """Read is exact where all was written; elsewhere it is None, or shows zeros where nothing was written."""
    size = 90_000
    with tempfile.TemporaryDirectory() as folder:
        cache = ShardCache(folder, 8 * MIB)
        cache._quota.sees_holes = sees_holes
        model = [bytearray(size), bytearray(size)]
        for is_write, number, (offset, length) in steps:
            if is_write:
                model[number][offset : offset + length] = content(number, size)[offset : offset + length]
                cache.write(shard_of(number, size), offset, content(number, size)[offset : offset + length])
            found = cache.read(shard_of(number, size), offset, length)
            expected = bytes(model[number][offset : offset + length])
            if 0 not in expected:
                assert found == expected
                assert cache.holds(shard_of(number, size), offset, length) is sees_holes
            assert found in (None, expected)
        cache.close()


@pytest.mark.parametrize("harm", ["flip", "zeros", "truncate", "empty", "remove"])
def test_harmed_files_are_missing_and_mended(tmp_path: Path, harm: str) -> None:
    cache, data = ShardCache(tmp_path, 16 * MIB), content(1)
    for offset, length in pieces():
        fetch(cache, 1, offset, length, data)
    file = file_of(tmp_path, 1)
    with open(file, "r+b") as handle:
        handle.seek(150_000)
        if harm in ("flip", "zeros"):
            handle.write(bytes([data[150_000] ^ 4]) if harm == "flip" else bytes(200_000))
        elif harm in ("truncate", "empty"):
            handle.truncate(150_000 if harm == "truncate" else 0)
        else:
            file.unlink()
    hits = [fetch(cache, 1, offset, length, data)[1] for offset, length in pieces()]
    assert not hits[1]
    assert hits[0] == (harm not in ("empty", "remove"))
    assert all(fetch(cache, 1, offset, length, data)[1] for offset, length in pieces())


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_lies_in_a_shards_place_is_missing_and_left_alone(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "precious"
    target.write_bytes(content(1))
    folder = tmp_path / "cache"
    cache, file = ShardCache(folder, 4 * MIB), file_of(folder, 1)
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to(target)
    else:
        os.mkfifo(file)
    assert cache.read(shard_of(1), 0, 10) is None
    cache.write(shard_of(1), 0, b"x" * 10)
    assert target.read_bytes() == content(1)
    assert file.is_dir() or file.is_symlink() or file.is_fifo()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("md5", ["", "../../etc/passwd", "/etc/passwd", "A" * 32, "0" * 31, f"{0:032x}\n", None, 7])
def test_no_md5_leads_out_of_the_folder(tmp_path: Path, md5: Any) -> None:
    cache = ShardCache(tmp_path / "cache", 4 * MIB)
    shard = ShardInfo(name="a", samples=1, size=100, md5=md5, frames=1, seconds=1.0, checksum="c")
    cache.write(shard, 0, b"abc")
    assert cache.read(shard, 0, 3) == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert len(list((tmp_path / "cache").glob("*.shard"))) == 1
    # Two shards of whose content the manifest says nothing are told apart by what it says of their rows.
    other = ShardInfo(name="a", samples=1, size=100, md5=md5, frames=1, seconds=1.0, checksum="d")
    assert cache.read(other, 0, 3) is None


def test_the_same_content_is_shared_and_another_is_not(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 4 * MIB)
    cache.write(shard_of(1), 0, b"abc")
    elsewhere = ShardInfo(
        name="s3://x/y.tar", samples=2, size=SHARD_SIZE, md5=f"{1:032x}", frames=2, seconds=2.0, checksum="z"
    )
    assert ShardCache(tmp_path).read(elsewhere, 0, 3) == b"abc"
    assert cache.read(shard_of(1, SHARD_SIZE + 1), 0, 3) is None


@pytest.mark.parametrize("limit", [0, -1, MIB - 1])
def test_a_useless_limit_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ConfigError, match=r"cache_bytes is .*1 MiB"):
        ShardCache(tmp_path / "cache", limit)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"file: cannot serve as a cache \(.*Give a cache_dir"):
        ShardCache(tmp_path / "file", MIB)
    with pytest.raises(StoreError, match=r"cannot serve as a cache \(.*Give a cache_dir"):
        ShardCache("/proc/cache", MIB)


def test_a_file_system_without_sparse_files_is_refused(tmp_path: Path) -> None:
    """What such a file system would make of the probe."""
    (tmp_path / "lock").write_bytes(bytes(quota_module._PROBE))
    with pytest.raises(StoreError, match="no sparse files"):
        ShardCache(tmp_path, MIB)


def test_a_failing_write_pauses_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, data = ShardCache(tmp_path, 8 * MIB), content(1)
    cache.write(shard_of(1), 0, data[:PIECE])
    blocked = file_of(tmp_path, 2)
    blocked.mkdir()
    for _ in range(3):
        cache.write(shard_of(2), 0, data[:PIECE])
        cache.write(shard_of(3), 0, data[:PIECE])
    assert cache.read(shard_of(3), 0, PIECE) is None  # paused
    assert cache.read(shard_of(1), 0, PIECE) == data[:PIECE]
    monkeypatch.setattr(cache, "_paused_until", 0.0)
    cache.write(shard_of(3), 0, data[:PIECE])
    assert cache.read(shard_of(3), 0, PIECE) == data[:PIECE]
    cache.write(shard_of(2), 0, data[:PIECE])
    assert [(record.name, record.levelno) for record in caplog.records] == [("shardpipe", logging.WARNING)]
    assert "Is a directory" in caplog.text
    assert "60 seconds" in caplog.text


def test_a_cleared_folder_is_filled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    cache, data = ShardCache(folder, 8 * MIB), content(1)
    cache.write(shard_of(1), 0, data[:10])
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert cache.read(shard_of(1), 0, 10) is None
    cache.write(shard_of(1), 0, data[:10])  # fails
    monkeypatch.setattr(cache, "_paused_until", 0.0)
    cache.write(shard_of(1), 0, data[:10])
    assert cache.read(shard_of(1), 0, 10) == data[:10]
    assert len(leases(folder)) == 1


def test_many_threads(tmp_path: Path) -> None:
    limit = 6 * MIB
    cache, data = ShardCache(tmp_path, limit), [content(number) for number in range(6)]
    wrong: list[Any] = []
    over: list[int] = []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        for _ in range(250):
            number, (offset, length) = random_.randrange(6), random_.choice(pieces())
            if fetch(cache, number, offset, length, data[number])[0] != data[number][offset : offset + length]:
                wrong.append((number, offset))
            if (total := allocated(tmp_path)) > limit:
                over.append(total)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not over
    assert cache._quota._in_flight == 0


def test_it_travels(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 4 * MIB)
    cache.write(shard_of(1), 0, b"abc")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.limit_bytes == 4 * MIB
    assert copy.read(shard_of(1), 0, 3) == b"abc"
    copy.write(shard_of(1), 100, b"def")
    assert len(leases(tmp_path)) == 2
    del copy
    assert len(leases(tmp_path)) == 1


def test_a_cache_is_no_url() -> None:
    with pytest.raises(ConfigError, match="cache_dir is 's3://...', but it must be a path"):
        ShardCache("s3://bucket/cache", 8 * MIB)


WRITER = """
import random, sys
from pathlib import Path
from shardpipe.cache import ShardCache
from tests.cache.folders import *
cache, random_ = ShardCache(sys.argv[1], int(sys.argv[2])), random.Random(int(sys.argv[3]))
data = [content(number) for number in range(6)]
print("ready", flush=True)
while True:
    number, (offset, length) = random_.randrange(6), random_.choice(pieces())
    fetch(cache, number, offset, length, data[number])
"""


def test_sigkill_leaves_nothing_that_hurts(tmp_path: Path) -> None:
    limit, random_ = 6 * MIB, random.Random(1)
    data = [content(number) for number in range(6)]
    for trial in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(limit), str(trial)], stdout=subprocess.PIPE
        )
        with writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(random_.uniform(0.01, 0.15))
            os.kill(writer.pid, signal.SIGKILL)
        assert allocated(tmp_path) <= limit
    assert leases(tmp_path), "the last one died without a lease: nothing was tried"
    cache = ShardCache(tmp_path, limit)
    wanted = [(number, *piece) for number in range(6) for piece in pieces()]
    kept = [cache.read(shard_of(number), offset, length) for number, offset, length in wanted]
    assert (
        sum(found == data[number][offset : offset + length] for found, (number, offset, length) in zip(kept, wanted))
        > len(wanted) / 10
    )
    for number, offset, length in wanted:
        assert fetch(cache, number, offset, length, data[number])[0] == data[number][offset : offset + length]
        assert allocated(tmp_path) <= limit
    assert len(leases(tmp_path)) == 1
    cache.close()
    assert {path.suffix for path in tmp_path.iterdir()} == {".shard", ""}
