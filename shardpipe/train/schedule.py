"""The learning rate as a function of progress: right at the first step after a resume.

Most schedules are pure. What a plateau depends on is small, and in every checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from shardpipe.train.amount import Amount, Done

__all__ = ["Decay", "Plateau", "Schedule"]

Decay = Literal["cosine", "inverse-sqrt", "constant", "plateau"]

# The lowest rate, as a share of the peak: not zero, so that the last steps still learn.
_LOWEST = 0.01


class Plateau(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By how much evaluations have lowered the rate so far."""

    peak: float
    """The rate that was lowered; where another one is given, nothing is lowered yet."""
    by: str
    """The figure that is looked at."""
    best: float | None = None
    waited: int = 0
    """Evaluations since the best one, or since the rate was lowered."""
    factor: float = 1.0

    def going_on(self, *, peak: float, by: str) -> Plateau:
        """What a run goes on with: nothing is lowered of another rate, and another figure has no best one yet."""
        if self.peak != peak:
            return Plateau(peak=peak, by=by)
        return self if self.by == by else msgspec.structs.replace(self, by=by, best=None, waited=0)

    def after(self, figure: float | None, *, patience: int, factor: float) -> Plateau:
        """What it is after another evaluation; None for a figure that is not finite, which is no better than any."""
        if figure is not None and (self.best is None or figure < self.best):
            return msgspec.structs.replace(self, best=figure, waited=0)
        if self.waited + 1 < patience:
            return msgspec.structs.replace(self, waited=self.waited + 1)
        return msgspec.structs.replace(self, waited=0, factor=max(self.factor * factor, _LOWEST))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to `peak`, then a decay.

    `cosine` falls to 1 % of the peak over the run's `total_samples`, or over each `cycle`, after which it begins at the
    peak again (Loshchilov and Hutter, "SGDR", ICLR 2017); each cycle is `cycle_growth` times as long as the one before.
    `inverse-sqrt` falls with the root of the progress in the warm-up's unit, from the peak at the warm-up's end;
    `constant` stays, and `plateau` is lowered by evaluations.
    """

    peak: float
    warmup: Amount
    decay: Decay
    total_samples: int
    cycle: Amount | None = None
    cycle_growth: int = 1

    def at(self, done: Done, plateau: Plateau | None = None) -> float:
        """The rate of the step after which so much is done."""
        climbed = self.warmup.of(done)
        rate = self.peak * min(1.0, climbed / self.warmup.count if self.warmup.count else 1.0)
        if self.decay == "cosine":
            rate *= _LOWEST + (1 - _LOWEST) * (1 + math.cos(math.pi * self._share(done))) / 2
        elif self.decay == "inverse-sqrt":
            peak_at = max(self.warmup.count, 1)
            rate *= math.sqrt(peak_at / max(climbed, peak_at))
        elif self.decay == "plateau" and plateau is not None:
            rate *= plateau.factor
        return rate

    def _share(self, done: Done) -> float:
        """Of the cycle that the step belongs to: above 0, and 1 for its last one."""
        if self.cycle is None:
            return min(1.0, done.samples / self.total_samples)
        reached, length = self.cycle.of(done), self.cycle.count
        if self.cycle_growth == 1:
            return reached / length - max(0, math.ceil(reached / length) - 1)
        begun = 0.0
        while reached > begun + length:
            begun += length
            length *= self.cycle_growth
        return (reached - begun) / length
