"""The learning rate as a pure function of progress: nothing to save, so right at the first step after a resume."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from shardpipe.errors import ConfigError

__all__ = ["Amount", "Decay", "Schedule"]

Decay = Literal["cosine", "inverse-sqrt", "constant"]

# Where cosine ends, as a share of the peak: not zero, so that the last steps still learn.
_COSINE_END = 0.01
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much of a run: a number of `samples`, optimizer `steps`, or `seconds` on the clock."""

    count: float
    unit: Literal["samples", "steps", "seconds"]

    @classmethod
    def parse(cls, name: str, text: str, *, clock: bool) -> Amount:
        """Reads `5000samples`, `200steps` and, if `clock`, `90s`, `10min`, `2h`. Raises ConfigError about `name`."""
        rule = "it must be like 5000samples or 200steps" + (", or 10min" if clock else "")
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *(samples?|steps?|s|min|h)", text)
        if match is None:
            raise ConfigError(name, text, rule)
        count, unit = float(match[1]), match[2]
        if unit in _SECONDS:
            if not clock:
                raise ConfigError(name, text, rule)
            return cls(count=count * _SECONDS[unit], unit="seconds")
        if not count.is_integer():
            raise ConfigError(name, text, f"a part of a {unit.rstrip('s')} does not exist")
        return cls(count=count, unit="samples" if unit.startswith("sample") else "steps")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to `peak` over `warmup` samples or steps, then a decay.

    `cosine` falls with the share of the run's `total_samples`, `inverse-sqrt` with the root of the progress in the
    warm-up's unit, from the peak at the warm-up's end; `constant` stays.
    """

    peak: float
    warmup: Amount
    decay: Decay
    total_samples: int

    def at(self, *, steps: int, samples: int) -> float:
        """The rate of the step after which `steps` optimizer steps are taken and `samples` samples consumed."""
        done = steps if self.warmup.unit == "steps" else samples
        rate = self.peak * min(1.0, done / self.warmup.count if self.warmup.count else 1.0)
        if self.decay == "cosine":
            share = min(1.0, samples / self.total_samples)
            rate *= _COSINE_END + (1 - _COSINE_END) * (1 + math.cos(math.pi * share)) / 2
        elif self.decay == "inverse-sqrt":
            peak_at = max(self.warmup.count, 1)
            rate *= math.sqrt(peak_at / max(done, peak_at))
        return rate
