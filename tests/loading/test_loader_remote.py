"""The loader over stores that take their time, change, lie or keep a local cache: the same batches as from a folder."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from shardpipe import Batch, ShardLoader
from shardpipe.cache import ShardCache
from shardpipe.dataset import Index
from shardpipe.errors import ConfigError, ShardError, StoreError
from shardpipe.loading.feeding.prefetch import WindowPrefetch
from shardpipe.loading.read import Reader
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import Batching
from shardpipe.store import CountingStore, FailingStore, LocalStore, Retry, RetryingStore, SlowStore, Stat, Store
from tests.forking import ended, forked, needs_fork
from tests.speech import pack_speech

SAMPLES = 60
PLAN: dict[str, Any] = {"batch_size": 4, "window": 10, "lanes": 2, "seed": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("remote"), SAMPLES, shard_samples=7, seconds=(0.05, 0.3))


@pytest.fixture(scope="module")
def expected(data: Path) -> list[Batch]:
    return list(ShardLoader(data, **PLAN))


def far(data: Path | Store) -> CountingStore:
    return CountingStore(SlowStore(data if isinstance(data, Store) else LocalStore(data), 0.001, parallel=8))


def same(some: list[Batch], others: list[Batch]) -> bool:
    return len(some) == len(others) and all(
        a.keys == b.keys and torch.equal(a.audio, b.audio) and torch.equal(a.weights, b.weights)
        for a, b in zip(some, others)
    )


def shard_reads(store: CountingStore) -> list[tuple[str, int, int]]:
    return [read for read in store.reads if read[0].endswith(".tar")]


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"prefetch_bytes": 1}, {"prefetch": 1}, {"workers": 2}])
def test_a_far_store_gives_the_same_batches(data: Path, expected: list[Batch], options: dict[str, Any]) -> None:
    store = SlowStore(LocalStore(data), 0.001, parallel=8)
    assert same(list(ShardLoader(store, **PLAN, **options)), expected)


def test_each_payload_is_read_once_and_nothing_else_of_a_shard(data: Path) -> None:
    store = far(data)
    list(ShardLoader(store, **PLAN))
    index = Index.load(str(data))
    rows = [row for shard in range(len(index.shards)) for row in index.rows(shard).to_pylist()]
    reads = shard_reads(store)
    assert sum(size for _, _, size in reads) <= 1.02 * index.totals.size
    for row in rows:
        touched = [
            read
            for read in reads
            if read[0] == index.shards[row["shard"]].name
            and read[1] <= row["audio_offset"]
            and row["audio_offset"] + row["audio_size"] <= read[1] + read[2]
        ]
        assert len(touched) == 1, row["key"]


def test_what_is_cached_is_not_read_again(data: Path, tmp_path: Path) -> None:
    store = far(data)
    plan = {**PLAN, "window": 8192}  # one window, so that none is fetched ahead
    expected = list(ShardLoader(data, **plan))
    loader = ShardLoader(store, **plan, cache_dir=tmp_path / "cache")
    assert same(list(loader), expected)
    assert sum(size for _, _, size in shard_reads(store)) <= 1.02 * Index.load(str(data)).totals.size
    store.reads.clear()
    list(loader)
    assert not shard_reads(store), "the second epoch comes from the cache"
    again = far(data)
    assert same(list(ShardLoader(again, **plan, cache_dir=tmp_path / "cache")), expected)
    assert not shard_reads(again), "and so does the next run"


def test_a_cache_of_a_folder(data: Path, expected: list[Batch], tmp_path: Path) -> None:
    for _ in range(2):
        assert same(list(ShardLoader(data, **PLAN, cache_dir=tmp_path)), expected)


@pytest.mark.parametrize("steps", [{}, {"batches_per_step": 1000}], ids=["a batch a step", "an epoch a step"])
def test_the_next_window_is_fetched_in_large_reads(
    data: Path, expected: list[Batch], tmp_path: Path, steps: dict[str, int]
) -> None:
    store = far(data)
    batches = []
    for batch in ShardLoader(store, **PLAN, **steps, cache_dir=tmp_path, prefetch=1, threads=1, prefetch_bytes=1):
        batches.append(batch)
        reads = -1  # the loop computes until nothing more is fetched ahead
        while reads < len(store.reads):
            reads = len(store.reads)
            time.sleep(0.1)
    assert same(batches, expected)
    index = Index.load(str(data))
    large = [read for read in shard_reads(store) if read[2] > 2 * max(index.rows(0).column("audio_size").to_pylist())]
    assert len(large) >= 4
    assert len(shard_reads(store)) < SAMPLES


def test_damage_in_the_cache_is_mended(data: Path, expected: list[Batch], tmp_path: Path) -> None:
    list(ShardLoader(far(data), **PLAN, cache_dir=tmp_path))
    rng = random.Random(1)
    for path in tmp_path.glob("*.shard"):
        damaged = bytearray(path.read_bytes())
        for _ in range(20):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
    store = far(data)
    assert same(list(ShardLoader(store, **PLAN, cache_dir=tmp_path)), expected)
    mended = shard_reads(store)
    assert mended
    assert sum(size for _, _, size in mended) < Index.load(str(data)).totals.size
    store.reads.clear()
    assert same(list(ShardLoader(store, **PLAN, cache_dir=tmp_path)), expected)
    assert not shard_reads(store)


def test_bytes_damaged_on_their_way_are_read_again(data: Path, expected: list[Batch]) -> None:
    damaged: set[bytes] = set()

    def once(body: bytes) -> bytes:
        begin = body[:400]  # one read may bring several payloads, and is then repeated for the first alone
        if body[:4] not in (b"RIFF", b"fLaC") or begin in damaged:
            return body
        damaged.add(begin)
        return body[:500] + bytes([body[500] ^ 1]) + body[501:]

    store = FailingStore(far(data), lambda number: once if number % 5 == 0 else None)
    assert same(list(ShardLoader(store, **PLAN)), expected)
    assert len(damaged) > 3


def test_bytes_that_stay_damaged_name_the_sample(data: Path) -> None:
    def always(number: int) -> Any:
        return lambda body: body[:-1] + b"!" if body[:4] in (b"RIFF", b"fLaC") else body

    with pytest.raises(ShardError, match=r"sample 'utt\d+', byte \d+: the audio's CRC-32"):
        list(ShardLoader(FailingStore(far(data), always), **PLAN))


class Changing:
    """A store where the shards that are open at some moment become others of the same size."""

    parallel = 8

    def __init__(self, data: Path) -> None:
        self._inner = LocalStore(data)
        self.url = self._inner.url
        self.changed = False
        self._opened: set[str] = set()

    def stat(self, name: str) -> Stat:
        size, version = self._inner.stat(name)
        if self.changed and name in self._opened:
            return Stat(size, version + "-new")
        self._opened.add(name)
        return Stat(size, version)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._inner.read(name, offset, length)
        return data[::-1] if self.changed and name.endswith(".tar") and name in self._opened else data


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_shard_that_changes_under_the_run(data: Path, on_error: Any) -> None:
    store = Changing(data)
    loader = ShardLoader(store, **PLAN, on_error=on_error, prefetch=1, threads=1, prefetch_bytes=1)
    batches = iter(loader)
    next(batches)
    store.changed = True
    with pytest.raises(StoreError, match=r"shard-\d+\.tar: changed while it was being read.*version.*-new"):
        list(batches)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_shard_of_another_size_than_the_index_says(data: Path, tmp_path: Path, on_error: Any) -> None:
    shutil.copytree(data, tmp_path / "copy")
    with open(tmp_path / "copy" / "shard-000003.tar", "ab") as file:
        file.write(bytes(512))
    with pytest.raises(StoreError, match=r"shard-000003\.tar: \d+ bytes, but the index was made of \d+"):
        list(ShardLoader(tmp_path / "copy", **PLAN, on_error=on_error))


def test_a_failing_store_is_never_skipped(data: Path) -> None:
    def always(number: int) -> Any:
        return ConnectionResetError(104, "reset by peer") if number > 10 else None

    retry = Retry(attempts=3, first_wait=0)
    store = RetryingStore(FailingStore(far(data), always), retry)
    with pytest.raises(StoreError, match="reset by peer.*after 3 attempts") as error:
        list(ShardLoader(store, **PLAN, on_error="skip"))
    assert error.value.attempts == 3


def test_a_stop_does_not_wait_for_a_silent_store(data: Path) -> None:
    """The next attempt would be an hour away."""
    retry = Retry(attempts=1000, first_wait=1e9, longest_wait=3600)
    silent = FailingStore(far(data), lambda number: None if number < 40 else ConnectionError("no answer"))
    thread = threading.Thread(target=lambda: next(iter(ShardLoader(RetryingStore(silent, retry), **PLAN))))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_the_cache_needs_a_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache_bytes is 4096, but it needs a cache_dir"):
        ShardLoader(data, **PLAN, cache_bytes=4096)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        ShardLoader(data, **PLAN, cache_dir=tmp_path / "file")


COLLECTED = """
import faulthandler, gc, sys, threading, time
from shardpipe import ShardLoader
from shardpipe.store import LocalStore, SlowStore
import shardpipe.{module} as module

def collect(*arguments, **keywords):
    name = threading.current_thread().name
    if armed.is_set() and name.startswith("shardpipe") and not collected.is_set():
        collected.set()
        gc.collect()
    return real(*arguments, **keywords)

def abandon():
    loop = iter(loader)
    next(loop)
    kept = [loop]
    kept.append(kept)  # as a traceback that somebody keeps does
    loader._feed.cache._quota.forfeit()

faulthandler.dump_traceback_later(60, exit=True)
gc.disable()
armed, collected = threading.Event(), threading.Event()
real, module.{place} = module.{place}, collect
loader = ShardLoader(
    SlowStore(LocalStore(sys.argv[1]), 0.02), batch_size=1, window=10, lanes=1, threads=1, prefetch=64,
    cache_dir=sys.argv[2], cache_bytes=1 << 26,
)
abandon()
armed.set()
while not collected.wait(0.01):
    loader._feed.cache._quota.forfeit()
while any(thread.name.startswith("shardpipe") for thread in threading.enumerate()):
    time.sleep(0.01)
assert sum(len(batch.keys) for batch in loader)
"""


@pytest.mark.parametrize(
    "place", ["cache.quota:Quota._count", "loading.feeding.prefetch:WindowPrefetch._fetch", "loading.read:crc32"]
)
def test_the_garbage_collector_may_end_a_loop_in_the_midst_of_its_threads(
    data: Path, tmp_path: Path, place: str
) -> None:
    module, _, name = place.partition(":")
    script = COLLECTED.replace("{module}", module).replace("{place}", name)
    done = subprocess.run([sys.executable, "-c", script, str(data), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@needs_fork
def test_a_forked_process_closes_the_windows_of_its_parent(data: Path, tmp_path: Path) -> None:
    index = Index.load(LocalStore(data))
    sequence = BatchSequence(index, Batching(batch_size=4), window=10, lanes=2)
    prefetch = WindowPrefetch(sequence, Reader(index.store, index.shards, ShardCache(tmp_path)), 0, 1)
    with prefetch._lock:  # as another thread might
        child = forked(lambda: (prefetch.made(0), prefetch.close()))
    assert ended(child) == 0
    prefetch.close()


EPOCHS = """
import sys
from shardpipe import ShardLoader
from shardpipe.store import LocalStore, SlowStore
import hashlib
data, cache, limit, seed, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
store = SlowStore(LocalStore(data), 0.001, parallel=8)
loader = ShardLoader(store, batch_size=4, window=10, lanes=2, seed=seed, cache_dir=cache, cache_bytes=limit)
for _ in range(epochs):
    digest = hashlib.sha256()
    for batch in loader:
        digest.update(" ".join(batch.keys).encode() + batch.audio.numpy().tobytes())
    print(digest.hexdigest(), flush=True)
"""


def run(data: Path, cache: Path, limit: int, seed: int, epochs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", EPOCHS, str(data), str(cache), str(limit), str(seed), str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def digests(data: Path, seed: int, epochs: int) -> list[str]:
    import hashlib

    found = []
    loader = ShardLoader(data, batch_size=4, window=10, lanes=2, seed=seed)
    for _ in range(epochs):
        digest = hashlib.sha256()
        for batch in loader:
            digest.update(" ".join(batch.keys).encode() + batch.audio.numpy().tobytes())
        found.append(digest.hexdigest())
    return found


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of some MB, for the cache takes no limit below one."""
    return pack_speech(tmp_path_factory.mktemp("larger"), 120, shard_samples=6, seconds=(1.0, 3.0))


def allocated(folder: Path, pattern: str = "*") -> int:
    total = 0
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def test_two_jobs_share_a_cache_of_half_the_data(larger: Path, tmp_path: Path) -> None:
    limit = Index.load(str(larger)).totals.size // 2
    most = 0
    with run(larger, tmp_path, limit, 1, 3) as one, run(larger, tmp_path, limit, 2, 3) as other:
        while one.poll() is None or other.poll() is None:
            most = max(most, allocated(tmp_path))
            time.sleep(0.002)
        for seed, job in ((1, one), (2, other)):
            assert job.stdout is not None
            assert job.stdout.read().split() == digests(larger, seed, 3)
    assert 0 < most <= limit


def test_killed_while_they_write_to_the_cache_ten_times(larger: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    for _ in range(5):
        with run(larger, tmp_path, 1 << 30, 1, 1000) as one, run(larger, tmp_path, 1 << 30, 2, 1000) as other:
            before = allocated(tmp_path, "*.shard")
            end = time.monotonic() + 60
            while allocated(tmp_path, "*.shard") <= before and time.monotonic() < end:
                time.sleep(0.001)
            for job in (one, other):
                time.sleep(rng.random() * 0.02)
                assert job.poll() is None
                job.kill()
        # Some of it goes again, so that the next ones have something to write.
        shards = sorted(tmp_path.glob("*.shard"))
        assert shards
        for path in rng.sample(shards, k=min(5, len(shards))):
            path.unlink()
    with run(larger, tmp_path, 1 << 30, 1, 2) as job:
        assert job.communicate()[0].split() == digests(larger, 1, 2)
