"""How samples are put together: a rule with every run, checked when it is made, and part of its state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardpipe.errors import ConfigError

__all__ = ["Batching", "Floats"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How samples are put together: `batch_size` samples, or up to `batch_seconds` padded seconds, a batch.

    Samples shorter than `min_seconds` or longer than `max_seconds` are left out. The batches start at offset `origin`
    of every lane: 0, unless the batching was changed in mid-epoch, and then it is where the old one ended.
    """

    batch_size: int | None = None
    batch_seconds: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    origin: int = 0

    def __post_init__(self) -> None:
        if (self.batch_size is None) == (self.batch_seconds is None):
            value = (self.batch_size, self.batch_seconds)
            raise ConfigError("(batch_size, batch_seconds)", value, "exactly one of them must be given")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError("batch_size", self.batch_size, "it must be at least 1")
        if self.batch_seconds is not None and not 0 < self.batch_seconds < math.inf:
            raise ConfigError("batch_seconds", self.batch_seconds, "it must be a positive number of seconds")
        low, high = self.min_seconds, self.max_seconds
        if low is not None and not 0 <= low < math.inf:
            raise ConfigError("min_seconds", low, "it must be a number of seconds, 0 or more")
        if high is not None and not (low or 0) <= high < math.inf:
            raise ConfigError("max_seconds", high, "it must be a number of seconds, not below min_seconds")

    @property
    def excludes(self) -> bool:
        """Whether there are limits."""
        return self.min_seconds is not None or self.max_seconds is not None

    def keeps(self, seconds: Floats) -> npt.NDArray[np.bool_]:
        """Which samples of these lengths are within the limits; of the shape of `seconds`."""
        kept = np.ones(seconds.shape, np.bool_)
        if self.min_seconds is not None:
            kept &= seconds >= self.min_seconds
        if self.max_seconds is not None:
            kept &= seconds <= self.max_seconds
        return kept
