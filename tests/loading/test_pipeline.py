"""Work done ahead: in order, within its bounds, and with nothing left behind, however it ends."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shardpipe.loading.feeding.pipeline import Pipeline
from tests.forking import ended, forked, needs_fork


def pipeline(plan: Iterator[int], **options: Any) -> Pipeline[int, Any, Any]:
    given: dict[str, Any] = {
        "reads": lambda work: [],
        "make": lambda work, read: work * 10,
        "size": lambda work: 1,
        "threads": 3,
        "parallel": 1,
        "most_made": 4,
        "most_bytes": 100,
    }
    return Pipeline(plan, **{**given, **options})


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardpipe")]


def settled(reached: Callable[[], bool]) -> bool:
    """Whether a state is reached within a few seconds and kept for a moment."""
    end = time.monotonic() + 5
    while not reached() and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    return reached()


class Ahead:
    """A plan, and how far it has been taken."""

    def __init__(self, stop: int) -> None:
        self.planned = 0
        self._stop = stop

    def __iter__(self) -> Iterator[int]:
        for i in range(self._stop):
            self.planned = i + 1
            yield i


@pytest.mark.parametrize("number", [0, 1, 3, 200])
@pytest.mark.parametrize("parallel", [1, 8])
def test_results_come_in_order(number: int, parallel: int) -> None:
    def make(work: int, read: list[int]) -> tuple[int, list[int]]:
        time.sleep(work % 7 / 2000)
        return work, read

    reading = pipeline(
        iter(range(number)),
        reads=lambda work: [lambda: work, lambda: -work] if parallel > 1 else [],
        make=make,
        parallel=parallel,
    )
    read = [[i, -i] if parallel > 1 else [] for i in range(number)]
    assert list(reading) == [(i, (i, read[i])) for i in range(number)]
    reading.close()
    assert not threads()


def test_no_more_is_made_ahead_than_allowed() -> None:
    made: list[int] = []
    ahead = Ahead(1000)
    working = pipeline(iter(ahead), make=lambda work, read: made.append(work), most_made=5)
    results = iter(working)
    for taken in range(1, 4):
        next(results)
        assert settled(lambda taken=taken: len(made) == taken + 5)
        assert ahead.planned < 100
    working.close()


def test_bytes_ahead_are_bounded_and_one_piece_of_work_always_fits() -> None:
    made: list[int] = []
    sizes = [10, 40, 500, 10, 30, 30, 30, 30]
    working = pipeline(
        iter(range(8)), make=lambda work, read: made.append(work), size=sizes.__getitem__, most_made=8, most_bytes=100
    )
    results = iter(working)
    for taken, ahead in enumerate([[1], [2], [3, 4, 5, 6], [4, 5, 6], [5, 6, 7]]):
        assert next(results)[0] == taken
        assert settled(lambda taken=taken, ahead=ahead: sorted(made) == [*range(taken + 1), *ahead])
    working.close()


def test_reads_begin_before_their_turn_to_be_made() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def read(work: int) -> Callable[[], int]:
        def reading() -> int:
            begun.append(work)
            assert go_on.wait(10)
            return work

        return reading

    working = pipeline(iter(range(100)), reads=lambda work: [read(work)], parallel=16, most_made=2, threads=2)
    results = iter(working)
    taken = threading.Thread(target=lambda: next(results))
    taken.start()
    assert settled(lambda: len(begun) == 16)
    go_on.set()
    taken.join(10)
    working.close()
    assert not threads()


def test_a_fault_comes_after_what_was_made_before_it() -> None:
    def plan() -> Iterator[int]:
        yield from range(3)
        raise OSError("the index is gone")

    working = pipeline(plan())
    got: list[int] = []
    with pytest.raises(OSError, match="the index is gone"):
        got.extend(work for work, _ in working)
    assert got == [0, 1, 2]
    working.close()

    def make(work: int, read: list[int]) -> int:
        if work == 3:
            raise ValueError("a bad sample")
        return work

    working = pipeline(iter(range(10)), make=make)
    got = []
    with pytest.raises(ValueError, match="a bad sample"):
        got.extend(work for work, _ in working)
    assert got == [0, 1, 2]
    working.close()
    assert not threads()


def test_work_that_cannot_be_begun_says_why() -> None:
    def reads(work: int) -> list[Any]:
        if work == 3:
            raise RuntimeError("can't start new thread")
        return []

    working = pipeline(iter(range(10)), reads=reads, most_made=8)
    with pytest.raises(RuntimeError, match="can't start"):
        list(working)
    working.close()

    working = pipeline(iter(range(10)))
    working._makers.shutdown()  # as Python does when it ends
    with pytest.raises(RuntimeError, match="cannot schedule"):
        list(working)
    working.close()
    assert not threads()


def test_a_read_that_fails_fails_its_work() -> None:
    def failing() -> int:
        raise ConnectionError("reset")

    working = pipeline(iter(range(4)), reads=lambda work: [failing] if work == 2 else [], parallel=4)
    got: list[int] = []
    with pytest.raises(ConnectionError, match="reset"):
        got.extend(work for work, _ in working)
    assert got == [0, 1]
    working.close()


def test_what_was_read_is_let_go_once_it_is_made() -> None:
    class Payload:
        def __init__(self) -> None:
            alive.add(self)

    alive: weakref.WeakSet[Payload] = weakref.WeakSet()
    working = pipeline(iter(range(6)), reads=lambda work: [Payload], make=lambda work, read: work, parallel=4)
    results = iter(working)
    next(results)
    # Four are made ahead, and the sixth is read and waits for its turn.
    assert settled(lambda: len(alive) == 1)
    working.close()


def test_closing_ends_an_endless_plan_at_once() -> None:
    def plan() -> Iterator[int]:
        i = 0
        while True:
            yield (i := i + 1)

    working = pipeline(plan())
    assert next(iter(working)) == (1, 10)
    working.close()
    working.close()
    assert not threads()


@needs_fork
def test_a_forked_process_leaves_a_loop_and_cannot_go_on_with_it() -> None:
    locked, go = threading.Event(), threading.Event()

    def reads(work: int) -> list[Callable[[], None]]:
        if work == 2:
            locked.set()  # a thread holds the pipeline's lock here, and in a forked process for ever
            go.wait()
        return []

    given = pipeline(iter(range(9)), reads=reads)
    loop = iter(given)

    def leave() -> None:
        with pytest.raises(RuntimeError, match="begun in another process: begin another `for`"):
            next(loop)
        given.close()

    with ThreadPoolExecutor(1) as others:
        first = others.submit(next, iter(given))
        locked.wait()
        child = forked(leave)
        go.set()
        assert first.result() == (0, 0)
    assert ended(child) == 0
    assert [work for work, _ in given] == list(range(1, 9))
    given.close()


@needs_fork
def test_what_is_made_is_not_let_go_of_in_a_forked_process() -> None:
    made: list[int] = []
    gone: list[int] = []

    class Made:
        def __init__(self, work: int) -> None:
            made.append(work)

        def __del__(self) -> None:
            gone.append(1)

    given = pipeline(iter(range(9)), make=lambda work, read: Made(work))
    loop = iter(given)
    first = next(loop)
    assert settled(lambda: len(made) == 5)

    def leave() -> None:
        loop.close()
        given.close()
        assert not gone

    assert ended(forked(leave)) == 0
    del first
    given.close()
