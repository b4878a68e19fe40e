"""The folder never takes more than its limit, by whomever it is filled."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shardpipe import ShardLoader
from shardpipe.cache import quota as quota_module
from shardpipe.cache import shards as cache_module
from shardpipe.cache.lock import locked
from shardpipe.cache.shards import ShardCache
from shardpipe.store import LocalStore, SlowStore, flush
from tests.cache.folders import (
    MIB,
    PIECE,
    SHARD_SIZE,
    SPAWN,
    allocated,
    content,
    fetch,
    file_of,
    leases,
    pieces,
    shard_of,
    shards_in,
    used_at,
)
from tests.forking import ended, forked
from tests.speech import pack_speech


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


FULL_DISK = """
import logging, os, sys
from pathlib import Path
from shardpipe.cache import ShardCache
from tests.cache.folders import *
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


def test_a_child_forked_from_under_the_lock_does_not_hold_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 8 * MIB)
    with locked(str(tmp_path), wait=5.0):
        child = forked(lambda: time.sleep(50))
    try:
        cache.write(shard_of(1), 0, b"abc")
        assert cache.read(shard_of(1), 0, 3) == b"abc"
    finally:
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL


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


HOLDER = """
import fcntl, os, signal, sys
lock = open(sys.argv[1] + "/lock", "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def stopped_holder(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Has a folder's lock be held by a process that is stopped."""
    processes: list[subprocess.Popen[str]] = []

    def hold(folder: Path) -> None:
        command = [sys.executable, "-c", HOLDER, str(folder)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        assert processes[-1].stdout.readline() == "held\n"

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_many_wait_once_for_a_process_that_is_stopped(
    tmp_path: Path, stopped_holder: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    real = locked

    @contextmanager
    def counted(folder: str, *, wait: float) -> Iterator[int]:
        waits.append(wait)
        with real(folder, wait=wait) as lock:
            yield lock

    monkeypatch.setattr(quota_module, "_LOCK_WAIT", 0.5)
    monkeypatch.setattr(quota_module, "locked", counted)
    ShardCache(tmp_path, 64 * MIB)
    stopped_holder(tmp_path)
    waits.clear()
    cache = ShardCache(tmp_path, 64 * MIB)
    assert not waits, "what is there already needs no lock to be looked at"
    threads = 64
    all_there = threading.Barrier(threads)

    def write(number: int) -> None:
        all_there.wait()
        cache.write(shard_of(number), 0, b"abc")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
    assert waits == [0.5]
    assert len(caplog.records) == 1
    assert "another process does not let go of the folder's lock" in caplog.text
    assert "60 seconds" in caplog.text
    # The next tries wait for nobody, until the lock is had.
    for _ in range(3):
        monkeypatch.setattr(cache, "_paused_until", 0.0)
        cache.write(shard_of(1), 0, b"abc")
    assert waits[1:] == [0.0] * 3
    assert len(caplog.records) == 1


def test_a_loop_beside_a_process_that_is_stopped(tmp_path: Path, stopped_holder: Any) -> None:
    data = pack_speech(tmp_path / "speech", 40, shard_samples=10, seconds=(0.05, 0.1))
    expected = [batch.keys for batch in ShardLoader(data, batch_size=4)]
    ShardCache(tmp_path / "cache")
    stopped_holder(tmp_path / "cache")
    store = SlowStore(LocalStore(data), 0.001, parallel=64)
    loader = ShardLoader(store, batch_size=4, cache_dir=tmp_path / "cache")
    assert [batch.keys for batch in loader] == expected
