"""The cache of slow loads: once each, the least recently used goes first, errors reach everyone who waits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardpipe.dataset.lru import LoadingCache
from tests.forking import ended, forked, needs_fork


def test_the_least_recently_used_goes_first() -> None:
    cache = LoadingCache(3)
    for key in "abc":
        assert cache.get(key, lambda key=key: key * 2, lambda _: 1) == key * 2
    cache.get("a", lambda: pytest.fail("it is kept"), lambda _: 1)
    cache.get("d", lambda: "dd", lambda _: 1)
    assert ["b" in cache, "a" in cache, "c" in cache, "d" in cache] == [False, True, True, True]


def test_a_value_larger_than_the_limit_stays_alone() -> None:
    cache = LoadingCache(3)
    cache.get("a", lambda: "a", lambda _: 1)
    assert cache.get("big", lambda: "big", lambda _: 10) == "big"
    assert "big" in cache
    assert "a" not in cache


def test_each_value_is_loaded_once_and_others_do_not_wait_for_it() -> None:
    cache = LoadingCache(10)
    begun, go_on = threading.Event(), threading.Event()
    loads: list[int] = []

    def slow() -> str:
        loads.append(1)
        begun.set()
        assert go_on.wait(10)
        return "slow"

    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(cache.get, "slow", slow, lambda _: 1) for _ in range(4)]
        assert begun.wait(10)
        assert pool.submit(cache.get, "quick", lambda: "quick", lambda _: 1).result(10) == "quick"
        go_on.set()
        assert [future.result(10) for future in waiting] == ["slow"] * 4
    assert loads == [1]


def test_an_error_reaches_all_that_wait_and_is_not_kept() -> None:
    cache = LoadingCache(10)
    begun, go_on = threading.Event(), threading.Event()

    def failing() -> str:
        begun.set()
        assert go_on.wait(10)
        raise OSError("no such luck")

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(cache.get, "a", failing, lambda _: 1)
        assert begun.wait(10)
        other = pool.submit(cache.get, "a", lambda: "second load", lambda _: 1)
        go_on.set()
        with pytest.raises(OSError, match="no such luck"):
            one.result(10)
        assert other.exception(10) is not None or other.result() == "second load"
    assert cache.get("a", lambda: "now", lambda _: 1) in ("now", "second load")


@needs_fork
def test_a_forked_process_waits_for_nobody() -> None:
    cache = LoadingCache(3)
    begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go.wait(60)
        return "a"

    def mine() -> None:
        assert cache.get("a", lambda: "mine", lambda _: 1) == "mine"

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.get, "a", slow, lambda _: 1)
        assert begun.wait(60)
        with cache._lock:  # as another thread might
            child = forked(mine)
        go.set()
        assert ended(child) == 0
        assert loading.result() == "a"
