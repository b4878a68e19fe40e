"""Which checkpoints of a run are kept, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardpipe.train.checkpoints.marker import Checkpoint
from shardpipe.train.config import Figure, TrainConfig
from shardpipe.train.schedule import Amount

__all__ = ["Keep", "best_of", "kept"]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The newest so many; the first one at or after each multiple of an amount; the best so many by a figure."""

    newest: int = 3
    every: Amount | None = None
    best: int = 0
    by: Figure = "loss"

    @classmethod
    def of(cls, config: TrainConfig) -> Keep:
        """What a run's settings say."""
        return cls(newest=config.keep, every=config.keep_interval, best=config.keep_best, by=config.best_by)


def kept(checkpoints: Mapping[int, Checkpoint], keep: Keep) -> dict[int, list[str]]:
    """Those to be kept, by count, and the reasons for each. It is a function of what is there alone: one that another
    rule has let go does not come back.
    """
    counts = sorted(checkpoints)
    reasons: dict[int, list[str]] = {}
    for count in counts[-keep.newest :]:
        reasons.setdefault(count, []).append("newest")
    if keep.every is not None:
        reached = 0
        for count in counts:
            done = checkpoints[count].progress.steps if keep.every.unit == "steps" else count
            if (multiple := int(done // keep.every.count)) > reached:
                reached = multiple
                reasons.setdefault(count, []).append(
                    f"first from {multiple * int(keep.every.count)} {keep.every.unit} on"
                )
    for place, count in enumerate(best_of(checkpoints, keep.best, keep.by), 1):
        reasons.setdefault(count, []).append(f"no. {place} by {keep.by}")
    return reasons


def best_of(checkpoints: Mapping[int, Checkpoint], number: int, by: Figure) -> list[int]:
    """Counts of the so many with the lowest figure, from the best on; the earlier one where two have the same. Those
    that were not evaluated, or whose figure is not finite, are not among them.
    """
    figures = [
        (figure, count)
        for count, checkpoint in checkpoints.items()
        if checkpoint.valid is not None and (figure := checkpoint.valid.get(by)) is not None
    ]
    return [count for _, count in sorted(figures)[:number]]
