"""When a loop goes over from threads to processes, or is advised to."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.loading.feeding import pace as module
from shardpipe.loading.feeding.pace import Pace
from tests.loading.test_workers import same
from tests.speech import pack_speech


class Fake:
    """Stands for worker processes."""

    def __init__(self, fault: str = "") -> None:
        self.begun = 0
        self._fault = fault

    def begin(self) -> None:
        self.begun += 1
        if self._fault:
            raise ShardpipeError(self._fault, fix="Do so.")


def stretch(pace: Pace, *, waits: float, stands: float, batches: int = 40) -> None:
    """Some seconds of a loop that waits this share of them, and of threads that stand still for that share."""
    for _ in range(batches):
        pace._looks.append((0.2, 0.2 * stands))
        pace.taken(waits * 0.1, 0.1)


def settled(pace: Pace) -> bool:
    end = time.monotonic() + 10
    while pace.workers is None and time.monotonic() < end:
        time.sleep(0.01)
    return pace.workers is not None


def test_a_loop_that_waits_for_the_gil_is_advised_once(caplog: pytest.LogCaptureFixture) -> None:
    pace = Pace(None, 8, wait=False)
    for _ in range(9):
        stretch(pace, waits=0.31, stands=0.6)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        "the loop waits for batches 31 % of its time, as threads wait for the GIL to make them: workers=8 has "
        'processes make them, workers="auto" goes over to these by itself'
    )


@pytest.mark.parametrize(("waits", "stands"), [(0.31, 0.1), (0.05, 0.6), (0.0, 0.0)])
def test_a_loop_without_cause(caplog: pytest.LogCaptureFixture, waits: float, stands: float) -> None:
    workers: Any = Fake()
    pace = Pace(workers, 8, wait=True)
    for _ in range(9):
        stretch(pace, waits=waits, stands=stands)
    assert (workers.begun, pace.workers, caplog.records) == (0, None, [])


def test_one_bad_stretch_is_no_cause() -> None:
    workers: Any = Fake()
    pace = Pace(workers, 8, wait=True)
    for _ in range(9):
        stretch(pace, waits=0.5, stands=0.6, batches=30)
        stretch(pace, waits=0.0, stands=0.6, batches=30)
    assert (workers.begun, pace.workers) == (0, None)


def test_processes_take_over_when_they_are_there(caplog: pytest.LogCaptureFixture) -> None:
    workers: Any = Fake()
    pace = Pace(workers, 2, wait=True)
    with caplog.at_level(logging.INFO, "shardpipe"):
        for _ in range(9):
            stretch(pace, waits=0.31, stands=0.6)
    assert settled(pace)
    assert pace.workers is workers
    assert workers.begun == 1
    assert ["2 worker processes take over" in record.getMessage() for record in caplog.records] == [True]


def test_threads_go_on_where_processes_cannot_be_had(caplog: pytest.LogCaptureFixture) -> None:
    workers: Any = Fake("no memory")
    pace = Pace(workers, 2, wait=True)
    for _ in range(9):
        stretch(pace, waits=0.31, stands=0.6)
    end = time.monotonic() + 10
    while not caplog.records and time.monotonic() < end:
        time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "threads go on making batches, for no worker processes can be had: no memory. Do so."
    ]
    assert (workers.begun, pace.workers) == (1, None)


def test_processes_that_are_asked_for_are_not_watched() -> None:
    workers: Any = Fake()
    pace = Pace(workers, 2, wait=False)
    with pace.watching():
        pass
    pace.taken(0.1, 0.1)
    assert pace.workers is workers
    assert not pace._batches
    assert not pace._looks


def look(work: Callable[[], object]) -> float:
    """The share of its time that a thread stands still which does this."""
    while True:
        pace = Pace(None, 2, wait=False)
        with pace.watching():
            work()
        for took, stood in pace._looks:  # none if a page came from a disk meanwhile
            return stood / took


def compute() -> None:
    data = np.random.default_rng(0).bytes(1 << 20)
    for _ in range(300):
        zlib.adler32(data)  # a millisecond or less without the GIL, as a decoder takes


def test_who_computes_does_not_stand_still() -> None:
    assert look(compute) < module._STANDING


def test_who_waits_for_the_gil_stands_still() -> None:
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            sum(range(1000))

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        assert look(compute) > module._STANDING
    finally:
        done.set()
        thread.join()


def test_batches_are_looked_at_now_and_then() -> None:
    pace = Pace(None, 2, wait=False)
    for _ in range(5):
        with pace.watching():
            pass
    assert len(pace._looks) == 1


def test_what_fails_is_not_looked_at() -> None:
    pace = Pace(None, 2, wait=False)
    with pytest.raises(KeyError), pace.watching():
        raise KeyError
    assert not pace._looks


def test_batches_stay_the_same_when_processes_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack_speech(tmp_path, 30, shard_samples=7, seconds=(0.05, 0.3))
    for name, value in (("_STRETCH", 0.0), ("_BATCHES", 4), ("_SHARE", -1.0), ("_STANDING", -1.0), ("_EVERY", 0.0)):
        monkeypatch.setattr(module, name, value)
    loader = ShardLoader(data, batch_size=4, workers="auto", threads=2)
    made, epochs = [], 0
    end = time.monotonic() + 60
    while (loader._feed.pace.workers is None or not epochs % 2) and time.monotonic() < end:
        made += list(loader)
        epochs += 1
    made += list(loader)
    workers = loader._feed.pace.workers
    assert workers is not None
    assert workers._pool is not None
    assert workers._pool._idle.qsize() == 2
    wanted, plain = [], ShardLoader(data, batch_size=4)
    for _ in range(epochs + 1):
        wanted += list(plain)
    assert same(made, wanted)


def test_auto_is_checked_as_a_number_is(tmp_path: Path) -> None:
    data = pack_speech(tmp_path, 3)
    with pytest.raises(ConfigError, match="with workers it must pickle"):
        ShardLoader(data, batch_size=1, workers="auto", transform=lambda sample, rng: sample)
    with pytest.raises(ConfigError, match="workers is 'many'"):
        ShardLoader(data, batch_size=1, workers="many")  # type: ignore[arg-type]
