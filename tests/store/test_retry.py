"""Another attempt where it may help: how many, how long between, and what the last one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardpipe.errors import ConfigError, StoreError
from shardpipe.store import CountingStore, FailingStore, LocalStore, Retry, RetryingStore
from shardpipe.store.retry import attempted


def passing(message: str = "busy") -> StoreError:
    return StoreError(message, url="s3://b/x", fix="Wait.", transient=True)


def failing_times(n: int, error: StoreError) -> Any:
    left = [error] * n

    def action() -> str:
        if left:
            raise left.pop()
        return "done"

    return action


def test_waits_double_up_to_a_bound_and_are_drawn_in_full() -> None:
    waits: list[float] = []
    retry = Retry(attempts=8, first_wait=0.5, longest_wait=6.0)
    shares = iter([1.0, 0.0, 0.5, 1.0, 1.0, 0.25, 1.0])
    action = failing_times(7, passing())
    assert attempted(action, retry, sleep=waits.append, jitter=lambda: next(shares)) == "done"
    assert waits == [0.5, 0.0, 1.0, 4.0, 6.0, 1.5, 6.0]


def test_the_last_attempt_says_how_many_there_were() -> None:
    waits: list[float] = []
    with pytest.raises(StoreError, match=r"s3://b/x: busy, after 4 attempts\. Wait\.") as raised:
        attempted(failing_times(4, passing()), Retry(attempts=4), sleep=waits.append)
    assert (raised.value.attempts, len(waits)) == (4, 3)


def test_what_does_not_pass_is_not_tried_again() -> None:
    with pytest.raises(StoreError, match="x: gone") as raised:
        attempted(
            failing_times(1, StoreError("gone", url="x", fix="")), Retry(), sleep=lambda _: pytest.fail("has waited")
        )
    assert raised.value.attempts == 1


def test_waits_do_not_overflow() -> None:
    assert Retry(longest_wait=7.0).longest(100_000) == 7.0


def test_large_reads_may_take_longer() -> None:
    retry = Retry(attempt_seconds=3.0, slowest=1e6)
    assert retry.limit() == 3.0
    assert retry.limit(2_000_000) == 5.0


@pytest.mark.parametrize("setting", ["attempts", "attempt_seconds", "slowest"])
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        Retry(**{setting: 0})


def test_any_store_can_be_asked_again(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    counting = CountingStore(LocalStore(tmp_path))
    failing = FailingStore(counting, [TimeoutError(), ConnectionResetError(104, "reset"), lambda data: data[:2]])
    store = RetryingStore(failing, Retry(attempts=4, first_wait=0))
    assert store.read("x", 1, 3) == b"234"
    assert counting.reads == [("x", 1, 3)] * 2
    store = RetryingStore(FailingStore(counting, [PermissionError("denied")]), Retry(first_wait=0))
    with pytest.raises(StoreError, match="denied"):
        store.read("x", 1, 3)
