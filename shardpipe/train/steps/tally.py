"""What a training step adds up to, over its batches and over all processes, and how long it took."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, field

from shardpipe.train.engines import World
from shardpipe.train.task import Result

__all__ = ["Clock", "Tally"]


@dataclass(kw_only=True)
class Tally:
    """Sums over the batches of an optimizer step; `save` and `stop` count the processes that ask for it."""

    loss: float = 0.0
    weight: float = 0.0
    utterances: float = 0.0
    seconds: float = 0.0
    unknown_units: float = 0.0
    notes: float = 0.0
    save: float = 0.0
    stop: float = 0.0

    def add(self, result: Result) -> None:
        self.loss += result.loss.item()
        self.weight += result.weight
        self.utterances += result.utterances
        self.seconds += result.seconds
        self.unknown_units += result.unknown_units

    def over(self, world: World) -> Tally:
        """The sum of all processes' tallies: the same in each of them."""
        names = self.__dataclass_fields__
        return Tally(**dict(zip(names, world.sum(astuple(self)))))


@dataclass(kw_only=True)
class Clock:
    """Time of a process's steps, and how much of it went into waiting for data."""

    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def restart(self) -> None:
        """Begins a step's time now."""
        self.began, self.waited = time.perf_counter(), 0.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began
