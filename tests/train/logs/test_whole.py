"""What does not fit on a disk leaves nothing of itself behind."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shardpipe.errors import StoreError
from shardpipe.train.logs.board import Board
from shardpipe.train.logs.record import JsonLines, Recorder


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files may grow up to a size: a write across it is cut short, the next one fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [1, 50, 99, 100, 101, 149])
def test_lines_are_not_glued_together(tmp_path: Path, room: int) -> None:
    path = tmp_path / "lines.jsonl"
    log = JsonLines(path)
    line = {"consumed_samples": 4, "text": "é" * 7}
    written = 0
    with room_for(room), suppress(StoreError):
        while True:
            log.write(line)
            written += 1
    with room_for(room), pytest.raises(StoreError, match=r"lines.jsonl: cannot be written \(File too large\)"):
        log.write(line)
    assert [json.loads(text) for text in path.read_text().splitlines()] == [line] * written
    log.write({"consumed_samples": 8})
    log.close()
    assert json.loads(path.read_text().splitlines()[-1]) == {"consumed_samples": 8}
    assert len(path.read_text().splitlines()) == written + 1


@pytest.mark.parametrize("room", [60, 99, 140, 141, 200])
def test_curves_are_not_torn(tmp_path: Path, room: int) -> None:
    board = Board(tmp_path, first_step=1)
    written = 0
    with room_for(room), suppress(StoreError):
        while True:
            board.scalar("train/loss", 0.5, written)
            written += 1
    with room_for(room), pytest.raises(StoreError, match=r"events.out.tfevents.*: cannot be written"):
        board.scalar("train/loss", 0.5, written)
    board.scalar("train/loss", 0.25, 1000)
    board.close()
    drawn = [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")]
    assert drawn == [*range(written), 1000]


def test_a_full_disk_says_so_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(tmp_path, consumed_samples=0)
    with room_for(2000), suppress(StoreError):
        for count in range(1000):
            recorder.write("step", count, loss=1.0, lr=0.1)
    with room_for(2000), pytest.raises(StoreError, match="cannot be written"):
        recorder.write("step", 1000, loss=1.0, lr=0.1)
    recorder.close()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", ""), "the error says it, and no thread beside it"
