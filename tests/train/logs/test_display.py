"""What a person sees of a run."""

from __future__ import annotations

from shardpipe.train.logs.display import duration


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 61, 3600 * 25 + 59)] == ["0:00:00", "0:01:01", "25:00:59"]
