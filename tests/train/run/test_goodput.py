"""All time since a run began is in one kind, whatever its starts were ended by."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpipe.train.run.goodput import Goodput


class Clocks:
    """Time that goes by when it is told to; `set` moves the wall clock alone, as a person does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.wrong = 0.0
        patch.setattr("shardpipe.train.run.goodput.time.time", lambda: self.now + self.wrong)
        patch.setattr("shardpipe.train.run.goodput.time.monotonic", lambda: self.now)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def started(folder: Path, clocks: Clocks, count: int) -> Goodput:
    """A start that took 5 s to open, 2 of which this process knows of only by when it began."""
    began = clocks.now
    clocks.now += 2
    goodput = Goodput(folder, count, began=began)
    clocks.now += 3
    goodput.opened()
    return goodput


def test_the_kinds_add_up_over_kills_and_going_back(tmp_path: Path, clocks: Clocks) -> None:
    goodput = started(tmp_path, clocks, 0)
    for count in (4, 8):
        clocks.now += 10
        goodput.spend("data", 1)
        goodput.note(count, now=False)
    with goodput.spending("checkpoints"):
        clocks.now += 2
    goodput.note(8)
    clocks.now += 20
    goodput.spend("lost", 6)  # a step without a finite gradient
    with goodput.spending("validation"):
        clocks.now += 4
    goodput.note(12)
    spent = {"steps": 32.0, "start": 5.0, "data": 2.0, "checkpoints": 2.0, "validation": 4.0, "lost": 6.0, "down": 0.0}
    assert goodput.seconds == spent
    assert goodput.share == pytest.approx(32 / 51)
    goodput.close()

    clocks.now += 100  # killed, and going on at the checkpoint
    goodput = started(tmp_path, clocks, 8)
    assert goodput.seconds == spent | {"steps": 18.0, "start": 10.0, "lost": 20.0, "down": 100.0}
    clocks.now += 30
    goodput.note(16)
    goodput.close()
    goodput = started(tmp_path, clocks, 0)  # anew
    assert goodput.seconds == spent | {"steps": 0.0, "start": 15.0, "lost": 68.0, "down": 100.0}
    assert str(goodput).startswith("goodput 0.0% of 0:03:11 since the run began; starting 7.9%, waiting for data 1.0%,")
    goodput.close()


def test_at_most_ten_seconds_of_a_killed_start_count_as_down(tmp_path: Path, clocks: Clocks) -> None:
    goodput = started(tmp_path, clocks, 0)
    for count in range(1, 20):
        clocks.now += 1
        goodput.note(count, now=False)
    goodput.close()
    goodput = started(tmp_path, clocks, 19)
    seconds = goodput.seconds
    goodput.close()
    assert seconds["steps"] + seconds["down"] == 19
    assert 0 < seconds["down"] < 10


def test_a_clock_that_is_set_back_makes_nothing_negative(tmp_path: Path, clocks: Clocks) -> None:
    goodput = started(tmp_path, clocks, 0)
    clocks.now += 10
    clocks.wrong = -500
    goodput.note(4)
    assert goodput.seconds["steps"] == 10
    goodput.close()
    began = clocks.now + clocks.wrong
    goodput = Goodput(tmp_path, 4, began=began)
    assert all(seconds >= 0 for seconds in goodput.seconds.values())
    goodput.close()


def test_a_damaged_record_loses_only_itself(tmp_path: Path, clocks: Clocks) -> None:
    goodput = started(tmp_path, clocks, 0)
    clocks.now += 10
    goodput.note(4)
    goodput.close()
    file = tmp_path / "times.jsonl"
    file.write_bytes(file.read_bytes() + b'{"consumed_samples": 5, "ti\n\x00\xff\n[]\n')
    goodput = started(tmp_path, clocks, 4)
    assert goodput.seconds["steps"] == 10
    goodput.close()


@pytest.mark.parametrize(
    "torn", [b'{"consumed_samples": 5, "ti', b'{"consumed_samples":0,"time":1e308,"spent":{"steps":-1}}\n']
)
def test_a_line_that_is_cut_short_or_absurd_is_dropped(tmp_path: Path, clocks: Clocks, torn: bytes) -> None:
    goodput = started(tmp_path, clocks, 0)
    clocks.now += 10
    goodput.note(4)
    goodput.close()
    with (tmp_path / "times.jsonl").open("ab") as file:
        file.write(torn)
    for number in (2, 3):
        goodput = started(tmp_path, clocks, 4)
        assert goodput.seconds["steps"] == 10
        assert goodput.seconds["start"] == 5 * number
        goodput.note(4)
        goodput.close()
