"""The cache: right bytes or none, within its bound, whoever shares it and whatever is killed."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardpipe.cache import quota as quota_module
from shardpipe.cache import shards as cache_module
from shardpipe.cache.shards import ShardCache
from shardpipe.dataset import ShardInfo
from shardpipe.errors import ConfigError, StoreError
from shardpipe.store import flush
from tests.forking import ended, forked

MIB = 1 << 20
SHARD_SIZE = 2 * MIB
PIECE = 100_000
SPAWN = multiprocessing.get_context("spawn")


def shard_of(number: int, size: int = SHARD_SIZE, md5: Any = None) -> ShardInfo:
    md5 = f"{number:032x}" if md5 is None else md5
    return ShardInfo(name=f"{number}.tar", samples=1, size=size, md5=md5, frames=1, seconds=1.0, checksum=f"c{number}")


@lru_cache
def content(number: int, size: int = SHARD_SIZE) -> bytes:
    """A shard's bytes; none of them 0, so that a hole is never right by chance."""
    return np.random.Generator(np.random.Philox(number)).integers(1, 256, size, dtype=np.uint8).tobytes()


def pieces(size: int = SHARD_SIZE) -> list[tuple[int, int]]:
    return [(offset, min(PIECE, size - offset)) for offset in range(0, size, PIECE)]


def fetch(cache: ShardCache, number: int, offset: int, length: int, data: bytes) -> tuple[bytes, bool]:
    """What the read side does: its bytes if the checksum is right, else the store's, kept; and whether it hit."""
    right = data[offset : offset + length]
    found = cache.read(shard_of(number), offset, length)
    if found is not None and zlib.crc32(found) == zlib.crc32(right):
        return found, True
    cache.write(shard_of(number), offset, right)
    return right, False


def allocated(folder: Path) -> int:
    """Bytes of disk that the folder's files take, while nobody can evict: it only grows as we add it up."""
    with quota_module._locked(str(folder)):
        total = 0
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
        return total


def leases(folder: Path) -> list[Path]:
    return list(folder.glob("*.lease"))


def shards_in(folder: Path) -> set[int]:
    return {int(path.name[:32], 16) for path in folder.glob("*.shard")}


def file_of(folder: Path, number: int) -> Path:
    return folder / f"{number:032x}-{SHARD_SIZE}.shard"


def used_at(path: Path, seconds_ago: float) -> None:
    os.utime(path, (time.time() - seconds_ago,) * 2)


# What is written is read, what is not is missing.


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


# Names.


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


# The bound.


def test_the_least_recently_used_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_TOUCH", 0.0)
    cache = ShardCache(tmp_path, 8 * MIB)
    data = {number: content(number) for number in range(1, 5)}
    for number in (1, 2, 3):
        for offset, length in pieces():
            fetch(cache, number, offset, length, data[number])
        used_at(file_of(tmp_path, number), 100 - number)
    assert cache.read(shard_of(1), 0, 10) is not None  # the oldest no longer
    for offset, length in pieces():
        fetch(cache, 4, offset, length, data[4])
    assert shards_in(tmp_path) == {1, 3, 4}
    assert allocated(tmp_path) <= 8 * MIB


def test_reads_mark_a_shard_as_used_once_a_second(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 8 * MIB)
    cache.write(shard_of(1), 0, b"abc")
    file = file_of(tmp_path, 1)
    used_at(file, 1000)
    assert cache.read(shard_of(1), 0, 3) == b"abc"
    assert time.time() - file.stat().st_mtime < 100
    used_at(file, 1000)
    assert cache.read(shard_of(1), 0, 3) == b"abc"
    assert time.time() - file.stat().st_mtime > 900
    assert cache.holds(shard_of(1), 0, 3)
    assert time.time() - file.stat().st_mtime > 900


def test_an_evicted_shard_gives_its_space_back_though_it_is_open(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * MIB)
    cache.write(shard_of(1), 0, content(1))
    with open(file_of(tmp_path, 1), "r+b") as handle:
        cache.write(shard_of(2), 0, content(2))
        found = os.fstat(handle.fileno())
        assert (found.st_nlink, found.st_blocks) == (0, 0)
        os.pwrite(handle.fileno(), b"late", 100)  # as another process may, at work in it
    assert shards_in(tmp_path) == {2}
    assert cache.read(shard_of(1), 100, 4) is None


@pytest.mark.parametrize("limit", [MIB, 3 * MIB, 8 * MIB])
@pytest.mark.parametrize("piece", [500, 5_000, 200_000])
def test_the_folder_never_takes_more_than_its_limit(tmp_path: Path, limit: int, piece: int) -> None:
    """Small pieces too: they take whole blocks, and each is an extent of its own, all of which cost space as well."""
    cache, random_ = ShardCache(tmp_path, limit), random.Random(1)
    most, steps = 0, 4 * limit // max(piece, 4096)
    for i in range(steps):
        number = random_.randrange(12)
        cache.write(shard_of(number), random_.randrange(SHARD_SIZE - piece), b"x" * piece)
        if i % (steps // 20) == 0:
            for path in tmp_path.glob("*.shard"):
                flush(path)  # what is allocated late comes to light
            most = max(most, allocated(tmp_path))
            assert most <= limit
    assert most > limit / 2


def test_what_many_small_shards_will_take_once_written_back_counts(tmp_path: Path) -> None:
    """ext4 gives a file with more than four extents a block for their tree, but only when it writes them back."""
    limit = 3 * MIB
    cache = ShardCache(tmp_path, limit)
    for number in range(200):
        for i in range(6):
            cache.write(shard_of(number), 20_000 * i, b"x" * 500)
    for path in tmp_path.glob("*.shard"):
        flush(path)
    assert limit / 2 < allocated(tmp_path) <= limit


def test_what_one_is_granted_the_others_leave_alone(tmp_path: Path) -> None:
    one, other = ShardCache(tmp_path, 4 * MIB), ShardCache(tmp_path, 4 * MIB)
    with one._quota.reserved(0, 3 * MIB), pytest.raises(OSError, match="no room"), other._quota.reserved(0, MIB):
        pass
    one.close()
    with other._quota.reserved(0, MIB):
        pass


def test_leases_of_the_living_count_and_those_of_the_dead_go(tmp_path: Path) -> None:
    limit = 4 * MIB
    with open(tmp_path / f"{1:016x}.lease", "wb") as living:
        living.write(b"%020d" % (3 * MIB))
        living.flush()
        fcntl.flock(living, fcntl.LOCK_EX)
        (tmp_path / f"{2:016x}.lease").write_bytes(b"%020d" % (50 * MIB))
        cache = ShardCache(tmp_path, limit)
        for offset, length in pieces():
            fetch(cache, 1, offset, length, content(1))
        assert 300_000 < file_of(tmp_path, 1).stat().st_blocks * 512 < MIB
        assert {path.name for path in leases(tmp_path)} > {f"{1:016x}.lease"}
        assert not (tmp_path / f"{2:016x}.lease").exists()
    for offset, length in pieces():
        fetch(cache, 1, offset, length, content(1))
    assert file_of(tmp_path, 1).stat().st_blocks * 512 >= SHARD_SIZE
    cache.close()
    assert leases(tmp_path) == []


def test_what_threads_are_just_writing_is_promised(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 4 * MIB)
    with cache._quota.reserved(0, 3 * MIB), pytest.raises(OSError, match="no room"), cache._quota.reserved(0, MIB):
        pass
    with cache._quota.reserved(0, 3 * MIB):
        pass


def test_foreign_files_stay_and_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["model.pt", f"{1:032x}.shard", f"x{1:032x}-5.shard", f"{1:032x}-5.shard.new", f"{1:016x}.leases"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(MIB))
    cache = ShardCache(tmp_path, 6 * MIB)
    data = content(1)
    for offset, length in pieces():
        fetch(cache, 1, offset, length, data)
    assert 0 < allocated(tmp_path) <= 6 * MIB
    assert all((tmp_path / name).read_bytes() == bytes(MIB) for name in names)
    assert not caplog.records
    (tmp_path / "more").write_bytes(bytes(MIB))
    cache._quota.forfeit()
    cache.write(shard_of(2), 0, data[:PIECE])
    assert cache.read(shard_of(2), 0, PIECE) is None
    assert len(caplog.records) == 1
    assert "no room" in caplog.text
    assert f"within {6 * MIB}" in caplog.text
    assert re.search(rf"others in the folder {6 * MIB + 8192},", caplog.text)  # and lock and lease
    assert "cache_bytes" in caplog.text


def test_a_range_larger_than_the_limit_evicts_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ShardCache(tmp_path, MIB)
    cache.write(shard_of(1), 0, content(1)[:PIECE])
    cache.write(shard_of(2), 0, content(2))
    assert shards_in(tmp_path) == {1}
    assert len(caplog.records) == 1


def test_each_keeps_to_its_own_limit(tmp_path: Path) -> None:
    large, small = ShardCache(tmp_path, 16 * MIB), ShardCache(tmp_path, 3 * MIB)
    for number in range(4):
        for offset, length in pieces():
            fetch(large, number, offset, length, content(number))
    assert 8 * MIB < allocated(tmp_path) < 16 * MIB
    large.close()
    small.write(shard_of(9), 0, content(9)[:PIECE])
    assert allocated(tmp_path) <= 3 * MIB
    assert small.read(shard_of(9), 0, PIECE) == content(9)[:PIECE]


def test_without_a_limit_all_is_kept(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    for number in range(10):
        for offset, length in pieces():
            fetch(cache, number, offset, length, content(number))
    assert shards_in(tmp_path) == set(range(10))


# Failures.


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


FULL_DISK = """
import logging, os, sys
from tests.cache.test_cache import *
logging.basicConfig(stream=sys.stdout, format="%(message)s")
folder, limit = Path(sys.argv[1]) / "cache", (int(sys.argv[2]) or None)
cache, filler = ShardCache(folder, limit), folder.parent / "filler"
filler.write_bytes(bytes(2 * MIB))
free = lambda: (s := os.statvfs(folder)).f_bavail * s.f_frsize
for number in range(8):
    for offset, length in pieces():
        fetch(cache, number, offset, length, content(number))
assert len(shards_in(folder)) < 8, "the disk holds not half of it"
assert free() >= 400_000, free()
used = allocated(folder)
assert used > 4 * MIB, used
# The disk fills up from elsewhere: the cache makes way.
filler.open("ab").write(bytes(free()))
cache._quota.forfeit()
cache.write(shard_of(9), 0, content(9)[:PIECE])
assert cache.read(shard_of(9), 0, PIECE) == content(9)[:PIECE]
assert allocated(folder) < used
# And it fills up while the lease lasts.
for path in folder.glob("*.shard"): path.unlink()
cache._quota.forfeit()
cache.write(shard_of(1), 0, b"x")
filler.open("ab").write(bytes(max(free() - 8192, 0)))
cache._quota._left = MIB
cache.write(shard_of(1), 0, content(1)[:PIECE])
assert cache._paused_until
print("done")
"""


@pytest.mark.parametrize("limit", [0, 100 * MIB])
def test_a_full_disk_makes_the_cache_yield(tmp_path: Path, limit: int) -> None:
    """On a real disk of 8 MiB, where one may be mounted."""
    mount = f"mount -t tmpfs -o size=8m none {tmp_path} && exec {sys.executable} -c '{FULL_DISK}' {tmp_path} {limit}"
    trial = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs none {tmp_path}"], capture_output=True, check=False
    )
    if trial.returncode:
        pytest.skip("cannot mount here")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert re.search(r"nothing is cached for 60 seconds \(No space left on device\)", lines[0])
    assert lines[1] == "done"


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


def test_a_lock_that_was_removed_once_opened_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, flock = ShardCache(tmp_path, 8 * MIB), fcntl.flock
    removed: list[Path] = []

    def removes_it_first(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(tmp_path / "lock")
            removed[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removes_it_first)
    cache.write(shard_of(1), 0, b"abc")
    assert removed
    assert (tmp_path / "lock").exists()
    assert cache.read(shard_of(1), 0, 3) == b"abc"


def test_a_lock_that_is_not_let_go_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(tmp_path, 8 * MIB)
    monkeypatch.setattr(quota_module, "_LOCK_WAIT", 0.05)
    with open(tmp_path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.write(shard_of(1), 0, b"abc")
    assert "does not let go" in caplog.text
    assert cache.read(shard_of(1), 0, 3) is None


# Threads and processes.


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


def test_a_forked_child_has_its_own_lease_and_keeps_no_other_alive(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 8 * MIB)
    cache.write(shard_of(1), 0, b"abc")
    (parents,) = leases(tmp_path)
    go_read, go = os.pipe()
    done, done_write = os.pipe()

    def child_writes() -> None:
        os.read(go_read, 1)
        cache.write(shard_of(1), 100, b"def")
        os.write(done_write, b"%d" % len(leases(tmp_path)))

    with cache._quota._mutex:  # as another thread might
        child = forked(child_writes)
    try:
        os.close(cache._quota._lease)  # type: ignore[arg-type]
        cache._quota._lease = None  # as if killed: its lease must be void, though the child lives
        os.write(go, b".")
        assert os.read(done, 10) == b"1"
        assert not parents.exists()
    finally:
        assert ended(child) == 0
        for descriptor in (go_read, go, done, done_write):
            os.close(descriptor)
    assert cache.read(shard_of(1), 100, 3) == b"def"


def test_a_cache_is_no_url() -> None:
    with pytest.raises(ConfigError, match="cache_dir is 's3://...', but it must be a path"):
        ShardCache("s3://bucket/cache", 8 * MIB)


def test_a_child_forked_from_under_the_lock_does_not_hold_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 8 * MIB)
    with quota_module._locked(str(tmp_path)):
        child = forked(lambda: time.sleep(50))
    try:
        cache.write(shard_of(1), 0, b"abc")
        assert cache.read(shard_of(1), 0, 3) == b"abc"
    finally:
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL


WRITER = """
import random, sys
from tests.cache.test_cache import *
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


def epoch(folder: Path, limit: int, seed: int, queue: Any) -> None:
    """Two epochs over six shards; what was wrong, and how many pieces came from the cache."""
    cache, random_ = ShardCache(folder, limit), random.Random(seed)
    data = [content(number) for number in range(6)]
    wrong = hits = 0
    for _ in range(6):
        wanted = [(number, *piece) for number in range(6) for piece in pieces()]
        random_.shuffle(wanted)
        for number, offset, length in wanted:
            got, hit = fetch(cache, number, offset, length, data[number])
            wrong += got != data[number][offset : offset + length]
            hits += hit
    queue.put((wrong, hits))


def test_two_processes_on_half_the_data(tmp_path: Path) -> None:
    limit = 6 * SHARD_SIZE // 2
    queue = SPAWN.SimpleQueue()
    jobs = [SPAWN.Process(target=epoch, args=(tmp_path, limit, seed, queue)) for seed in (1, 2)]
    for job in jobs:
        job.start()
    most = samples = 0
    while any(job.is_alive() for job in jobs):
        if (tmp_path / "lock").exists():
            most, samples = max(most, allocated(tmp_path)), samples + 1
        time.sleep(0.002)
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    results = [queue.get(), queue.get()]
    assert [wrong for wrong, _ in results] == [0, 0]
    assert all(hits > 20 for _, hits in results)
    assert limit / 2 < most <= limit
    assert samples > 20
