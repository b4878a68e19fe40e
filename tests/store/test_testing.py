"""The stores that tests and benchmarks put between: they fail on schedule, and they are as slow as they say."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import StoreError
from shardpipe.runtime.stopping import _abandon_all
from shardpipe.store import CountingStore, FailingStore, Fault, LocalStore, SlowStore, abandon_when
from shardpipe.store.testing.slow import SharedLine
from tests.forking import ended, forked, needs_fork

CONTENT = bytes(range(256)) * 8


@pytest.mark.parametrize("as_function", [False, True])
def test_a_schedule_says_which_request_fails_and_how(tmp_path: Path, as_function: bool) -> None:
    (tmp_path / "x").write_bytes(CONTENT)

    def late(data: bytes) -> bytes:
        raise ConnectionResetError(104, f"reset after {len(data)} bytes")

    faults: list[Fault] = [None, PermissionError("no"), late, lambda data: data[:3], lambda data: data[::-1], late]
    counting = CountingStore(LocalStore(tmp_path))
    store = FailingStore(counting, (lambda n: faults[n] if n < len(faults) else None) if as_function else faults)
    assert store.read("x", 0, 8) == CONTENT[:8]
    with pytest.raises(StoreError, match=r"x: cannot be read \(no\)") as raised:
        store.read("x", 0, 8)
    assert not raised.value.transient
    assert len(counting.reads) == 1
    with pytest.raises(StoreError, match="reset after 8 bytes") as raised:
        store.read("x", 0, 8)
    assert raised.value.transient
    assert len(counting.reads) == 2
    with pytest.raises(StoreError, match="asked for 8 bytes at 0, got 3") as raised:
        store.read("x", 0, 8)
    assert raised.value.transient
    assert store.read("x", 0, 8) == CONTENT[7::-1]
    with pytest.raises(StoreError, match="reset after 0 bytes"):
        store.stat("x")
    assert store.stat("x").size == len(CONTENT)


@pytest.mark.parametrize("line", [(3600.0,), (0.0, 1e-3)])
def test_a_slow_store_gives_up_what_nobody_waits_for(tmp_path: Path, line: tuple[float, ...]) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    stopped = threading.Event()
    store = SlowStore(LocalStore(tmp_path), *line)
    with ThreadPoolExecutor(1, initializer=abandon_when, initargs=(stopped,)) as threads:
        reading = threads.submit(store.read, "x")
        with pytest.raises(TimeoutError):
            reading.result(0.05)
        stopped.set()
        with pytest.raises(StoreError, match="x: given up"):
            reading.result(60)
    assert not store._line._goals


@needs_fork
def test_a_forked_process_has_a_slow_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    store = SlowStore(LocalStore(tmp_path), 0.0, 1e9)

    def mine() -> None:
        assert store.read("x") == CONTENT

    with store._lock:  # as another thread might
        child = forked(mine)
    assert ended(child) == 0


@needs_fork
def test_a_forked_process_gives_up_nothing_of_its_parent() -> None:
    stopped = threading.Event()

    def mine() -> None:
        _abandon_all()
        assert not stopped.is_set()

    with ThreadPoolExecutor(1, initializer=abandon_when, initargs=(stopped,)) as threads:
        threads.submit(int).result()
        assert ended(forked(mine)) == 0


def test_a_line_is_shared_equally() -> None:
    line = SharedLine(100.0)
    long = line.begin(300, now=1.0)
    assert line.earliest_end(long, now=1.0) == pytest.approx(4.0)
    # After 100 bytes of the long one, a short one of 50 takes half of the line for a second.
    short = line.begin(50, now=2.0)
    assert line.earliest_end(short, now=2.0) == pytest.approx(3.0)
    assert line.earliest_end(long, now=2.0) == pytest.approx(4.5)
    assert line.earliest_end(short, now=2.9) == pytest.approx(3.0)
    assert line.earliest_end(short, now=3.5) is None
    # The line was the long one's again from 3.0 on, although nobody looked before 3.5.
    assert line.earliest_end(long, now=3.5) == pytest.approx(4.5)
    assert line.earliest_end(long, now=4.6) is None
    # It stood idle since: what was not used then is gone.
    assert line.earliest_end(line.begin(100, now=9.0), now=9.0) == pytest.approx(10.0)


def test_who_leaves_a_line_leaves_it_to_the_others() -> None:
    line = SharedLine(100.0)
    stays, leaves = line.begin(300, now=0.0), line.begin(500, now=0.0)
    line.leave(leaves, now=2.0)
    assert line.earliest_end(stays, now=2.0) == pytest.approx(4.0)
    line.leave(stays, now=5.0)  # it has ended before
    assert line.earliest_end(line.begin(100, now=5.0), now=5.0) == pytest.approx(6.0)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 1000)), min_size=1, max_size=20))
def test_a_line_carries_no_more_than_its_rate_and_no_less(transfers: list[tuple[int, int]]) -> None:
    line = SharedLine(1000.0)
    transfers.sort()
    goals = [line.begin(size, now / 1000) for now, size in transfers]
    last = transfers[-1][0] / 1000
    # The last end is that of a single queue, however the line is shared.
    queue = 0.0
    for now, size in transfers:
        queue = max(queue, now / 1000) + size / 1000
    assert max(line.earliest_end(goal, last) or 0.0 for goal in goals) == pytest.approx(queue)


def test_a_slow_store_waits_for_latency_and_bandwidth(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    store = SlowStore(LocalStore(tmp_path), 0.05, 20 * len(CONTENT))
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(store.read, ["x"] * 8)) == {CONTENT}
    # At least: 50 ms for all of them together, then 8 files at 20 files a second.
    assert time.monotonic() - started >= 0.05 + 0.4
    started = time.monotonic()
    pickle.loads(pickle.dumps(store)).stat("x")
    assert time.monotonic() - started >= 0.05
