"""Which checkpoints of a run are kept, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardpipe.train.amount import Amount, Done
from shardpipe.train.checkpoints.marker import Checkpoint
from shardpipe.train.config import TrainConfig
from shardpipe.train.validation import FIGURES, ONLY, named, shown

__all__ = ["Keep", "best_of", "kept", "sets_in"]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The newest so many; the first one at or after each multiple of an amount; the best so many by a figure."""

    newest: int = 3
    every: Amount | None = None
    best: int = 0
    by: str = named(ONLY, FIGURES[0])
    sets: tuple[str, ...] = ()
    """The names of the run's validation sets, where they are known."""

    @classmethod
    def of(cls, config: TrainConfig) -> Keep:
        """What a run's settings say."""
        by = config.best_figure if config.valid_sets else cls.by
        sets = tuple(config.valid_sets)
        return cls(newest=config.keep, every=config.keep_interval, best=config.keep_best, by=by, sets=sets)


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
            progress = checkpoints[count].progress
            done = Done(samples=count, steps=progress.steps, sub_epochs=progress.sub_epochs or 0)
            if (multiple := int(keep.every.of(done) // keep.every.count)) > reached:
                reached = multiple
                at = Amount(count=multiple * keep.every.count, unit=keep.every.unit)
                reasons.setdefault(count, []).append(f"first from {at} on")
    by, best = shown(keep.by, keep.sets), best_of(checkpoints, keep.best, keep.by)
    for place, count in enumerate(best, 1):
        reasons.setdefault(count, []).append(f"no. {place} by {by}")
    if len(best) < keep.best:
        # The figure is new to the run, which knows good ones by another one until this has found its own.
        for count, checkpoint in checkpoints.items():
            if checkpoint.valid and keep.by not in checkpoint.valid:
                reasons.setdefault(count, []).append(f"evaluated before there was {by}")
    return reasons


def sets_in(checkpoints: Mapping[int, Checkpoint]) -> list[str]:
    """The names of the sets that they were evaluated on, in the order of the newest one that was on the most."""
    found = [_sets(each) for _, each in sorted(checkpoints.items(), reverse=True)]
    return list(dict.fromkeys(name for names in sorted(found, key=len, reverse=True) for name in names))


def _sets(checkpoint: Checkpoint) -> list[str]:
    return list(dict.fromkeys(name.rpartition("/")[0] for name in checkpoint.valid or {}))


def best_of(checkpoints: Mapping[int, Checkpoint], number: int, by: str) -> list[int]:
    """Counts of the so many with the lowest figure, from the best on; the earlier one where two have the same. Those
    that were not evaluated, or whose figure is not finite, are not among them.
    """
    figures = [
        (figure, count)
        for count, checkpoint in checkpoints.items()
        if checkpoint.valid is not None and (figure := checkpoint.valid.get(by)) is not None
    ]
    return [count for _, count in sorted(figures)[:number]]
